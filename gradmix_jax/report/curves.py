"""Plots of one method's runs and of all methods: ROC and OSCR curves, score histograms, loss, corruption severities."""

import math

import numpy as np

from gradmix_jax import metrics
from gradmix_jax import workdir as workdir_lib
from gradmix_jax.report.drawing import BLUE, INK, ORANGE, color_and_line, framed, subplots, svg
from gradmix_jax.report.formats import escape_html
from gradmix_jax.report.labels import plain, short
from gradmix_jax.report.runs import Method, Run

RATES_F = np.linspace(0, 1, 201)
MOST_SCORES = 8
# Lines of one plot that can still be told apart, and points of a training curve.
MOST_METHODS = 24
MOST_POINTS = 1000
ORIENTATION = "Higher score = known."


def _rates(run: Run, with_class: bool):
    """Correct or accepted share of a run's known images at each of RATES_F; None without scores.npz."""
    scores = run.headline
    if scores is None or (with_class and not {"predicted", "labels"} <= scores.keys()):
        return None
    known, unknown = scores["known_scores"], scores["unknown_scores"]
    if with_class:
        rates, found, _ = metrics.oscr_curve(known, unknown, scores["predicted"] == scores["labels"])
    else:
        rates, found, _ = metrics.roc_curve(known, unknown)
    return np.interp(RATES_F, rates, found)


def _rate_axes(axis, with_class: bool):
    axis.set_xlabel("share of unknown images accepted (FPR)")
    axis.set_ylabel(
        "share of known images accepted\nand correct (CCR)" if with_class else "share of known accepted (TPR)"
    )
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1.01)
    axis.grid(True)


def runs_curve(method: Method, *, with_class: bool) -> str:
    """ROC curves (OSCR curves `with_class`) of every run, thin, and their mean."""
    curves = _all_rates(method, with_class)
    name = "OSCR" if with_class else "ROC"
    if not curves:
        what = (
            f"array of labels in {workdir_lib.SCORES}" if with_class and method.example.headline else workdir_lib.SCORES
        )
        return missing(method.example, what, f"the {name} curves")
    drawn, axis = subplots()
    for curve in curves if len(curves) > 1 else ():
        axis.plot(RATES_F, curve, color=BLUE, linewidth=0.7, alpha=0.45)
    axis.plot(RATES_F, np.mean(curves, axis=0), color=BLUE, linewidth=2)
    if not with_class:
        axis.plot([0, 1], [0, 1], color=INK, linewidth=0.6, linestyle=":")
    _rate_axes(axis, with_class)
    spread = f"thick: mean of n = {len(curves)} runs at equal FPR; thin: each run" if len(curves) > 1 else "one run"
    caption = f"{name} curve ({spread}). Known images are the positives. {ORIENTATION}"
    return framed(svg(drawn, f"{name} curve of {method.label}"), caption)


def _all_rates(method: Method, with_class: bool) -> list[np.ndarray]:
    return [rates for rates in (_rates(run, with_class) for run in method.runs) if rates is not None]


def methods_curve(methods: list[Method], *, with_class: bool) -> str:
    """The mean curve of every method on the same axes; "" for a single method."""
    rates = {method.label: _all_rates(method, with_class) for method in methods}
    rates = {label: curves for label, curves in rates.items() if curves}
    if len(rates) < 2:
        return ""
    drawn, axis = subplots()
    for index, (label, curves) in enumerate(list(rates.items())[:MOST_METHODS]):
        mean, label = np.mean(curves, axis=0), plain(f"{short(label, 40)} ({len(curves)} run{'s' * (len(curves) > 1)})")
        axis.plot(RATES_F, mean, label=label, linewidth=1.5, **color_and_line(index))
    _rate_axes(axis, with_class)
    axis.legend(loc="lower right", fontsize=8 if len(rates) <= 6 else 6)
    name = "OSCR" if with_class else "ROC"
    which = f"the first {MOST_METHODS} of {len(rates)} methods" if len(rates) > MOST_METHODS else "all methods"
    caption = f"{name} curves of {which}: mean over each method's runs at equal FPR. {ORIENTATION}"
    return framed(svg(drawn, f"{name} curves of all methods"), caption)


def scores_curve(run: Run) -> str:
    """ROC curves of the other scores of the headline feature and of the logits; "" where scores.npz has none."""
    scores, by_score = run.scores, run.results["by_score"]
    if scores is None:
        return ""
    aurocs = {
        f"{feature}/{score}": each.get("auroc")
        for feature in dict.fromkeys((run.results["feature"], "logits"))
        for score, each in by_score.get(feature, {}).items()
    }
    names = [
        name
        for name, auroc in aurocs.items()
        if auroc is not None and {f"{name}/known", f"{name}/unknown"} <= set(scores)
    ]
    if not names:
        return ""
    chosen = sorted(names, key=lambda name: -aurocs[name])[:MOST_SCORES]
    drawn, axis = subplots()
    for index, name in enumerate(chosen):
        rates, found, _ = metrics.roc_curve(scores[f"{name}/known"], scores[f"{name}/unknown"])
        label = plain(f"{name.replace('/', ', ')} ({aurocs[name]:.3f})")
        axis.plot(RATES_F, np.interp(RATES_F, rates, found), label=label, linewidth=1.2, **color_and_line(index))
    _rate_axes(axis, False)
    axis.legend(loc="lower right", fontsize=7)
    which = f"the {len(chosen)} of {len(names)} with the highest AUROC" if len(names) > len(chosen) else "all"
    caption = f"ROC curves by score ({which}; AUROC in brackets) of {run.name}. {ORIENTATION}"
    return framed(svg(drawn, "ROC curves by score"), caption)


def histogram(run: Run) -> str:
    """Headline scores of known and unknown test images, and the threshold where there is one."""
    scores = run.headline
    if scores is None:
        return missing(run, workdir_lib.SCORES, "the scores")
    known, unknown = (values[np.isfinite(values)] for values in (scores["known_scores"], scores["unknown_scores"]))
    bins = np.histogram_bin_edges(np.concatenate([known, unknown]), bins=40)
    drawn, axis = subplots()
    for values, color, label in ((known, BLUE, "known"), (unknown, ORANGE, "unknown")):
        shares = np.full(len(values), 100 / max(len(values), 1))
        options = dict(bins=bins, weights=shares, color=color)
        axis.hist(values, histtype="stepfilled", alpha=0.35, **options)
        axis.hist(values, histtype="step", linewidth=1.2, label=f"{label} (n = {len(values)})", **options)
    threshold = run.results["threshold"]
    if threshold is not None:
        axis.axvline(threshold, color=INK, linewidth=1, linestyle="--", label=f"threshold {threshold:.4g}")
    axis.set_xlabel(f"score ({plain(run.results['score_name'])}, {plain(run.results['feature'])})")
    axis.set_ylabel("share of images per bin (%)")
    axis.grid(True, axis="y")
    drawn.legend(loc="outside upper center", ncols=3, handlelength=1.2, columnspacing=1)
    rule = f" Threshold: {run.results['threshold_rule']}." if threshold is not None else ""
    return framed(svg(drawn, "histograms of scores"), f"Scores of the test images of {run.name}. {ORIENTATION}{rule}")


def losses(method: Method) -> str:
    """Training loss of every run from metrics.jsonl."""
    curves = {run.key: _losses(run) for run in method.runs}
    curves = {key: curve for key, curve in curves.items() if curve}
    if not curves:
        return missing(method.example, f"loss in {workdir_lib.METRICS}", "the training loss")
    drawn, axis = subplots()
    for index, curve in enumerate(curves.values()):
        steps, values = zip(*curve)
        first = index == 0
        options = dict(linewidth=1.6, zorder=3) if first else dict(linewidth=0.7, alpha=0.4)
        # A line of one point would not be seen.
        axis.plot(steps, values, color=BLUE, marker="o" if len(curve) == 1 else None, **options)
    axis.set_xlabel("training step")
    axis.set_ylabel("training loss")
    axis.grid(True)
    trial, seed = next(iter(curves))
    others = f"thick: trial {trial}, seed {seed}; thin: the others, n = {len(curves)}" if len(curves) > 1 else "one run"
    longest = max(len(run.log) for run in method.runs)
    averaged = f" Averaged to {MOST_POINTS} points." if longest > MOST_POINTS else ""
    caption = f"Training loss ({others}), the sum of all objectives. Lower is better.{averaged}"
    return framed(svg(drawn, "training loss"), caption)


def _losses(run: Run) -> list[tuple[int, float]]:
    # A loss that was not finite stands there as null: a gap in the curve.
    lines = [line for line in run.log if "loss" in line]
    points = np.array([(line["step"], math.nan if line["loss"] is None else line["loss"]) for line in lines])
    if len(points) <= MOST_POINTS:
        return [tuple(point) for point in points]
    return [tuple(block.mean(axis=0)) for block in np.array_split(points, MOST_POINTS)]


def severities(methods: list[Method]) -> str:
    """Mean accuracy and AUROC over corruptions by severity, for every method; "" where there are none."""
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
    drawn, axis = subplots((4.4, 3.0))
    for index, (method, runs) in enumerate(found.items()):
        levels = sorted({level for run in runs for each in run.values() for level in each}, key=int)
        means = [
            np.mean([each[level][key] for run in runs for each in run.values() if level in each]) for level in levels
        ]
        options = dict(label=short(method, 40), marker="o", markersize=3, linewidth=1.4)
        axis.plot([int(level) for level in levels], means, **options, **color_and_line(index))
    axis.set_xlabel("severity")
    axis.set_ylabel(f"{label}, mean over corruptions")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(True)
    axis.legend(fontsize=8 if len(found) <= 6 else 6)
    return svg(drawn, f"{label} by severity")


def missing(run: Run, what: str, needed_for: str) -> str:
    """One sentence in place of a figure."""
    return (
        f"<p>There is no {escape_html(what)} in {escape_html(run.workdir)}, which {escape_html(needed_for)} need.</p>"
    )
