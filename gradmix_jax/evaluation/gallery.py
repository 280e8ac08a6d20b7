"""Images of the clearest mistakes, and the training images nearest to each.

Letters: N training images, Q images shown, F feature, J neighbors, H W image, C image channels.
"""

from collections.abc import Mapping

import numpy as np

from gradmix_jax.data import Source
from gradmix_jax.evaluation import headline, open_set
from gradmix_jax.evaluation.features import Features
from gradmix_jax.evaluation.fitting import Evaluator
from gradmix_jax.scores.fitted import LOGITS

NEIGHBORS = 3
_SIDES = ("known", "unknown")
# Training features compared at a time, because a float32 copy of all of them may not fit in memory.
_BLOCK = 65536


def gallery(
    evaluator: Evaluator, parts: Mapping[str, Features], scored: headline.Scored, *, neighbors: int = NEIGHBORS
) -> dict[str, np.ndarray]:
    """Test images by kind of `open_set.gallery_places`, in the format of gallery.npz.

    Returns:
      {"KIND/images": uint8 [Q, H, W, C], "KIND/scores" float [Q], "KIND/truth" and "KIND/predicted": names of classes
      [Q], "KIND/nearest": places [Q, J] in "train/images" uint8 and "train/classes", nearest first, by the cosine of
      the headline's feature, "KIND/similarity": float32 [Q, J]}; without neighbors for an empty kind.
    """
    model, found = evaluator.model, {}
    judged = headline.judged(scored, model.spec.feature, model.spec.score)
    score_of, predicted = dict(zip(_SIDES, judged[:2])), dict(zip(_SIDES, judged[2:]))
    names, train = np.array(model.data.class_names), parts["train"]
    feature = "features" if model.spec.feature == LOGITS else model.spec.feature
    correct_N, nearest = judged[2] == parts["test_known"].labels, {}
    for kind, (side, places) in open_set.gallery_places(*judged[:2], correct_N).items():
        part = parts[f"test_{side}"]
        found |= {
            f"{kind}/images": _images(getattr(model.data, f"test_{side}"), part.places[places]),
            f"{kind}/scores": score_of[side][places],
            f"{kind}/truth": part.classes[places],
            f"{kind}/predicted": names[predicted[side][places]],
        }
        if len(places):
            nearest[kind], found[f"{kind}/similarity"] = nearest_rows(
                train.outputs[feature], part.outputs[feature][places], count=neighbors
            )
    # An image that is near several others is stored once.
    shown = np.unique(np.concatenate([each.ravel() for each in nearest.values()])) if nearest else np.zeros(0, int)
    found |= {f"{kind}/nearest": np.searchsorted(shown, each) for kind, each in nearest.items()}
    return found | {
        "train/images": _images(model.data.train, train.places[shown]),
        "train/classes": train.classes[shown],
    }


def _images(source: Source, places: np.ndarray) -> np.ndarray:
    shape = (0, source.image_size, source.image_size, source.channels)
    return np.array([source[int(place)] for place in places], np.uint8) if len(places) else np.zeros(shape, np.uint8)


def nearest_rows(bank_NxF: np.ndarray, asked_QxF: np.ndarray, *, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `bank_NxF` with the largest cosine to each queried one.

    Args:
      bank_NxF, asked_QxF: features; a row of length 0 has cosine 0 to everything.
      count: J, at most N.

    Returns:
      (rows_QxJ, cosine_QxJ float32), nearest first; ties are in the order of the bank.
    """
    unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    asked_QxF, count = unit(np.asarray(asked_QxF, np.float32)), min(count, len(bank_NxF))
    rows_QxJ, cosine_QxJ = np.zeros((len(asked_QxF), 0), int), np.zeros((len(asked_QxF), 0), np.float32)
    for start in range(0, len(bank_NxF), _BLOCK):
        block_QxB = asked_QxF @ unit(np.asarray(bank_NxF[start : start + _BLOCK], np.float32)).T
        cosine_QxJ = np.concatenate([cosine_QxJ, block_QxB], axis=1)
        rows_QxJ = np.concatenate(
            [rows_QxJ, np.broadcast_to(np.arange(block_QxB.shape[1]) + start, block_QxB.shape)], 1
        )
        best_QxJ = np.argsort(-cosine_QxJ, axis=1, kind="stable")[:, :count]
        rows_QxJ, cosine_QxJ = (np.take_along_axis(each, best_QxJ, axis=1) for each in (rows_QxJ, cosine_QxJ))
    return rows_QxJ, cosine_QxJ
