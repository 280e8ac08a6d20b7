"""Name the class of an image, or say that it is of none.

python -m gradmix_jax.predict runs/cifar10_0 photo.jpg another.png

    classifier = OpenSetClassifier.load("runs/cifar10_0")
    prediction = classifier.predict(images_NxHxWxC)
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import flags
from PIL import Image

from gradmix_jax import cli, metrics
from gradmix_jax import config as config_lib
from gradmix_jax.data.source import reason_of, to_array
from gradmix_jax.evaluation import fitting
from gradmix_jax.fields import check_number

UNKNOWN = -1


class Prediction(NamedTuple):
    """For N images: label_N (0..K-1, or -1 for unknown), its name ("unknown") and the score; higher means known."""

    label_N: np.ndarray
    name_N: list[str]
    score_N: np.ndarray


class OpenSetClassifier:
    """A trained run that accepts an image only where its score reaches a threshold.

    Attributes:
      class_names: of the K known classes.
      threshold: lowest score that counts as known.
    """

    def __init__(self, evaluator: fitting.Evaluator, threshold: float):
        self.class_names = evaluator.model.data.class_names
        self.threshold = threshold
        self._evaluator = evaluator

    @classmethod
    def load(cls, workdir: str, *, threshold: float | None = None, keep: float = 0.95) -> "OpenSetClassifier":
        """From a run's workdir; its data has to be where it was in training.

        Args:
          workdir: directory of a run.
          threshold: lowest score that counts as known; if not given, the one that keeps the share `keep` of the
            validation images of the known classes. No unknown image is needed, and no test image is looked at.
          keep: see `threshold`, above 0 and at most 1.

        Raises:
          ValueError: no run or no checkpoint there; no threshold given and no validation images kept by the run; a
            threshold that is no finite number.
        """
        if threshold is not None:
            check_number("threshold", threshold)
        config = config_lib.read(workdir)
        model = fitting.restore(config_lib.from_config(config, num_devices=1).setup, workdir)
        parts = fitting.compute_parts(model, workdir, ("train", "validation"))
        evaluator = fitting.fit(model, parts, headline_only=True)
        if threshold is None:
            if "validation" not in parts:
                raise ValueError(
                    f"the run in {workdir} has no validation images to set a threshold with; give a threshold, or "
                    "a run with dataset.validation_fraction above 0."
                )
            threshold = metrics.known_threshold(evaluator.score(parts["validation"].outputs), keep=keep)
        return cls(evaluator, threshold)

    def predict(self, images: np.ndarray | Sequence) -> Prediction:
        """Classify images of any size.

        Args:
          images: uint8 [N, H, W, C] with C = 1 or 3, or a sequence of Pillow images, file names or uint8 arrays.

        Returns:
          The prediction.

        Raises:
          ValueError: no image, a file that cannot be read as one, or an array of another type or shape.
        """
        if not len(images):
            raise ValueError("predict got no images; give at least one.")
        data_spec = self._evaluator.model.data_spec
        arrays = [
            to_array(_as_pillow(image), data_spec.image_size, data_spec.channels, background=data_spec.background)
            for image in images
        ]
        outputs = self._evaluator.model.outputs(np.stack(arrays))
        score_N, best_N = self._evaluator.score(outputs), self._evaluator.predict(outputs)
        label_N = np.where(score_N >= self.threshold, best_N, UNKNOWN)
        names = (*self.class_names, "unknown")
        return Prediction(label_N, [names[label] for label in label_N], score_N)


def _as_pillow(image) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, (str, os.PathLike)):
        try:
            with Image.open(image) as opened:
                opened.load()
                return opened
        except Exception as error:  # Pillow's decoders raise whatever a broken file leads them to
            raise ValueError(f"{image} cannot be read as an image: {reason_of(error, str(image))}") from error
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] not in (1, 3):
        raise ValueError(f"images must be uint8 [H, W, C] with C = 1 or 3, got {array.dtype} {array.shape}.")
    return Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array)


def _main(argv: list[str]) -> None:
    if len(argv) < 3:
        raise ValueError("predict takes the workdir of a run and one image file or more.")
    classifier = OpenSetClassifier.load(argv[1], threshold=flags.FLAGS.threshold)
    prediction = classifier.predict(argv[2:])
    for file, name, score in zip(argv[2:], prediction.name_N, prediction.score_N):
        print(f"{file}: {name} (score {score:.3f}, threshold {classifier.threshold:.3f})")


if __name__ == "__main__":
    flags.DEFINE_float("threshold", None, "Lowest score that counts as known; else from the validation images.")
    cli.run(_main)
