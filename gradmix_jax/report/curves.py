"""Curves over all thresholds (ROC, OSCR, precision-recall, risk-coverage) of one method's runs and of all methods."""

import numpy as np

from gradmix_jax import metrics
from gradmix_jax import workdir as workdir_lib
from gradmix_jax.metrics import curves
from gradmix_jax.report.drawing import framed
from gradmix_jax.report.formats import escape_html
from gradmix_jax.report.lines import Line, numbered, plot
from gradmix_jax.report.runs import Method, Run

RATES_F = np.linspace(0, 1, 201)
MOST_SCORES = 8
# The most lines of one plot that can be distinguished.
MOST_METHODS = 24
# Thin lines of single runs.
MOST_RUNS = 30
ORIENTATION = "Higher score = known."
UNIT = (0.0, 1.0)
FPR = "share of unknown images accepted (FPR)"
TPR = "share of known images accepted (TPR)"
CCR = "known accepted and correct (CCR)"


def _roc(run: Run) -> np.ndarray | None:
    return _at_fpr(run.points, "known_T")


def _oscr(run: Run) -> np.ndarray | None:
    return _at_fpr(run.points, "correct_T") if run.has_labels else None


def _at_fpr(points: metrics.Points | None, counted: str) -> np.ndarray | None:
    """Accepted or correct share of a run's known images at each of RATES_F; None without scores.npz."""
    if points is None:
        return None
    rates = (points.unknown_T / points.unknown_T[-1], getattr(points, counted) / points.known_T[-1])
    return np.interp(RATES_F, *(np.concatenate([[0.0], each]) for each in rates))


def _precision(run: Run, positive: str) -> np.ndarray | None:
    """Precision at each recall of RATES_F, at the strictest threshold that reaches the recall."""
    if run.points is None:
        return None
    recall_T, precision_T = curves.precision_recall(run.points, positive=positive)
    return precision_T[np.searchsorted(recall_T, RATES_F)]


def _risk(run: Run, unknown: bool) -> np.ndarray | None:
    return np.interp(RATES_F, *curves.risk_coverage(run.points, unknown=unknown)) if run.has_labels else None


# Kind -> (title, label of x, label of y, function of a run, what it counts as, orientation).
KINDS = {
    "roc": ("ROC", FPR, TPR, _roc, "Known images are the positives."),
    "oscr": ("OSCR", FPR, CCR, _oscr, "Known images are the positives."),
    "pr": (
        "Precision-recall",
        "recall: share of unknown images found",
        "precision: unknown among the rejected",
        lambda run: _precision(run, "unknown"),
        "Unknown images are the positives.",
    ),
    "risk": (
        "Risk-coverage",
        "coverage: share of all test images accepted",
        "risk: share of accepted that are wrong",
        lambda run: _risk(run, True),
        "Every accepted unknown image is wrong. Lower is better.",
    ),
}
# Kind -> (name of the line in the legend; the other line that a method's own plot has: name, function of a run).
OTHERS = {
    "pr": ("unknown positive", "known positive", lambda run: _precision(run, "known")),
    "risk": ("all test images", "known images alone", lambda run: _risk(run, False)),
}


def _all(method: Method, of_run) -> list[np.ndarray]:
    return [found for found in map(of_run, method.runs) if found is not None]


def runs_curve(method: Method, kind: str) -> str:
    """The curve of every run, thin, and their mean; `kind` is a key of KINDS."""
    title, x_label, y_label, of_run, about = KINDS[kind]
    found = _all(method, of_run)
    if not found:
        labels = kind in ("oscr", "risk") and method.example.headline
        what = f"array of labels in {workdir_lib.SCORES}" if labels else workdir_lib.SCORES
        return missing(method.example, what, f"the {title} curves")
    lines = [Line(RATES_F, each, color=0, width=0.7, faint=True) for each in found[:MOST_RUNS] if len(found) > 1]
    own, other, of_other = OTHERS.get(kind, (title, None, None))
    lines.append(Line(RATES_F, np.mean(found, axis=0), own, color=0, width=2.2))
    if other:
        lines.append(Line(RATES_F, np.mean(_all(method, of_other), axis=0), other, color=1, dash=1))
    if kind == "roc":
        lines.insert(0, Line(UNIT, UNIT, color="ink", dash=2, width=0.8, faint=True))
    spread = f"thick: mean of n = {len(found)} runs at equal {_axis(x_label)}; thin: each run"
    caption = f"{title} curve ({spread if len(found) > 1 else 'one run'}). {about} {ORIENTATION}"
    return _framed(lines, f"{title} curve of {method.label}", x_label, y_label, caption)


def _axis(label: str) -> str:
    return "FPR" if label == FPR else label.split(":")[0]


def _framed(lines, description, x_label, y_label, caption) -> str:
    axes = dict(x_label=x_label, y_label=y_label, x_range=UNIT, y_range=(0.0, 1.01))
    return framed(plot(lines, description=description, **axes), caption)


def methods_curve(methods: list[Method], kind: str) -> str:
    """The mean curve of every method on the same axes; "" for a single method."""
    title, x_label, y_label, of_run, about = KINDS[kind]
    found = {method.label: _all(method, of_run) for method in methods}
    found = {label: each for label, each in found.items() if each}
    if len(found) < 2:
        return ""
    lines = [
        Line(RATES_F, np.mean(each, axis=0), f"{label} ({len(each)} run{'s' * (len(each) > 1)})", **numbered(index))
        for index, (label, each) in enumerate(list(found.items())[:MOST_METHODS])
    ]
    which = f"the first {MOST_METHODS} of {len(found)} methods" if len(found) > MOST_METHODS else "all methods"
    over = f"mean over each method's runs at equal {_axis(x_label)}"
    caption = f"{title} curves of {which}: {over}. {about} {ORIENTATION}"
    return _framed(lines, f"{title} curves of all methods", x_label, y_label, caption)


def scores_curve(run: Run) -> str:
    """ROC curves of the other scores of the headline feature and of the logits; "" if scores.npz has none."""
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
    lines = []
    for index, name in enumerate(chosen):
        points = metrics.points(scores[f"{name}/known"], scores[f"{name}/unknown"])
        label = f"{name.replace('/', ', ')} ({aurocs[name]:.3f})"
        lines.append(Line(RATES_F, _at_fpr(points, "known_T"), label, width=1.3, **numbered(index)))
    which = f"the {len(chosen)} of {len(names)} with the highest AUROC" if len(names) > len(chosen) else "all"
    caption = f"ROC curves by score ({which}; AUROC in parentheses) of {run.name}. {ORIENTATION}"
    return _framed(lines, "ROC curves by score", FPR, TPR, caption)


def missing(run: Run, what: str, needed_for: str) -> str:
    """One sentence in place of a figure."""
    return (
        f"<p>{escape_html(needed_for[0].upper() + needed_for[1:])} cannot be shown: there is no {escape_html(what)} in "
        f"{escape_html(run.workdir)}.</p>"
    )
