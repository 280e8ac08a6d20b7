"""A picture of what the next training step would do: image, map, mask, mixed.

python -m gradmix_jax.figure runs/digits_0 --out=grid.png
"""

import os

import jax
from absl import flags

from gradmix_jax import cli, run
from gradmix_jax import config as config_lib
from gradmix_jax.report.labels import short
from gradmix_jax.training import step as step_lib
from gradmix_jax.training.checkpoint import Checkpoints
from gradmix_jax.workdir import replacing

FORMATS = ("png", "pdf", "svg")
# As high as a row is.
LONGEST_NAME = 20


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
        raise ValueError(f"--out must be a file in an existing folder, ending in {endings}, got {out!r}.")
    prepared = run.prepare(config_lib.read(workdir), workdir)
    checkpoints = Checkpoints(workdir, read_only=True)
    state = checkpoints.restore(jax.eval_shape(lambda: run.initial_state(prepared.experiment, prepared.program)))
    checkpoints.close()
    images, labels = prepared.batch(int(state.seed), int(state.step))
    explanation = jax.jit(lambda *arrays: step_lib.explain(prepared.program, *arrays))(state, images, labels)
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
    with replacing(out, "wb") as file:
        figure.savefig(file, dpi=150, format=kind)
    plt.close(figure)


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        raise ValueError(f"figure takes one workdir of a run, got {len(argv) - 1}.")
    grid(argv[1], flags.FLAGS.out, rows=flags.FLAGS.rows)
    print(flags.FLAGS.out)


if __name__ == "__main__":
    flags.DEFINE_string("out", "grid.png", "File to write.")
    flags.DEFINE_integer("rows", 8, "Number of images.", lower_bound=1)
    cli.run(main)
