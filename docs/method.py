"""Draws docs/recipes.png: what recipes do to two images, all with the weights of one run.

python docs/method.py RUN docs/recipes.png --images=56,116
"""

import argparse
import contextlib
import pathlib
import sys

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from gradmix_jax import assembly
from gradmix_jax import config as config_lib
from gradmix_jax.report.prepared import prepare
from gradmix_jax.training import explain
from gradmix_jax.workdir import replacing

RECIPES = ("input", "layer", "released", "smooth", "backmix", "puzzlemix", "cutmix", "mixup")
COLUMNS = ("image", "map", "mask", "mixed")


def explained(workdir, recipe):
    """`explain.explain` for the batch after the newest checkpoint, as if the run had this recipe."""
    config = config_lib.read(workdir)
    for section, keys in config_lib.RECIPES[recipe].items():
        config[section] |= keys
    prepared = prepare(config, workdir)
    with contextlib.closing(prepared.checkpoints()) as checkpoints:
        state = checkpoints.restore(
            jax.eval_shape(lambda: assembly.initial_state(prepared.experiment, prepared.program))
        )
    batch, labels, _ = prepared.batch(int(state.seed), int(state.step))
    return jax.device_get(jax.jit(lambda *arrays: explain.explain(prepared.program, *arrays))(state, batch, labels))


def draw(found, images, out):
    """A row for each recipe, COLUMNS for each image."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = len(found), len(COLUMNS) * len(images)
    figure, axes = plt.subplots(*size, figsize=(1.05 * size[1] + 0.4, 1.05 * size[0] + 0.3), layout="constrained")
    for axes_row, (recipe, each) in zip(axes, found.items(), strict=True):
        axes_row[0].set_ylabel(recipe, fontsize=9)
        for place, image in enumerate(images):
            views, mixed = each.views, each.mixed
            cells = axes_row[place * len(COLUMNS) :][: len(COLUMNS)]
            cells[0].imshow(views[image].clip(0, 1), interpolation="nearest")
            if mixed.maps is None:
                cells[1].set_visible(False)
            else:
                cells[1].imshow(mixed.maps[image], cmap="magma", vmin=0, vmax=1, interpolation="nearest")
            if np.any(each.mask):
                cells[2].imshow(each.mask[image], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            else:
                cells[2].set_visible(False)
            cells[3].imshow(mixed.images[image].clip(0, 1), interpolation="nearest")
            cells[3].set_xlabel(f"kept {mixed.weight[image]:.0%}", fontsize=7, labelpad=1)
    for axis, title in zip(axes[0], COLUMNS * len(images), strict=True):
        axis.set_title(title, fontsize=9)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    with replacing(out, "wb") as file:
        figure.savefig(file, dpi=110, format="png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="workdir of a run that mixes")
    parser.add_argument("out", help="file to write, .png")
    parser.add_argument("--images", default="56,116", help="positions in the batch")
    arguments = parser.parse_args()
    found = {recipe: explained(arguments.run, recipe) for recipe in RECIPES}
    draw(found, [int(place) for place in arguments.images.split(",")], arguments.out)
