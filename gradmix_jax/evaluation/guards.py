"""Leak guards: each rejects one way in which a result can come out too good."""

from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging

from gradmix_jax import data as data_lib
from gradmix_jax.evaluation.features import Features

SELECTION = ("train", "validation")
NEGATIVE = "negative"


def of_selection(parts: Mapping[str, Features]) -> tuple[Features, ...]:
    """The parts used to learn or choose anything: training and validation images."""
    return tuple(parts[name] for name in SELECTION if name in parts)


def of_training(parts: Mapping[str, Features]) -> tuple[Features, ...]:
    """`of_selection`, and the images of negative classes that were trained on."""
    return (*of_selection(parts), *(parts[name] for name in (NEGATIVE,) if name in parts))


def same_checkpoint(*parts: Features) -> None:
    """Scores compare only within one model.

    Raises:
      ValueError: the features are of different checkpoints.
    """
    of = {part.part: part.checkpoint for part in parts}
    if len(set(of.values())) > 1:
        said = ", ".join(f"{part} of {checkpoint}" for part, checkpoint in of.items())
        raise ValueError(f"Features must be of one checkpoint, got {said}; delete features.npz to compute them again.")


def disjoint_classes(known: Features, unknown: Features) -> None:
    """No class may be known and unknown at once.

    Classes with the same name in two datasets count as one class, unless the name is a number, which proves nothing.

    Raises:
      ValueError: the classes overlap; names them.
    """
    disjoint_names(known.part, (known.dataset, known.classes), unknown.part, (unknown.dataset, unknown.classes))


def disjoint_names(known: str, of_known: tuple[str, np.ndarray], unknown: str, of_unknown: tuple[str, np.ndarray]):
    """`disjoint_classes` by the name of each part and its (dataset, names of its images' classes)."""
    names = [set(classes.tolist()) for _, classes in (of_known, of_unknown)]
    shared = set(data_lib.shared_classes(*names))
    if of_known[0] == of_unknown[0]:
        shared = names[0] & names[1]
    if shared:
        said = data_lib.listed(sorted(shared))
        raise ValueError(f"{unknown} must not have classes of {known}, got {said}; remove them from one of the two.")


def duplicates(others: Sequence[Features], part: Features) -> np.ndarray:
    """bool [N] of the images of `part` that are also in one of `others`, pixel by pixel."""
    return np.isin(part.hashes, np.concatenate([other.hashes for other in others]))


def without_duplicates(others: Sequence[Features], test: Features, policy: str) -> tuple[Features, int]:
    """The test images that are in none of `others`, and how many were dropped.

    Args:
      others: features of the training and validation images, which choose thresholds and settings; for
        unknown images also those of the known test images, since no image can be both known and unknown.
      test: features of the test images.
      policy: "error", or "drop".

    Raises:
      ValueError: there are some and `policy` is "error", or no image is left.
    """
    twice_N = duplicates(others, test)
    count = int(twice_N.sum())
    if count and (policy == "error" or count == len(test)):
        where = " and ".join(part.part for part in others if duplicates([part], test).any())
        advice = "set evaluate.duplicates to 'drop' to leave them out" if count < len(test) else "none would be left"
        raise ValueError(f"{count} of the {len(test)} images of {test.part} are also in {where}; {advice}.")
    return (test.take(~twice_N), count) if count else (test, 0)


def not_learned(trained: Sequence[Features], validation: Features) -> Features | None:
    """The validation images that are not training images, with a warning if some are; None if all of them are.

    Training images score higher than new ones: a threshold chosen with them would be too high. Images of negative
    classes score lower: it would be too low.

    Args:
      trained: features of the images that were trained on.
      validation: features of the validation images.
    """
    twice_V = duplicates(trained, validation)
    if not twice_V.any():
        return validation
    count = int(twice_V.sum())
    logging.warning("%d of %d validation images are left out, as they are training images.", count, len(validation))
    return None if twice_V.all() else validation.take(~twice_V)


def for_selection(*parts: Features) -> None:
    """Models, thresholds and penalties are chosen with training and validation images only.

    Raises:
      ValueError: a part has test images.
    """
    for part in parts:
        if part.part not in SELECTION:
            raise ValueError(f"Settings must be chosen with {' or '.join(SELECTION)} images, got {part.part!r}.")
