"""Results that must not be: each guard refuses one way in which a number can come out better than it is."""

import numpy as np

from gradmix_jax import datasets
from gradmix_jax.features import Features

SELECTION = ("train", "validation")


def same_checkpoint(*parts: Features) -> None:
    """Scores compare only within one model.

    Raises:
      ValueError: the features are of different checkpoints.
    """
    of = {part.part: part.checkpoint for part in parts}
    if len(set(of.values())) > 1:
        said = ", ".join(f"{part} of {checkpoint}" for part, checkpoint in of.items())
        raise ValueError(f"features are of different checkpoints ({said}); allowed: all of the same one.")


def disjoint_classes(known: Features, unknown: Features) -> None:
    """A class cannot be known and unknown at once, nor go by the same name in two data sets (numbers say nothing).

    Raises:
      ValueError: the classes overlap; says which.
    """
    disjoint_names(known.part, known.classes, unknown.part, unknown.classes)


def disjoint_names(known: str, known_N: np.ndarray, unknown: str, unknown_M: np.ndarray) -> None:
    """`disjoint_classes` by what the parts are called and the names "data set/class" of their images."""
    names = [set(classes.tolist()) for classes in (known_N, unknown_M)]
    bare = [{name.rpartition("/")[2] for name in side} for side in names]
    shared = sorted(names[0] & names[1] | set(datasets.shared_classes(*bare)))
    if shared:
        said = datasets.listed(shared)
        raise ValueError(f"{unknown} has classes of {known}: {said}; allowed: other classes only.")


def duplicates(train: Features, test: Features) -> np.ndarray:
    """bool [N] of the test images that are also training images, pixel by pixel."""
    return np.isin(test.hashes, train.hashes)


def without_duplicates(train: Features, test: Features, policy: str) -> tuple[Features, int]:
    """The test images that are not training images, and how many were dropped.

    Args:
      train, test: features with the hashes of their images.
      policy: "error", or "drop".

    Raises:
      ValueError: there are some and `policy` is "error", or no image is left.
    """
    twice_N = duplicates(train, test)
    count = int(twice_N.sum())
    if count and (policy == "error" or count == len(test)):
        raise ValueError(
            f"{count} of the {len(test)} images of {test.part} are also in {train.part}; allowed: none, or "
            "evaluate.duplicates='drop' to leave them out of the test, where others remain."
        )
    return (test.take(~twice_N), count) if count else (test, 0)


def for_selection(*parts: Features) -> None:
    """Models, thresholds and regularisation are chosen on training and validation images alone.

    Raises:
      ValueError: a part is of the test.
    """
    for part in parts:
        if part.part not in SELECTION:
            raise ValueError(f"{part.part!r} is used to choose something; allowed for that: {', '.join(SELECTION)}.")
