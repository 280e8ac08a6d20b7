"""The mean of several scores, each standardized on validation images. Higher means known.

Letters: S scores, V validation images, N images.
"""

from typing import NamedTuple

import numpy as np

from gradmix_jax.scores.base import Unfit


class Ensemble(NamedTuple):
    """States of the members, and the mean and standard deviation of each over the validation images."""

    states: dict
    mean_S: np.ndarray
    std_S: np.ndarray


def fit(reference, *, members=("topk_cosine", "relative_mahalanobis"), state_of, score):
    """Fits the members, with their own options, and their means and standard deviations on validation images.

    On validation images because a training image is its own nearest neighbor.

    Args:
      state_of: function (name, reference) -> state.
      score: function (name, state, outputs) -> score_N.

    Raises:
      Unfit: a member cannot be fitted, or does not vary over the validation images.
    """
    # Sorted, as JAX sorts the keys of a dict: the order of the means is that of the states in a program, too.
    states = {name: state_of(name, reference) for name in sorted(members)}
    scores_SxV = _scores(states, reference.validation, score)
    std_S = scores_SxV.std(axis=1)
    spread = dict(zip(states, std_S))
    constant = [name for name in members if not spread[name] > 0]
    if constant:
        raise Unfit(
            f"Members of an ensemble must vary over the validation images, {', '.join(constant)} did not over "
            f"{scores_SxV.shape[1]} images."
        )
    return Ensemble(states, scores_SxV.mean(axis=1), std_S)


def score(state, outputs, *, score):
    """Mean of the members' scores, each minus its validation mean, divided by its standard deviation."""
    scores_SxN = _scores(state.states, outputs, score)
    return np.mean((scores_SxN - state.mean_S[:, None]) / state.std_S[:, None], axis=0)


def _scores(states, outputs, score):
    return np.stack([np.asarray(score(name, state, outputs), np.float64) for name, state in states.items()])
