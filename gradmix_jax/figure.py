"""A picture of what the next training step would do: image, map, mask, mixed.

python -m gradmix_jax.figure runs/digits_0 --out=grid.png
"""

import dataclasses
import os
from typing import Any

import jax
import numpy as np
from absl import flags

from gradmix_jax import command, datasets, experiment, files, train, train_step
from gradmix_jax import config as config_lib
from gradmix_jax.checkpoint import Checkpoints
from gradmix_jax.datasets import order
from gradmix_jax.labels import short
from gradmix_jax.program import Program

FORMATS = ("png", "pdf", "svg")
# As high as a row is.
LONGEST_NAME = 20


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What explaining the steps of a run takes: its specs, its data and its program for one device."""

    specs: experiment.Experiment
    data: datasets.OpenSet
    program: Program

    def batch(self, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(images uint8 [b, H, W, C], labels int32 [b]) that the run is trained on at a step."""
        sizes = dict(size=self.program.num_images, batch_size=self.program.batch_size)
        chosen = order.host_batch_indices(seed, step, **sizes)
        images = np.stack([self.data.train[int(index)] for index in chosen])
        return images, np.asarray(self.data.train.labels)[chosen]


def prepare(config: dict[str, Any], workdir: str) -> Prepared:
    """Load the data of a run and make its program.

    Args:
      config: nested dict of all keys, as its config.json.
      workdir: what to call the run in errors.

    Raises:
      ValueError: a run that does not mix, or data that is not there.
    """
    specs = experiment.from_config(config, num_devices=1)
    if specs.mix.method == "none":
        raise ValueError(f"the run in {workdir} has mix.method 'none'; allowed: a run that mixes.")
    data = datasets.open_set(specs.dataset)
    program = train.make_program(specs, num_classes=data.num_classes, num_images=len(data.train), axis_name=None)
    return Prepared(specs, data, program)


def grid(workdir: str, out: str, *, rows: int = 8) -> None:
    """Draw the first `rows` images of the batch that the newest checkpoint would be trained on next.

    Args:
      workdir: directory of a run.
      out: file to write, of a kind in FORMATS.
      rows: number of images.

    Raises:
      ValueError: no checkpoint, a run that does not mix, or a file of another kind.
    """
    kind = os.path.splitext(out)[1].lower().removeprefix(".")
    if kind not in FORMATS or os.path.isdir(out) or not os.path.isdir(os.path.dirname(out) or "."):
        endings = ", ".join(f".{each}" for each in FORMATS)
        raise ValueError(f"--out is {out!r}; allowed: a file in a folder that is there, ending in {endings}.")
    prepared = prepare(config_lib.read(workdir), workdir)
    checkpoints = Checkpoints(workdir, read_only=True)
    state = checkpoints.restore(jax.eval_shape(lambda: train.initial_state(prepared.specs, prepared.program)))
    checkpoints.close()
    images, labels = prepared.batch(int(state.seed), int(state.step))
    explanation = jax.jit(lambda *arrays: train_step.explain(prepared.program, *arrays))(state, images, labels)
    _draw(jax.device_get(explanation), [prepared.data.class_names[i] for i in labels], out, kind, rows)


def _draw(explanation, names_b, out, kind, rows):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    show = lambda axis, image: axis.imshow(
        image.squeeze().clip(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest"
    )
    rows, mixed = min(rows, len(names_b)), explanation.mixed
    titles = ["image", "map", "mask", "partner", "mixed"]
    figure, axes = plt.subplots(rows, 5, figsize=(6.5, 1.35 * rows + 0.3), squeeze=False, layout="constrained")
    for row in range(rows):
        show(axes[row, 0], explanation.views[row])
        axes[row, 0].set_ylabel(short(names_b[row], LONGEST_NAME), fontsize=8)
        if mixed.maps is not None:
            axes[row, 1].imshow(mixed.maps[row], cmap="magma", vmin=0, vmax=1, interpolation="nearest")
        axes[row, 2].imshow(explanation.mask[row], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        show(axes[row, 3], explanation.views[mixed.partner[row]])
        show(axes[row, 4], mixed.images[row])
        axes[row, 4].set_xlabel(f"kept {mixed.weight[row]:.0%}", fontsize=7)
    for column, title in enumerate(titles):
        axes[0, column].set_title(title, fontsize=9)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    with files.replacing(out, "wb") as file:
        figure.savefig(file, dpi=150, format=kind)
    plt.close(figure)


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        raise ValueError(f"figure got {len(argv) - 1} directories; allowed: one, the workdir of a run.")
    grid(argv[1], flags.FLAGS.out, rows=flags.FLAGS.rows)
    print(flags.FLAGS.out)


if __name__ == "__main__":
    flags.DEFINE_string("out", "grid.png", "File to write.")
    flags.DEFINE_integer("rows", 8, "Number of images.", lower_bound=1)
    command.run(main)
