"""Results that must not be: each guard refuses one way in which a number can come out better than it is."""

from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging

from gradmix_jax import data as data_lib
from gradmix_jax.evaluation.features import Features

SELECTION = ("train", "validation")


def of_selection(parts: Mapping[str, Features]) -> tuple[Features, ...]:
    """Those of the parts that something is learned or chosen with."""
    return tuple(parts[name] for name in SELECTION if name in parts)


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
    shared = sorted(names[0] & names[1] | set(data_lib.shared_classes(*bare)))
    if shared:
        said = data_lib.listed(shared)
        raise ValueError(f"{unknown} has classes of {known}: {said}; allowed: other classes only.")


def duplicates(others: Sequence[Features], part: Features) -> np.ndarray:
    """bool [N] of the images of `part` that are also in one of `others`, pixel by pixel."""
    return np.isin(part.hashes, np.concatenate([other.hashes for other in others]))


def without_duplicates(others: Sequence[Features], test: Features, policy: str) -> tuple[Features, int]:
    """The test images that are in none of `others`, and how many were dropped.

    Args:
      others: features of the training images and, where there are such, of the validation images: thresholds and
        settings of probes are chosen with these; for unknown images those of the known test images as well, since none
        can be known and unknown.
      test: features of the test images.
      policy: "error", or "drop".

    Raises:
      ValueError: there are some and `policy` is "error", or no image is left.
    """
    twice_N = duplicates(others, test)
    count = int(twice_N.sum())
    if count and (policy == "error" or count == len(test)):
        where = " and ".join(part.part for part in others if duplicates([part], test).any())
        raise ValueError(
            f"{count} of the {len(test)} images of {test.part} are also in {where}; allowed: none, or "
            "evaluate.duplicates='drop' to leave them out of the test, where others remain."
        )
    return (test.take(~twice_N), count) if count else (test, 0)


def not_learned(train: Features, validation: Features) -> Features | None:
    """The validation images that are not training images too, with a warning where some are; None: all of them are.

    What was learned scores better than what is new: a threshold chosen with it would be too high, a setting too fine.
    """
    twice_V = duplicates([train], validation)
    if not twice_V.any():
        return validation
    count = int(twice_V.sum())
    logging.warning("%d of %d validation images are left out: training has them too.", count, len(validation))
    return None if twice_V.all() else validation.take(~twice_V)


def for_selection(*parts: Features) -> None:
    """Models, thresholds and regularisation are chosen on training and validation images alone.

    Raises:
      ValueError: a part is of the test.
    """
    for part in parts:
        if part.part not in SELECTION:
            raise ValueError(f"{part.part!r} is used to choose something; allowed for that: {', '.join(SELECTION)}.")
