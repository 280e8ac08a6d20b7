"""Draw what the next training step would do to its images: image, map, mask, partner, mixed.

python -m gradmix_jax.figure runs/digits_0 --out=grid.png
python -m gradmix_jax.figure runs/digits_0 --out=grid.png --images=3,17,40
"""

import contextlib
import os

import jax
from absl import flags

from gradmix_jax import assembly, cli
from gradmix_jax import config as config_lib
from gradmix_jax.report.labels import short
from gradmix_jax.report.prepared import prepare
from gradmix_jax.training import explain as explain_lib
from gradmix_jax.workdir import replacing, storage

FORMATS = ("png", "pdf", "svg")
# The same height as a row.
LONGEST_NAME = 20


def grid(workdir: str, out: str, *, rows: int = 8, images: list[int] | None = None) -> None:
    """Draw images of the next batch after the newest checkpoint.

    Args:
      workdir: directory of a run.
      out: file to write, in one of FORMATS.
      rows: number of images to draw, from the start of the batch.
      images: positions in the batch to draw instead, from 0.

    Raises:
      ValueError: no checkpoint, a run that does not mix, another file format, or a position outside the batch.
    """
    kind = os.path.splitext(out)[1].lower().removeprefix(".")
    if kind not in FORMATS or os.path.isdir(out) or not os.path.isdir(os.path.dirname(out) or "."):
        endings = ", ".join(f".{each}" for each in FORMATS)
        raise ValueError(f"--out must be a file in an existing folder, ending in {endings}, got {out!r}.")
    prepared = prepare(config_lib.read(workdir), workdir)
    size = prepared.program.batch_size
    chosen = list(range(min(rows, size))) if images is None else images
    if not chosen or not all(0 <= place < size for place in chosen):
        raise ValueError(f"--images must be positions from 0 to {size - 1}, got {chosen}.")
    with contextlib.closing(prepared.checkpoints()) as checkpoints:
        state = checkpoints.restore(
            jax.eval_shape(lambda: assembly.initial_state(prepared.experiment, prepared.program))
        )
    batch, labels, names = prepared.batch(int(state.seed), int(state.step))
    explanation = jax.jit(lambda *arrays: explain_lib.explain(prepared.program, *arrays))(state, batch, labels)
    _draw(jax.device_get(explanation), {i: names[i] for i in chosen}, out, kind)


def _draw(explanation, names, out, kind):
    """Write the grid of {row of the batch: class name}."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    show = lambda axis, image: axis.imshow(
        image.squeeze().clip(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest"
    )
    mixed = explanation.mixed
    titles = ["image", "map", "mask", "partner", "mixed"]
    figure, axes = plt.subplots(
        len(names), 5, figsize=(6.5, 1.35 * len(names) + 0.3), squeeze=False, layout="constrained"
    )
    for axes_5, (row, name) in zip(axes, names.items()):
        show(axes_5[0], explanation.views[row])
        axes_5[0].set_ylabel(short(name, LONGEST_NAME), fontsize=8)
        if mixed.maps is not None:
            axes_5[1].imshow(mixed.maps[row], cmap="magma", vmin=0, vmax=1, interpolation="nearest")
        axes_5[2].imshow(explanation.mask[row], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        show(axes_5[3], explanation.views[mixed.partner[row]])
        show(axes_5[4], mixed.images[row])
        axes_5[4].set_xlabel(f"kept {mixed.weight[row]:.0%}", fontsize=7)
    for column, title in enumerate(titles):
        axes[0, column].set_title(title, fontsize=9)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    with replacing(out, "wb") as file:
        figure.savefig(file, dpi=150, format=kind)
    plt.close(figure)


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        raise ValueError(f"figure takes one workdir of a run, got {len(argv) - 1}.")
    words = flags.FLAGS.images
    if not all(word.isdecimal() for word in words):
        raise ValueError(f"--images must be numbers separated by commas, got {','.join(words)!r}.")
    images = [int(word) for word in words] or None
    grid(storage.expand(argv[1]), flags.FLAGS.out, rows=flags.FLAGS.rows, images=images)
    print(flags.FLAGS.out)


if __name__ == "__main__":
    flags.DEFINE_string("out", "grid.png", "File to write: .png, .pdf or .svg.")
    flags.DEFINE_integer("rows", 8, "Number of images to draw, from the start of the batch.", lower_bound=1)
    flags.DEFINE_list("images", [], "Positions in the batch of the images to draw instead.")
    cli.run(main)
