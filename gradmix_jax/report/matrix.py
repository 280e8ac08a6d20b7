"""The confusion matrix of one run, and which known classes unknown ones are mistaken for, as HTML tables.

Letters: R rows, C columns; the last column is "unknown".
"""

import dataclasses
from typing import Any

import numpy as np

from gradmix_jax.report import decisions as decisions_lib
from gradmix_jax.report.decisions import Decisions
from gradmix_jax.report.formats import escape_html
from gradmix_jax.report.labels import cut
from gradmix_jax.report.runs import Run

# Known classes in a confusion matrix; if there are more, those with the most wrong decisions are shown.
MOST_KNOWN = 30
MOST_ROWS = 40
# Unknown classes of which the page says what they are taken for, predictions of each that it holds, and names it shows.
MOST_UNKNOWN = 40
MOST_PREDICTIONS = 60
SHOWN = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Grouping:
    """Which classes share a row and a column, so that a matrix has a bounded size.

    Attributes:
      rows, columns: names.
      row_of, column_of: int64, place of each row and column of the whole matrix.
      known: number of rows of known classes.
      note: what was put together, as sentences that start with a space.
    """

    rows: list[str]
    columns: list[str]
    row_of: np.ndarray
    column_of: np.ndarray
    known: int
    note: str

    def sum(self, counts_RxC: np.ndarray) -> np.ndarray:
        """The grouped counts."""
        found = np.zeros((len(self.rows), len(self.columns)), int)
        np.add.at(found, (self.row_of[:, None], self.column_of[None]), counts_RxC)
        return found


def grouping(row_names: list[str], counts_RxC: np.ndarray) -> Grouping:
    """All classes; of many, the known ones with the most errors and one row of unknown ones."""
    num_classes = counts_RxC.shape[1] - 1
    names, note = [cut(name) for name in row_names], ""
    known_names, unknown_names = (
        names[:num_classes],
        [name if name == "unknown" else f"{name} (unknown)" for name in names[num_classes:]],
    )
    place_K = np.arange(num_classes)
    if num_classes > MOST_KNOWN:
        wrong_K = counts_RxC[:num_classes].sum(axis=1) - counts_RxC[:num_classes].diagonal()
        kept = np.sort(np.argsort(-wrong_K, kind="stable")[:MOST_KNOWN])
        place_K = np.full(num_classes, MOST_KNOWN)
        place_K[kept] = np.arange(MOST_KNOWN)
        known_names = [*(known_names[i] for i in kept), f"{num_classes - MOST_KNOWN} other known"]
        note = (
            f" Of {num_classes} known classes the {MOST_KNOWN} with the most errors are shown; the others are put "
            "together."
        )
    known, place_U = len(known_names), np.arange(len(unknown_names))
    if len(unknown_names) > 1 and known + len(unknown_names) > MOST_ROWS:
        note += f" The {len(unknown_names)} unknown classes are in one row."
        place_U, unknown_names = np.zeros(len(unknown_names), int), [f"{len(unknown_names)} unknown classes"]
    row_of = np.concatenate([place_K, known + place_U]).astype(int)
    columns = [*known_names, "unknown"]
    return Grouping([*known_names, *unknown_names], columns, row_of, np.append(place_K, known), known, note)


def confusion(run: Run, decisions: Decisions | None) -> tuple[str, dict[str, Any] | None]:
    """(table with a caption, the same for every threshold as JSON-ready cells; None without `decisions`)."""
    stored = run.results["confusion"]
    if not stored and decisions is None:
        return "<p>There is no confusion matrix: without validation images there is no threshold.</p>", None
    at = "the run's own threshold"
    if not stored:
        at = f"the threshold that accepts {100 * decisions_lib.START:g} % of the known test images"
    counts = np.asarray(stored["counts"]) if stored else decisions.confusion(decisions.start)
    groups = grouping(stored["rows"] if stored else list(decisions.rows), counts)
    caption = (
        f'Confusion matrix of {escape_html(run.name)} at <span class="at" data-own="{at}">{at}</span>: numbers of '
        "images, shaded by the share of their row, blue where the decision is right and orange where it is wrong. "
        f"Unknown images belong in the last column.{escape_html(groups.note)}"
    )
    return _matrix(groups, groups.sum(counts), caption), None if decisions is None else _cells(groups, decisions)


def _cells(groups: Grouping, decisions: Decisions) -> dict[str, Any]:
    rows_I, columns_I = groups.row_of[decisions.row_I], groups.column_of[decisions.predicted_I]
    return {
        "totals": np.bincount(rows_I, minlength=len(groups.rows)).tolist(),
        "cells": decisions_lib.cells(rows_I, columns_I, decisions.above_I),
    }


def _matrix(groups: Grouping, counts_RxC: np.ndarray, caption: str) -> str:
    head = "".join(f'<th scope="col"><span>{escape_html(name)}</span></th>' for name in groups.columns)
    body = []
    for row, (name, values) in enumerate(zip(groups.rows, counts_RxC.tolist())):
        right = row if row < groups.known else len(values) - 1
        total = max(sum(values), 1)
        cells = "".join(_cell(value, value / total, column == right) for column, value in enumerate(values))
        first = ' class="first"' if row == groups.known else ""
        head_of_row = f'<th scope="row">{escape_html(name)}</th>'
        body.append(f'<tr{first}>{head_of_row}{cells}<td class="sum">{sum(values)}</td></tr>')
    wide = ' class="wide"' if len(groups.columns) > 12 else ""
    return (
        f'<figure{wide}><div class="scroll" tabindex="0" role="group" aria-label="confusion matrix">'
        '<table class="confusion"><thead><tr><th scope="col" class="corner">true \\ predicted</th>'
        f'{head}<th scope="col"><span>images</span></th></tr></thead><tbody>{"".join(body)}</tbody></table></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _cell(value: int, share: float, right: bool) -> str:
    kind = (["right"] if right else []) + (["full"] if share > 0.55 else []) + ([] if value else ["zero"])
    kind = f' class="{" ".join(kind)}"' if kind else ""
    return f"<td{kind}{f' style={chr(34)}--s:{share:.2f}{chr(34)}' if value else ''}>{value}</td>"


def taken_for(run: Run, decisions: Decisions | None) -> tuple[str, dict[str, Any] | None]:
    """(table of unknown classes and the known classes they are mistaken for, the same for every threshold)."""
    stored = run.results["confusion"]
    if not stored and decisions is None:
        return "", None
    counts = np.asarray(stored["counts"]) if stored else decisions.confusion(decisions.start)
    names = stored["rows"] if stored else list(decisions.rows)
    num_classes = counts.shape[1] - 1
    of_unknown, known_names = counts[num_classes:], [cut(name) for name in names[:num_classes]]
    if not len(of_unknown):
        return "", None
    accepted_U = of_unknown[:, :num_classes].sum(axis=1)
    chosen = np.argsort(-accepted_U, kind="stable")[:MOST_UNKNOWN]
    body = "".join(_taken_row(names[num_classes + u], of_unknown[u].tolist(), known_names) for u in chosen)
    which = f" The {len(chosen)} of {len(of_unknown)} most accepted." if len(chosen) < len(of_unknown) else ""
    caption = f"Unknown classes of {run.name}, most accepted first, and the known classes they are taken for.{which}"
    heads = ("unknown class", "taken for", "accepted", "share", "images")
    head = "".join(f'<th scope="col"{_LABEL if name in heads[:2] else ""}>{name}</th>' for name in heads)
    wide = ' class="wide"' if num_classes > 11 else ""
    table = (
        f'<figure{wide}><div class="scroll" tabindex="0" role="group" aria-label="unknown classes">'
        f'<table class="taken sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f"<figcaption>{escape_html(caption)}</figcaption></figure>"
    )
    return table, None if decisions is None else _taken_cells(decisions, chosen, known_names)


_LABEL = ' class="label"'


def _taken_row(name: str, counts_C: list[int], known_names: list[str]) -> str:
    total, accepted = sum(counts_C), sum(counts_C[:-1])
    order = sorted(range(len(known_names)), key=lambda k: -counts_C[k])[:SHOWN]
    said = ", ".join(f"{known_names[k]} ({counts_C[k]})" for k in order if counts_C[k]) or "none"
    share = accepted / max(total, 1)
    return (
        f'<tr><th scope="row">{escape_html(cut(name, 40))}</th><td class="said">{escape_html(said)}</td>'
        f"<td>{accepted}</td><td>{100 * share:.1f} %</td><td>{total}</td></tr>"
    )


def _taken_cells(decisions: Decisions, chosen: np.ndarray, known_names: list[str]) -> dict[str, Any]:
    """Cells by place in `chosen` and predicted class, the MOST_PREDICTIONS most frequent of each; all in column K."""
    place_R = np.full(len(decisions.rows), -1)
    place_R[decisions.num_classes + chosen] = np.arange(len(chosen))
    mine = place_R[decisions.row_I] >= 0
    rows_I, columns_I = place_R[decisions.row_I[mine]], decisions.predicted_I[mine]
    above_I, num_classes = decisions.above_I[mine], decisions.num_classes
    counts = np.zeros((len(chosen), num_classes), int)
    np.add.at(counts, (rows_I, columns_I), 1)
    rank = np.argsort(np.argsort(-counts, axis=1, kind="stable"), axis=1)
    kept = rank[rows_I, columns_I] < MOST_PREDICTIONS
    every = decisions_lib.cells(rows_I, np.full(len(rows_I), num_classes), above_I)
    return {
        "names": known_names,
        "totals": np.bincount(rows_I, minlength=len(chosen)).tolist(),
        "cells": decisions_lib.cells(rows_I[kept], columns_I[kept], above_I[kept]) + every,
    }
