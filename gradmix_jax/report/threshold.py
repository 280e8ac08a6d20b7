"""The parts of the page that a threshold changes: numbers, the confusion matrix, the table of unknown classes."""

import json
from typing import Any

from gradmix_jax.report import decisions as decisions_lib
from gradmix_jax.report import matrix
from gradmix_jax.report.decisions import Decisions
from gradmix_jax.report.formats import MISSING, escape_html
from gradmix_jax.report.runs import Run

OLD = (
    "The threshold cannot be moved: {} does not hold the predictions of unknown images and all classes. Evaluate the "
    "run again (--mode=eval) with this version."
)


def embedded(content: Any) -> str:
    """JSON for inside a script element: nothing in it can end the element or start a comment."""
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def parts(run: Run, name: str) -> tuple[str, str]:
    """(slider and numbers, the tables that follow the slider) of a run.

    Args:
      run: whose test images are decided about.
      name: identifier of the method on the page; the data that the script reads has `name`-data.
    """
    decisions = decisions_lib.of(run)
    if decisions is not None:
        groups = matrix.grouping(list(decisions.rows), decisions.confusion(decisions.start))
        pairs = len(set(zip(groups.row_of[decisions.row_I], groups.column_of[decisions.predicted_I])))
        decisions = decisions_lib.of(run, most=decisions_lib.thresholds_for(pairs))
    confusion, confusion_cells = matrix.confusion(run, decisions)
    taken, taken_cells = matrix.taken_for(run, decisions)
    if decisions is None:
        said = OLD.format(f"scores.npz in {run.workdir}")
        return f"<p>{escape_html(said)}</p>{_stored_numbers(run)}", confusion + taken
    summary = decisions_lib.summary(decisions)
    data = embedded({**summary, "matrix": confusion_cells, "taken": taken_cells})
    script = f'<script type="application/json" id="{name}-data">{data}</script>'
    return _control(run, decisions, summary, name) + script, confusion + taken


def tables(run: Run) -> str:
    """The tables at the run's own threshold alone."""
    return matrix.confusion(run, None)[0] + matrix.taken_for(run, None)[0]


def _control(run: Run, decisions: Decisions, summary: dict[str, Any], name: str) -> str:
    rule = f"The run's own: {summary['thresholds'][decisions.start]:.6g}, which {run.results['threshold_rule']}."
    if decisions.own is None:
        rule = (
            "The run has no threshold, because it has no validation images. The page starts where "
            f"{100 * decisions_lib.START:g} % of the known test images are accepted, which is not a result to report."
        )
    last = len(summary["thresholds"]) - 1
    reset = "Run's own" if decisions.own is not None else "Start"
    return (
        f"<p>An image is accepted as known if its score is at least the threshold. {escape_html(rule)}</p>"
        f'<div class="control" hidden><label for="{name}-slider">Threshold <output>'
        f"{summary['thresholds'][decisions.start]:.4f}</output></label>"
        f'<input type="range" id="{name}-slider" min="0" max="{last}" step="1" value="{decisions.start}">'
        f'<button type="button">{reset}</button></div>'
        f'<dl class="numbers">{"".join(_number(*each) for each in _numbers(summary, decisions.start))}</dl>'
        '<p class="quiet" role="status"></p>'
    )


def _numbers(summary: dict[str, Any], place: int):
    """(key, heading, text) of each number at a threshold; `show` of page.js writes the same."""
    accepted, right, false = (summary[key][place] for key in ("accepted", "right", "false"))
    known, unknown = summary["known"], summary["unknown"]
    return [
        ("f1", "macro-F1 ↑", f"{summary['f1'][place]:.4f}"),
        ("accepted", "known accepted (TPR) ↑", _of(accepted, known)),
        ("right", "known accepted and right (CCR) ↑", _of(right, known)),
        ("false", "unknown accepted (FPR) ↓", _of(false, unknown)),
        ("rejected", "known rejected", _of(known - accepted, known)),
        ("wrong", "known in the wrong class", _of(accepted - right, known)),
    ]


def _of(count: int, total: int) -> str:
    return f"{100 * count / max(total, 1):.1f} %\n{count} of {total}"


def _number(key: str, heading: str, text: str) -> str:
    return f'<div><dt>{escape_html(heading)}</dt><dd data-number="{key}">{escape_html(text)}</dd></div>'


def _stored_numbers(run: Run) -> str:
    if run.results["threshold"] is None:
        return ""
    f1 = run.results.get("macro_f1")
    shown = [
        ("threshold", "threshold", f"{run.results['threshold']:.4f}"),
        ("f1", "macro-F1 ↑", MISSING if f1 is None else f"{f1:.4f}"),
    ]
    return f'<dl class="numbers">{"".join(_number(*each) for each in shown)}</dl>'
