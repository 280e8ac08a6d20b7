"""Output of the commands: plain text for one run, and a short Markdown table for many."""

from collections.abc import Sequence
from typing import Any

from gradmix_jax import workdir as workdir_lib
from gradmix_jax.fields import one_line
from gradmix_jax.report import contents, formats
from gradmix_jax.report.conditions import conditions
from gradmix_jax.report.runs import load_groups
from gradmix_jax.report.tables import Metric

ROWS = {metric.key: metric for metric in (contents.ACCURACY, contents.AUROC, contents.OSCR, *contents.DETECTION)}
MORE_ROWS = {metric.key: metric for metric in (*contents.CORRECT_AT, contents.MACRO_F1)}


def table(results: dict[str, Any], workdir: str) -> str:
    """A plain-text table of one evaluation, and the paths of its files.

    Args:
      results: as `evaluate.evaluate` returns them; parts beyond the main metrics may be missing.
      workdir: directory of the run.

    Returns:
      Lines to print.
    """
    metrics = (ROWS | MORE_ROWS).items()
    rows = [(metric.label, metric, results[name]) for name, metric in metrics if results.get(name) is not None]
    rows += _more(results)
    width = max(len(label) for label, _, _ in rows)
    head = (
        f"open set evaluation at step {results['step']}: {len(results['known_classes'])} known classes "
        f"({results['num_known']} images), {results['num_unknown']} unknown images, trial {results['trial']}"
    )
    lines = [head, "-" * (width + 9)]
    arrow = lambda metric: "↑" if metric.higher_is_better else "↓"
    lines += [f"{label:<{width}}  {number:7.4f} {arrow(metric)}" for label, metric, number in rows]
    lines += ["-" * (width + 9), "↑ higher is better, ↓ lower is better", f"score: {results['score']}"]
    lines += [f"results: {workdir}/{workdir_lib.RESULTS}, {workdir_lib.SCORES}"]
    return "\n".join(lines)


def _more(results: dict[str, Any]) -> list[tuple[str, Metric, float]]:
    """(label, metric, number) of the parts of an evaluation that a config may leave out."""
    closed_set = results.get("closed_set") or {}
    classifiers = (contents.NEIGHBORS, contents.LINEAR_PROBE, contents.HEAD)
    rows = [(m.label, m, closed_set[m.key]["accuracy"]) for m in classifiers if closed_set.get(m.key)]
    for name, each in (results.get("per_unknown_group") or {}).items():
        rows += [
            (f"{metric.label}, {name} unknown classes", metric, each[metric.key])
            for metric in (contents.AUROC, contents.OSCR)
            if each.get(metric.key) is not None
        ]
    for distance, found in (results.get("ood") or {}).items():
        for name, each in found.items():
            of_score = each["by_score"].get(results["feature"], {}).get(results["score_name"])
            if of_score:
                auroc = contents.AUROC
                rows.append((f"{auroc.label}, {distance} OOD: {name}", auroc, of_score[auroc.key]))
    corruptions = results.get("corruptions")
    if corruptions:
        for metric in (contents.ACCURACY, contents.AUROC, contents.OSCR):
            rows.append((f"{contents.bare(metric)}, mean over corruptions", metric, corruptions["mean"][metric.key]))
        error = contents.CORRUPTION_ERROR
        rows.append((error.label, error, corruptions[error.key]))
    return rows


def summary(workdirs: list[str], *, apart: bool = False) -> str:
    """A Markdown table of finished runs: mean +- sample standard deviation over splits, and how many splits and runs.

    Runs whose configs differ in trial and seed only are averaged, seeds within a split first; each feature has a row.
    Each dataset has a table. Data, hardware, versions and commits follow below each table.

    Args:
      workdirs: directories of runs that have been evaluated.
      apart: see `runs.load_groups`.

    Returns:
      The lines.

    Raises:
      ValueError: as `runs.load_groups`.
    """
    parts, groups = [], load_groups(workdirs, apart=apart)
    for group in groups:
        methods = list(group.methods)
        table = contents.by_feature(methods, contents.BY_FEATURE, marks=False)
        parts += [f"## {formats.escape_markdown(group.label)}", ""] if len(groups) > 1 else []
        rows = formats.markdown_rows(table) if table else ["The runs hold no metrics of any feature."]
        parts += [*rows, "", *(f"- {one_line(line)}" for line in conditions(methods)), ""]
    return "\n".join(parts[:-1])


def write_summary(workdirs: list[str], directory: str, *, notes: Sequence[str] = ()) -> str:
    """Write `summary` of the runs, and a line for each note, to `<directory>/summary.md` and return it."""
    text = "\n".join([summary(workdirs), *(f"- {formats.escape_markdown(note)}" for note in notes)])
    with workdir_lib.replacing(workdir_lib.path(directory, workdir_lib.SUMMARY)) as file:
        file.write(text + "\n")
    return text
