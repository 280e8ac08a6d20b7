"""One row per run, for pandas and other programs."""

import csv
import io
from collections.abc import Iterable

from gradmix_jax.report import conditions, contents
from gradmix_jax.report.runs import Method, Run

_PLACE = ("data", "method", "trial", "seed", "step", "feature", "score")
_SIZES = ("num_train", "num_known", "num_unknown")
_WHERE = ("hardware", "versions", "commit", "workdir")


def rows(groups: Iterable[tuple[str, list[Method]]]) -> str:
    """CSV: the headline numbers of every run, unrounded, and what they belong to; empty where there is no number.

    Args:
      groups: (data, methods) pairs.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    metrics = list(dict.fromkeys(metric.key for metric in [*contents.OVERALL, *contents.CORRECT_AT]))
    writer.writerow([*_PLACE, *metrics, *_SIZES, *_WHERE])
    for data, methods in groups:
        for method in methods:
            for run in method.runs:
                writer.writerow(_row(data, method.label, run, metrics))
    return text.getvalue()


def _row(data: str, method: str, run: Run, metrics: list[str]) -> list:
    results, environment = run.results, run.results["environment"]
    place = [data, method, *run.key, results["step"], results["feature"], results["score_name"]]
    numbers = contents.headline(results)
    where = [conditions.hardware(environment), conditions.versions(environment), conditions.commit(environment)]
    return [*place, *map(numbers.get, metrics), *map(results.get, _SIZES), *where, run.workdir]
