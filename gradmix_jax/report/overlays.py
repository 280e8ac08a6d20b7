"""Maps and masks over the course of training, recomputed from the seed and the checkpoints of a run."""

import contextlib
import copy

import jax
import numpy as np
from matplotlib.collections import LineCollection

from gradmix_jax import assembly
from gradmix_jax.config import default_config, to_plain
from gradmix_jax.method import mix
from gradmix_jax.report.drawing import Marks, framed, subplots, svg
from gradmix_jax.report.formats import escape_html
from gradmix_jax.report.labels import short
from gradmix_jax.report.prepared import prepare
from gradmix_jax.report.runs import Run
from gradmix_jax.training import explain as explain_lib

ROWS = 6
MOST_STEPS = 6
MOST_EDGES = 300
# The same height as a row.
LONGEST_NAME = 16


def overlays(run: Run) -> str:
    """Images x steps: map over the image, outline of the mask; or one sentence about what is missing."""
    # A report reads only what exists; it does not start to download a dataset.
    config = copy.deepcopy(run.config)
    config["dataset"]["download"] = False
    # The evaluate section does not concern the steps, and its keys may be older than this code.
    config["evaluate"] = to_plain(default_config())["evaluate"]
    method = mix.METHODS.get(config["mix"]["method"])
    if method and not method.has_mask:
        return f"<p>mix.method is {config['mix']['method']}: it has no map and no mask to show.</p>"
    try:
        prepared = prepare(config, run.workdir)
        with contextlib.closing(prepared.checkpoints()) as checkpoints:
            explanations = _explanations(prepared, checkpoints)
    except (ValueError, OSError) as error:
        return f"<p>Maps and masks over training cannot be shown: {escape_html(error)}</p>"
    return _draw(explanations, [short(name, LONGEST_NAME) for name in _names(prepared)], run)


def _names(prepared) -> list[str]:
    return prepared.batch(prepared.experiment.seed, 0)[2][:ROWS]


def _explanations(prepared, checkpoints) -> dict[int, explain_lib.Explanation]:
    """{step: what the step would do to the first batch, its first ROWS rows}; one compilation serves all steps.

    Batch, views, partners and kept shares are those of step 0 throughout, so that only the parameters change.
    """
    start = assembly.initial_state(prepared.experiment, prepared.program)
    images, labels, _ = prepared.batch(prepared.experiment.seed, 0)
    explain = jax.jit(lambda *arrays: explain_lib.explain(prepared.program, *arrays))
    found, saved = {}, checkpoints.steps()
    # A run that starts from other weights has its first state only in a checkpoint, if at all.
    first = [] if prepared.experiment.model.init_from and 0 not in saved else [0]
    for step in [*first, *_evenly([step for step in saved if step > 0], MOST_STEPS - 1)]:
        # On the device; otherwise jit treats the restored arrays as arguments of another kind and recompiles.
        state = jax.device_put(checkpoints.restore(start, step)) if step in saved else start
        explanation = explain(state.replace(step=start.step), images, labels)
        found[step] = jax.device_get(jax.tree.map(lambda leaf: leaf[:ROWS], explanation))
    return found


def _evenly(steps: list[int], most: int) -> list[int]:
    """At most that many of the steps, evenly spread, with the last."""
    if len(steps) <= most:
        return steps
    return [steps[round(place)] for place in np.linspace(0, len(steps) - 1, most)]


def _draw(explanations, names, run: Run) -> str:
    rows, columns = len(names), len(explanations)
    drawn, axes = subplots(
        (0.5 + 1.05 * (columns + 1), 0.4 + 1.02 * rows), nrows=rows, ncols=columns + 1, squeeze=False
    )
    first, marks = next(iter(explanations.values())), []
    height, width = first.mask.shape[1:]
    box = np.array([[-0.5, height - 0.5, width - 0.5, -0.5]])
    for row, name in enumerate(names):
        _show(axes[row, 0], first.views[row])
        axes[row, 0].set_ylabel(name)
        marks.append(Marks(axes[row, 0], box, [f"{name}: the view"]))
        for column, (step, explanation) in enumerate(explanations.items(), 1):
            masked = float(np.mean(explanation.mask[row] > 0.5))
            marks.append(Marks(axes[row, column], box, [f"{name}, step {step}: the mask covers {masked:.0%}"]))
            _show(axes[row, column], explanation.views[row])
            if explanation.mixed.maps is not None:
                options = dict(cmap="magma", vmin=0, vmax=1, alpha=0.7, interpolation="nearest")
                axes[row, column].imshow(explanation.mixed.maps[row], **options)
            _outline(axes[row, column], explanation.mask[row] > 0.5)
    axes[0, 0].set_title("view")
    for column, step in enumerate(explanations, 1):
        axes[0, column].set_title(f"step {step}")
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    has_map = first.mixed.maps is not None
    legend = "Color: the map (dark 0, bright 1, each image on its own scale); " if has_map else ""
    kept = "what the mix replaces" if run.config["mix"]["mixed_views"] == "all" else "what the mix replaces in view 0"
    caption = (
        f"{legend}outlined: the mask, {kept}. Of {run.name}: step 0 recomputed from the seed, the others from "
        "checkpoints. Views, partners and kept shares are those of step 0 throughout: only the parameters change."
    )
    if run.config["attribution"]["loss"] == "training" and len(run.config["phases"]) > 1:
        caption += " The maps are those of the first phase's loss."
    return framed(svg(drawn, "maps and masks over training", marks), caption, wide=True)


def _show(axis, image_HxWxC):
    axis.imshow(image_HxWxC.squeeze().clip(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def _outline(axis, mask_HxW):
    """Edges of the masked pixels, exactly: a contour would cut their corners."""
    padded = np.pad(mask_HxW, 1)
    across = [[(x - 0.5, y - 0.5), (x + 0.5, y - 0.5)] for y, x in np.argwhere(padded[:-1, 1:-1] != padded[1:, 1:-1])]
    down = [[(x - 0.5, y - 0.5), (x - 0.5, y + 0.5)] for y, x in np.argwhere(padded[1:-1, :-1] != padded[1:-1, 1:])]
    # The outline of a large mask has thousands of edges, which would add megabytes to the page as vectors.
    options = dict(colors="#56e0ff", linewidths=1.1, rasterized=len(across) + len(down) > MOST_EDGES)
    axis.add_collection(LineCollection(across + down, **options))
