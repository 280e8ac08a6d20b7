"""Tables of results."""

from typing import Any

ROWS = {
    "accuracy": "accuracy, known classes",
    "auroc": "AUROC",
    "oscr": "OSCR",
    "fpr95_unknown_positive": "FPR at 95 % TPR, unknown positive",
    "fpr95_known_positive": "FPR at 95 % TPR, known positive",
    "average_precision_known": "AUPR, known positive",
    "average_precision_unknown": "AUPR, unknown positive",
}


def table(results: dict[str, Any], workdir: str) -> str:
    """A plain-text table of one evaluation, and where its files lie.

    Args:
      results: as `evaluate.evaluate` returns them.
      workdir: directory of the run.

    Returns:
      Lines to print.
    """
    width = max(map(len, ROWS.values()))
    head = (
        f"open set evaluation at step {results['step']}: {len(results['known_classes'])} known classes "
        f"({results['num_known']} images), {results['num_unknown']} unknown images, trial {results['trial']}"
    )
    lines = [head, "-" * (width + 9)]
    lines += [f"{label:<{width}}  {results[name]:7.4f}" for name, label in ROWS.items()]
    lines += ["-" * (width + 9), f"score: {results['score']}", f"results: {workdir}/results.json, scores.npz"]
    return "\n".join(lines)
