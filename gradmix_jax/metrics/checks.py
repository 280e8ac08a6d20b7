"""Checked arguments of metrics, as NumPy arrays; `name` is the argument in error messages."""

import numpy as np


def as_scores(name, values):
    """1-D float32 or float64: float16 and float32 become float32, everything else float64.

    Raises ValueError for an empty array, another shape, or NaN.
    """
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} scores must be a non-empty vector, got shape {array.shape}")
    array = array.astype(np.float32 if array.dtype in (np.float16, np.float32) else np.float64, copy=False)
    if np.isnan(array).any():
        raise ValueError(f"{name} scores must be numbers, got NaN for {np.isnan(array).sum()} of {array.size}")
    return array


def as_classes(name, values):
    """A non-empty vector of integers. Raises ValueError for anything else."""
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must be a non-empty integer vector, got {array.dtype} of shape {array.shape}")
    return array
