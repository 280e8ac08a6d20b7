"""Split-conformal p-values: how unusual a score is among those of held-out known images.

Letters: V calibration images, N images.
"""

import math

import numpy as np


def p_values(calibration_V: np.ndarray, score_N: np.ndarray) -> np.ndarray:
    """(1 + number of calibration scores <= score) / (V + 1), float64 [N] in (0, 1]; small means unknown.

    For an image exchangeable with the calibration images, P(p <= a) <= a for every a (Vovk et al. 2005, "Algorithmic
    Learning in a Random World", section 2.2; Bates et al. 2023, "Testing for outliers with conformal p-values", eq. 2).

    Args:
      calibration_V: scores of known images that nothing was fitted to, higher means known.
      score_N: scores of the images to test.
    """
    below_N = np.searchsorted(np.sort(calibration_V), score_N, side="right")
    return (1 + below_N) / (len(calibration_V) + 1)


def threshold(calibration_V: np.ndarray, *, keep: float) -> float:
    """The lowest score with p > 1 - keep; -inf if the calibration images are too few to reject anything.

    At most the share 1 - keep of known images scores below it, in expectation over calibration sets.

    Args:
      calibration_V: see `p_values`.
      keep: share of known images to accept, above 0 and at most 1.

    Raises:
      ValueError: keep is out of range.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be above 0 and at most 1, got {keep}.")
    # 1 - 0.95 is 0.05000000000000004, and 20 times that must count as 1, as must 5 times 1 - 0.8.
    rejected = math.floor((1 - keep) * (len(calibration_V) + 1) + 1e-9)
    return float(np.sort(calibration_V)[rejected - 1]) if rejected else -math.inf


def fewest(keep: float) -> int:
    """The smallest number of calibration images with which any image can be rejected."""
    return 0 if keep >= 1 else math.ceil(1 / round(1 - keep, 12) - 1e-6) - 1


def most(num_calibration: int) -> float:
    """The largest share of known images to accept, in whole percent, with which any image can be rejected."""
    return math.floor(100 * num_calibration / (num_calibration + 1)) / 100
