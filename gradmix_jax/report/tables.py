"""Tables as data: built once from finished runs, written in three formats by `formats`."""

import dataclasses
from collections.abc import Callable
from typing import Any

from gradmix_jax import metrics
from gradmix_jax.report import comparison
from gradmix_jax.report.runs import Method


@dataclasses.dataclass(frozen=True)
class Metric:
    """A column: the key to look up, its heading, and the key of `metrics.ORIENTATION` ("" for none)."""

    key: str
    label: str
    orientation: str = ""

    @property
    def meaning(self) -> str:
        return metrics.ORIENTATION.get(self.orientation, "")

    @property
    def higher_is_better(self) -> bool | None:
        """None if neither direction is better."""
        return {"higher is better": True, "lower is better": False}.get(self.meaning.split(";")[0])


@dataclasses.dataclass(frozen=True)
class Row:
    """A row before its numbers are averaged.

    Attributes:
      labels: text of the first columns.
      method: whose runs it is of.
      pick: results.json of one run -> {key of a Metric: number or None}.
      block: rows are compared with those of the same block; None: with nothing.
    """

    labels: tuple[str, ...]
    method: Method
    pick: Callable[[dict[str, Any]], dict[str, float | None]]
    block: str | None = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table without its format.

    Attributes:
      name: an identifier.
      title: what stands above it.
      heads: of the label columns.
      metrics: the columns of numbers.
      labels, values: of each row; None: no number.
      counts: (splits, runs) of each row.
      notes: sentences below it.
    """

    name: str
    title: str
    heads: tuple[str, ...]
    metrics: tuple[Metric, ...]
    labels: tuple[tuple[str, ...], ...]
    values: tuple[tuple[comparison.Value | None, ...], ...]
    counts: tuple[tuple[int, int], ...]
    notes: tuple[str, ...]


def build(
    name: str,
    title: str,
    heads: tuple[str, ...],
    columns: list[Metric],
    rows: list[Row],
    *,
    intervals: bool = False,
    marks: bool = True,
    notes: tuple[str, ...] = (),
) -> Table | None:
    """Average, compare and annotate.

    Args:
      name: an identifier.
      title: what stands above the table.
      heads: of the label columns.
      columns: of numbers; one that has none in any row is left out.
      rows: as they come.
      intervals: whether to add the confidence interval of each mean.
      marks: whether to mark the best and what is tied with it.
      notes: more sentences below the table.

    Returns:
      The table; None if it has no numbers.
    """
    numbers = [
        [comparison.series(row.method, lambda results, m=m, row=row: row.pick(results).get(m.key)) for m in columns]
        for row in rows
    ]
    kept_rows = [index for index, row in enumerate(numbers) if any(row)]
    kept = [place for place in range(len(columns)) if any(row[place] for row in numbers)]
    rows, columns = [rows[index] for index in kept_rows], [columns[place] for place in kept]
    numbers = [[numbers[index][place] for place in kept] for index in kept_rows]
    if not rows:
        return None
    values = [
        [comparison.value(cell, _bootstrap(row, column) if intervals else None) for column, cell in zip(columns, line)]
        for row, line in zip(rows, numbers)
    ]
    if not intervals:
        values = [[v and dataclasses.replace(v, interval=None) for v in line] for line in values]
    rankings = _mark(values, numbers, rows, columns) if marks else []
    return Table(
        name,
        title,
        heads,
        tuple(columns),
        tuple(row.labels for row in rows),
        tuple(map(tuple, values)),
        tuple(_counts(row.method) for row in rows),
        (*_spread_notes(values, rows), *comparison.notes(rankings), *_orientation(columns), *notes),
    )


def _counts(method: Method) -> tuple[int, int]:
    return len({run.key[0] for run in method.runs}), len(method.runs)


def _bootstrap(row: Row, column: Metric):
    if len(row.method.runs) > 1:
        return None
    return row.method.example.results["intervals"].get(column.key)


def _mark(values, numbers, rows: list[Row], columns: list[Metric]) -> list[comparison.Ranking]:
    """Mark the best of each column and block, in place."""
    rankings = []
    blocks = dict.fromkeys(row.block for row in rows if row.block is not None)
    for place, column in enumerate(columns):
        if column.higher_is_better is None:
            continue
        for block in blocks:
            members = [index for index, row in enumerate(rows) if row.block == block]
            ranking = comparison.rank(
                [numbers[index][place] for index in members], higher_is_better=column.higher_is_better
            )
            rankings.append(ranking)
            for index, best, tied in zip(members, ranking.best, ranking.tied):
                if values[index][place] is not None:
                    values[index][place] = dataclasses.replace(values[index][place], best=best, tied=tied)
    return rankings


def _spread_notes(values, rows: list[Row]) -> list[str]:
    cells = [value for line in values for value in line if value is not None]
    lines = []
    if any(value.splits > 1 for value in cells):
        averaged = "seeds averaged first" if any(value.runs > value.splits > 1 for value in cells) else "one seed each"
        lines.append(f"Mean ± sample standard deviation over class splits, {averaged}.")
    if any(value.runs > value.splits == 1 for value in cells):
        lines.append("One class split: mean ± sample standard deviation over its seeds, which says nothing of others.")
    kinds = []
    if any(value.interval for value in cells if value.splits > 1):
        kinds.append("of the mean, Student's t over the splits (not cut at 0 and 1)")
    if any(value.interval for value in cells if value.runs == 1):
        of = next(row.method.example.results["intervals"] for row in rows if len(row.method.runs) == 1)
        kinds.append(
            f"of a single run, percentile bootstrap over {of['over']} ({of['resamples']} resamples), which says "
            "nothing of other seeds and splits"
        )
    if kinds:
        confidence = f"{comparison.CONFIDENCE * 100:g} %"
        lines.append(f"Brackets: {confidence} confidence interval: {'; '.join(kinds)}.")
    return lines


def _orientation(columns: list[Metric]) -> list[str]:
    meanings: dict[str, list[str]] = {}
    for column in columns:
        if column.meaning:
            meanings.setdefault(column.meaning, []).append(column.label)
    if not meanings:
        return []
    # Many columns with one meaning, such as the scores, need no list of names.
    if len(meanings) == 1 and len(columns) > 1:
        return [f"All numbers: {next(iter(meanings))}."]
    return [f"{'; '.join(labels)}: {meaning}." for meaning, labels in meanings.items()]
