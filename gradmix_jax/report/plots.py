"""Other plots of a method: histograms of scores, reliability, training loss, severities of corruptions."""

import math

import numpy as np

from gradmix_jax import workdir as workdir_lib
from gradmix_jax.report.curves import MOST_METHODS, ORIENTATION, UNIT, missing
from gradmix_jax.report.drawing import framed
from gradmix_jax.report.lines import Line, numbered, plot
from gradmix_jax.report.runs import Method, Run

BINS = 40
# Of a training curve.
MOST_POINTS = 1000
CLASSIFIERS = {"linear_probe": "linear probe", "head": "classifier head"}


def histogram(run: Run) -> str:
    """Headline scores of known and unknown test images, and the threshold, if any."""
    scores = run.headline
    if scores is None:
        return missing(run, workdir_lib.SCORES, "the scores")
    sides = {name: scores[f"{name}_scores"] for name in ("known", "unknown")}
    sides = {name: values[np.isfinite(values)] for name, values in sides.items()}
    bins = np.histogram_bin_edges(np.concatenate([*sides.values()]), bins=BINS)
    lines = []
    for color, (name, values) in enumerate(sides.items()):
        counts = np.histogram(values, bins)[0]
        share = 100 * counts / max(len(values), 1)
        says = [f"({count} images)" for count in np.repeat(counts, 2)]
        steps = np.repeat(bins, 2)[1:-1], np.repeat(share, 2)
        lines.append(Line(*steps, f"{name} (n = {len(values)})", color=color, dash=color, filled=True, says=says))
    threshold = run.results["threshold"]
    drawn = plot(
        lines,
        description="histograms of scores",
        x_label=f"score ({run.results['score_name']}, {run.results['feature']})",
        y_label="share of images per bin (%)",
        y_range=(0.0, 1.05 * max(max(line.y) for line in lines) or 1.0),
        vertical=None if threshold is None else (threshold, f"threshold {threshold:.4g}"),
    )
    rule = f" Threshold: {run.results['threshold_rule']}." if threshold is not None else ""
    return framed(drawn, f"Scores of the test images of {run.name}. {ORIENTATION}{rule}")


def reliability(run: Run) -> str:
    """Accuracy by confidence of the classifiers with probabilities, with the diagonal of perfect calibration."""
    lines = [Line(UNIT, UNIT, color="ink", dash=2, width=0.8, faint=True)]
    for color, (key, name) in enumerate(CLASSIFIERS.items()):
        found = run.results["closed_set"].get(key) or {}
        bins = found.get("reliability")
        if bins:
            none_is_nan = lambda values: np.array([math.nan if value is None else value for value in values])
            seen = np.array(bins["count"]) > 0
            says = [f"({count} images)" for count in np.array(bins["count"])[seen]]
            points = none_is_nan(bins["confidence"])[seen], none_is_nan(bins["accuracy"])[seen]
            label = f"{name} (ECE {found['ece']:.4f})"
            lines.append(Line(*points, label, color=color, dash=color, marked=True, says=says))
    if len(lines) == 1:
        return (
            "<p>There is no reliability diagram: the results hold no bins of confidence. They are written by an "
            "evaluation of this version with logits, of a classifier head or the linear probe.</p>"
        )
    axes = dict(x_label="confidence: largest probability", y_label="accuracy", x_range=UNIT, y_range=(0.0, 1.01))
    caption = (
        f"Reliability of the probabilities of {run.name}, known test images in bins of equal width (empty ones left "
        "out). Below the diagonal: too confident."
    )
    names = " and ".join(line.name for line in lines[1:])
    return framed(plot(lines, description=f"reliability diagram: {names}", legend=True, **axes), caption)


def losses(method: Method) -> str:
    """Training loss of every run from metrics.jsonl."""
    curves = {run.key: _losses(run) for run in method.runs}
    curves = {key: curve for key, curve in curves.items() if len(curve)}
    if not curves:
        return missing(method.example, f"loss in {workdir_lib.METRICS}", "the training loss")
    lines = []
    for (trial, seed), curve in curves.items():
        first = not lines
        looks = dict(name=f"trial {trial}, seed {seed}", width=1.8) if first else dict(width=0.7, faint=True)
        lines.append(Line(*curve.T, color=0, **looks))
    drawn = plot(lines[::-1], description="training loss", x_label="training step", y_label="training loss")
    trial, seed = next(iter(curves))
    others = f"thick: trial {trial}, seed {seed}; thin: the others, n = {len(curves)}" if len(curves) > 1 else "one run"
    longest = max(len(run.log) for run in method.runs)
    averaged = f" Averaged to {MOST_POINTS} points." if longest > MOST_POINTS else ""
    caption = f"Training loss ({others}), the sum of all objectives. Lower is better.{averaged}"
    return framed(drawn, caption)


def _losses(run: Run) -> np.ndarray:
    """(step, loss) of each logged line, at most MOST_POINTS of them."""
    # A nonfinite loss is stored as null and leaves a gap in the curve.
    lines = [line for line in run.log if "loss" in line]
    points = np.array([(line["step"], math.nan if line["loss"] is None else line["loss"]) for line in lines])
    if len(points) <= MOST_POINTS:
        return points
    return np.array([block.mean(axis=0) for block in np.array_split(points, MOST_POINTS)])


def severities(methods: list[Method]) -> str:
    """Mean accuracy and AUROC over corruptions by severity, for every method; "" if there are none."""
    found = {
        m.label: [r.results["corruptions"]["results"] for r in m.runs if r.results["corruptions"].get("results")]
        for m in methods
    }
    found = {label: runs for label, runs in list(found.items())[:MOST_METHODS] if runs}
    if not found:
        return ""
    panels = [_severity_panel(found, key, label) for key, label in (("accuracy", "accuracy"), ("auroc", "AUROC"))]
    caption = "By severity of the corruption: mean over corruptions and runs. Higher is better."
    return framed(f'<div class="plots">{"".join(panels)}</div>', caption, wide=True)


def _severity_panel(found, key: str, label: str) -> str:
    lines = []
    for index, (method, runs) in enumerate(found.items()):
        levels = sorted({level for run in runs for each in run.values() for level in each}, key=int)
        means = [
            np.mean([each[level][key] for run in runs for each in run.values() if level in each]) for level in levels
        ]
        lines.append(Line([int(level) for level in levels], means, method, marked=True, **numbered(index)))
    label_y = f"{label}, mean over corruptions"
    return plot(lines, description=f"{label} by severity", x_label="severity", y_label=label_y)
