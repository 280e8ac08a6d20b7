"""Plain text of one run and a short Markdown table of many: what commands print."""

from typing import Any

from gradmix_jax.report import contents, formats
from gradmix_jax.report.runs import conditions, load

ROWS = {metric.key: metric.label for metric in (contents.ACCURACY, contents.AUROC, contents.OSCR, *contents.DETECTION)}
MORE_ROWS = {metric.key: metric.label for metric in (*contents.CORRECT_AT, contents.MACRO_F1)}


def table(results: dict[str, Any], workdir: str) -> str:
    """A plain-text table of one evaluation, and where its files lie.

    Args:
      results: as `evaluate.evaluate` returns them; parts beyond the main metrics may be missing.
      workdir: directory of the run.

    Returns:
      Lines to print.
    """
    numbers = {label: results[name] for name, label in ROWS.items()}
    numbers |= {label: results[name] for name, label in MORE_ROWS.items() if results.get(name) is not None}
    numbers |= _more(results)
    width = max(map(len, numbers))
    head = (
        f"open set evaluation at step {results['step']}: {len(results['known_classes'])} known classes "
        f"({results['num_known']} images), {results['num_unknown']} unknown images, trial {results['trial']}"
    )
    lines = [head, "-" * (width + 9)]
    # All others are better the higher they are.
    down = lambda label: label.startswith(("FPR", "mCE"))
    lines += [f"{label:<{width}}  {number:7.4f} {'↓' if down(label) else '↑'}" for label, number in numbers.items()]
    lines += ["-" * (width + 9), "↑ higher is better, ↓ lower is better", f"score: {results['score']}"]
    lines += [f"results: {workdir}/results.json, scores.npz"]
    return "\n".join(lines)


def _more(results: dict[str, Any]) -> dict[str, float]:
    """Numbers of the parts of an evaluation that a config may leave out."""
    names = {"knn": "kNN accuracy", "linear_probe": "linear probe accuracy", "head": "classifier head accuracy"}
    closed_set = results.get("closed_set") or {}
    numbers = {label: closed_set[name]["accuracy"] for name, label in names.items() if closed_set.get(name)}
    for distance, found in (results.get("ood") or {}).items():
        for name, each in found.items():
            of_score = each["by_score"].get(results["feature"], {}).get(results["score_name"])
            if of_score:
                numbers[f"AUROC, {distance} OOD: {name}"] = of_score["auroc"]
    corruptions = results.get("corruptions")
    if corruptions:
        labels = {"accuracy": "accuracy", "auroc": "AUROC", "oscr": "OSCR"}
        numbers |= {f"{label}, mean over corruptions": corruptions["mean"][key] for key, label in labels.items()}
        numbers["mCE"] = corruptions["mce"]
    return numbers


def summary(workdirs: list[str]) -> str:
    """A Markdown table of finished runs: mean +- sample standard deviation over trials and seeds, and n.

    Runs are averaged when their configs differ in trial and seed only; each feature has a row of its own. Below the
    table stand the data, the hardware, the versions and the commits that the numbers belong to.

    Args:
      workdirs: directories of runs that have been evaluated.

    Returns:
      The lines.

    Raises:
      ValueError: as `runs.load`.
    """
    methods = load(workdirs)
    table = contents.by_feature(methods, contents.BY_FEATURE, marks=False)
    return "\n".join([*formats.markdown_rows(table), "", *(f"- {line}" for line in conditions(methods))])
