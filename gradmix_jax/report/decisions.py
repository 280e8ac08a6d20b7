"""A run's decisions at every threshold of a grid: the numbers behind the page's slider, of bounded size.

Letters: N known and M unknown test images, T thresholds of the grid, K known classes, R rows (classes of either side).
"""

import dataclasses
from typing import Any

import numpy as np

from gradmix_jax.report.runs import Run

MOST_THRESHOLDS = 128
FEWEST_THRESHOLDS = 24
# Numbers of one matrix on the page: pairs of class and prediction, times thresholds.
MOST_ENTRIES = 60_000
# Share of the known test images to accept if a run has no threshold.
START = 0.95
NEEDED = ("predicted", "labels", "predicted_unknown", "unknown_classes")


@dataclasses.dataclass(frozen=True, eq=False)
class Decisions:
    """The test images of a run and a grid of thresholds; an image is accepted if its score is at least the threshold.

    Attributes:
      thresholds_T: float64, ascending; the last one rejects every image.
      own: place of the run's threshold in them; None: it has none.
      start: `own`, or the last threshold that accepts START of the known images.
      rows: names of the known classes, then of the unknown ones.
      num_classes: K.
      row_I, predicted_I: int64, row and predicted class of each image, known ones first.
      above_I: int64, how many thresholds accept it: the first `above_I` ones.
    """

    thresholds_T: np.ndarray
    own: int | None
    start: int
    rows: tuple[str, ...]
    num_classes: int
    row_I: np.ndarray
    predicted_I: np.ndarray
    above_I: np.ndarray

    def accepted(self, chosen_I: np.ndarray) -> np.ndarray:
        """int64 [T]: how many of the chosen images (a mask) each threshold accepts."""
        return _accepted(np.bincount(self.above_I[chosen_I], minlength=len(self.thresholds_T) + 1))

    @property
    def known_I(self) -> np.ndarray:
        return self.row_I < self.num_classes

    @property
    def right_I(self) -> np.ndarray:
        return self.row_I == self.predicted_I

    def macro_f1(self) -> np.ndarray:
        """float64 [T]: `metrics.macro_f1` of the known classes and "unknown" at each threshold."""
        count, known_I = len(self.thresholds_T), self.known_I

        def by_class(chosen_I):
            key_I = self.predicted_I[chosen_I] * (count + 1) + self.above_I[chosen_I]
            histogram = np.bincount(key_I, minlength=self.num_classes * (count + 1))
            return _accepted(histogram.reshape(self.num_classes, count + 1))

        predicted_KxT, hits_KxT = by_class(np.full(len(self.row_I), True)), by_class(self.right_I)
        labeled_K = np.bincount(self.row_I[known_I], minlength=self.num_classes)
        unknown = np.count_nonzero(~known_I)
        rejected_T = len(self.row_I) - predicted_KxT.sum(axis=0)
        hits_KxT = np.concatenate([hits_KxT, unknown - self.accepted(~known_I)[None]])
        occurrences_KxT = np.concatenate([predicted_KxT + labeled_K[:, None], (rejected_T + unknown)[None]])
        seen_KxT = occurrences_KxT > 0
        f1_KxT = np.divide(2 * hits_KxT, occurrences_KxT, out=np.zeros(hits_KxT.shape), where=seen_KxT)
        return f1_KxT.sum(axis=0) / seen_KxT.sum(axis=0)

    def confusion(self, place: int) -> np.ndarray:
        """int64 [R, K + 1]: decisions at one threshold, "unknown" in the last column."""
        decided_I = np.where(self.above_I > place, self.predicted_I, self.num_classes)
        counts = np.zeros((len(self.rows), self.num_classes + 1), int)
        np.add.at(counts, (self.row_I, decided_I), 1)
        return counts


def _accepted(histogram: np.ndarray) -> np.ndarray:
    """Turns counts of images by `above` = 0..T, on the last axis, into counts accepted by each of T thresholds."""
    return histogram[..., ::-1].cumsum(axis=-1)[..., ::-1][..., 1:]


def of(run: Run, *, most: int = MOST_THRESHOLDS) -> Decisions | None:
    """The decisions of a run's headline score; None if scores.npz lacks predictions or classes."""
    arrays = run.headline
    if arrays is None or not set(NEEDED) <= arrays.keys():
        return None
    sides = [np.asarray(arrays[f"{side}_scores"], np.float64) for side in ("known", "unknown")]
    rows, num_classes = _rows(run), len(run.results["known_classes"])
    row_I = np.concatenate([arrays["labels"], num_classes + arrays["unknown_classes"].astype(int)])
    predicted_I = np.concatenate([arrays["predicted"], arrays["predicted_unknown"]])
    lengths = {len(row_I), len(predicted_I), sum(map(len, sides))}
    fits = len(lengths) == 1 and len(row_I) and row_I.max() < len(rows) and row_I.min() >= 0
    if not fits or not 0 <= predicted_I.min() <= predicted_I.max() < num_classes:
        return None
    own = run.results["threshold"]
    own = own if own is not None and np.isfinite(own) else None
    thresholds_T = _grid(*sides, own, most)
    above_I = np.searchsorted(thresholds_T, np.concatenate(sides), side="right")
    own = None if own is None else int(np.searchsorted(thresholds_T, own))
    kept_T = _accepted(np.bincount(above_I[: len(sides[0])], minlength=len(thresholds_T) + 1)) / len(sides[0])
    start = int(np.flatnonzero(kept_T >= START)[-1]) if own is None else own
    return Decisions(thresholds_T, own, start, rows, num_classes, row_I, predicted_I, above_I)


def _rows(run: Run) -> tuple[str, ...]:
    if run.results["confusion"]:
        return tuple(run.results["confusion"]["rows"])
    return (*run.results["known_classes"], *run.results["per_unknown_class"])


def _grid(known_N: np.ndarray, unknown_M: np.ndarray, own: float | None, most: int) -> np.ndarray:
    """Scores at even ranks of either side, the run's own threshold, and one above all scores."""
    ranks = np.linspace(0, 1, max(2, (most - 2) // 2))
    chosen = [np.quantile(side, ranks, method="nearest") for side in (known_N, unknown_M)]
    above = np.nextafter(max(known_N.max(), unknown_M.max()), np.inf)
    return np.unique(np.concatenate([*chosen, [above], [] if own is None else [own]]))


def cells(row_I: np.ndarray, column_I: np.ndarray, above_I: np.ndarray) -> list[list[int]]:
    """Counts as [row, column, above, count, above, count, ...] for every pair that occurs."""
    if not len(row_I):
        return []
    keys, counts = np.unique(np.stack([row_I, column_I, above_I]), axis=1, return_counts=True)
    starts = np.flatnonzero(np.any(np.diff(keys[:2], axis=1, prepend=-1) != 0, axis=0))
    found = []
    for start, stop in zip(starts, [*starts[1:], keys.shape[1]]):
        pairs = np.stack([keys[2, start:stop], counts[start:stop]], axis=1).ravel()
        found.append([int(keys[0, start]), int(keys[1, start]), *pairs.tolist()])
    return found


def thresholds_for(pairs: int) -> int:
    """Number of thresholds that a page has room for with this many pairs of class and prediction."""
    return int(np.clip(MOST_ENTRIES // max(pairs, 1), FEWEST_THRESHOLDS, MOST_THRESHOLDS))


def summary(decisions: Decisions) -> dict[str, Any]:
    """JSON-ready: thresholds and, at each, numbers of accepted images and macro-F1."""
    known_I = decisions.known_I
    return {
        "thresholds": decisions.thresholds_T.tolist(),
        "own": decisions.own,
        "start": decisions.start,
        "known": int(np.count_nonzero(known_I)),
        "unknown": int(np.count_nonzero(~known_I)),
        "accepted": decisions.accepted(known_I).tolist(),
        "right": decisions.accepted(known_I & decisions.right_I).tolist(),
        "false": decisions.accepted(~known_I).tolist(),
        "f1": decisions.macro_f1().tolist(),
    }
