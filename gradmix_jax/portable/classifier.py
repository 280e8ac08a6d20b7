"""An open set classifier as named arrays, functions and metadata, whether of a workdir or of an export.

Letters: N images, H W image, C channels, K classes, D feature, V calibration images.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from gradmix_jax.portable import gallery
from gradmix_jax.scores.fitted import LOGITS

# Images at a time.
BATCH = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """Everything needed for predictions.

    Attributes:
      metadata: the content of an export's metadata.json, see `from_run`.
      weights, arrays: of the network and of the score, see `functions`.
      model, score, explain: see `functions`.
      places_M: of each gallery feature, where its image is in the run's training part; None: there is no gallery.
      paths_M: its file, relative to the dataset's folder, for folders of images; else None.
    """

    metadata: dict[str, Any]
    weights: Mapping[str, np.ndarray]
    arrays: Mapping[str, np.ndarray]
    model: Callable
    score: Callable
    explain: Callable
    places_M: np.ndarray | None = None
    paths_M: list[str] | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.metadata["class_names"])

    @property
    def calibration_V(self) -> np.ndarray | None:
        """Ascending scores of the validation images of the known classes; None if the run kept none."""
        scores = self.metadata["calibration_scores"]
        return None if scores is None else np.array(scores, np.float32)

    def outputs(self, images_NxHxWxC: np.ndarray) -> dict[str, np.ndarray]:
        """{name: x_NxD} of uint8 images of the model's size."""
        return _in_batches(lambda images: self.model(self.weights, images), images_NxHxWxC, double=False)

    def scores(self, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """{"score": float32 [N], "class": int32 [N], "class_scores": float32 [N, K]} of the model's outputs."""
        wanted = {name: outputs[name] for name in self.metadata["score"]["inputs"]}
        return _in_batches(lambda outputs: self.score(self.arrays, outputs), wanted, double=self._double)

    def maps(self, images_NxHxWxC: np.ndarray) -> np.ndarray:
        """map_NxHxW in [0, 1]: gradient of the score with respect to the image, summed over channels."""
        run = lambda images: {"map": self.explain(self.weights, self.arrays, images)}
        return _in_batches(run, images_NxHxWxC, double=self._double)["map"]

    def neighbors(self, outputs: Mapping[str, np.ndarray], *, count: int) -> list[list[dict[str, Any]]]:
        """The most similar training images of each image: {"image": path or place, "class", "cosine"}.

        Raises:
          ValueError: the headline score is of the logits, and no training features are kept for it.
        """
        feature = self.metadata["score"]["feature"]
        if feature == LOGITS or self.places_M is None:
            raise ValueError(
                "--neighbors needs a score on features, got evaluate.score "
                f"{self.metadata['score']['name']!r} on {feature}."
            )
        features_MxD, classes_M = gallery.rows_of(self.arrays)
        rows_Nxc, cosine_Nxc = gallery.nearest(features_MxD, outputs[feature], count=count)
        name = lambda row: self.paths_M[row] if self.paths_M else int(self.places_M[row])
        return [
            [
                {"image": name(row), "class": self.class_names[classes_M[row]], "cosine": round(float(cosine), 6)}
                for row, cosine in zip(rows, cosines)
            ]
            for rows, cosines in zip(rows_Nxc, cosine_Nxc)
        ]

    @property
    def _double(self) -> bool:
        return self.metadata["score"]["float64"]


def _in_batches(function: Callable, rows: Any, *, double: bool) -> dict[str, np.ndarray]:
    """The outputs for all rows; batches are padded to few sizes, each of which is one compiled program."""
    count, parts = len(jax.tree.leaves(rows)[0]), []
    for start in range(0, count, BATCH):
        size = min(BATCH, count - start)
        padded = _padded(rows, start, size, 1 << (size - 1).bit_length())
        with jax.enable_x64(double):
            found = function(padded)
        parts.append({name: np.asarray(x)[:size] for name, x in found.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _padded(rows: Any, start: int, size: int, padded_size: int) -> Any:
    """`size` rows from `start` on, and zeros up to the padded size."""
    zeros = lambda x: np.zeros((padded_size - size, *x.shape[1:]), x.dtype)
    return jax.tree.map(lambda x: np.concatenate([x[start : start + size], zeros(x)]), rows)
