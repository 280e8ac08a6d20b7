"""Classify images into the known classes, or as unknown.

python -m gradmix_jax.predict runs/cifar10_0 photo.jpg folder/of/images
find . -name '*.jpg' | python -m gradmix_jax.predict models/cifar10 - --csv > answers.csv

    classifier = OpenSetClassifier.load("runs/cifar10_0")
    prediction = classifier.predict(images_NxHxWxC)

The model is the workdir of a run or what `gradmix export` wrote. After it come image files, folders, which are searched
at any depth, or - to read paths from standard input, one a line.
"""

import csv
import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from gradmix_jax import cli
from gradmix_jax import workdir as workdir_lib
from gradmix_jax.fields import check_number, one_line
from gradmix_jax.portable import conformal, files, from_run
from gradmix_jax.portable import images as images_lib
from gradmix_jax.portable.classifier import BATCH, Classifier
from gradmix_jax.workdir import storage

UNKNOWN = -1


class Prediction(NamedTuple):
    """For N images: label_N (0..K-1, or -1 for unknown), its name ("unknown") and the score; higher means known."""

    label_N: np.ndarray
    name_N: list[str]
    score_N: np.ndarray


class OpenSetClassifier:
    """A trained run that accepts an image only if its score reaches a threshold.

    Attributes:
      class_names: names of the K known classes.
      threshold: lowest score that counts as known; -inf: no image is rejected.
      warnings: warnings for the user, one sentence each.
    """

    def __init__(self, classifier: Classifier, threshold: float, warnings: Sequence[str] = ()):
        self.class_names = classifier.class_names
        self.threshold = threshold
        self.warnings = tuple(warnings)
        self._classifier = classifier

    @classmethod
    def load(cls, directory: str, *, threshold: float | None = None, keep: float = 0.95) -> "OpenSetClassifier":
        """Load the workdir of a run, or an export.

        The images of a run are needed only if its features.npz is missing or belongs to another checkpoint.

        Args:
          directory: directory of a run or an export.
          threshold: lowest score that counts as known; if not given, the one that rejects at most the share 1 - keep
            of known images, in expectation over sets of validation images (`conformal.threshold`). No unknown image is
            needed, and no test image is used.
          keep: see `threshold`, above 0 and at most 1.

        Raises:
          ValueError: no run, no checkpoint or no export there; no threshold given and no validation images kept by the
            run; a threshold that is not a finite number.
        """
        if threshold is not None:
            check_number("threshold", threshold)
        classifier = files.read(directory) if files.is_export(directory) else from_run.load(directory)
        calibration_V = classifier.calibration_V
        warnings = [each for each in [from_run.unfinished(classifier.metadata)] if each]
        if threshold is None:
            if calibration_V is None:
                raise ValueError(
                    f"the run in {directory} kept no validation images to set a threshold with; give a threshold, or "
                    "train with dataset.validation_fraction above 0."
                )
            threshold = conformal.threshold(calibration_V, keep=keep)
            if threshold == -np.inf and keep < 1:
                most = conformal.most(len(calibration_V))
                warnings.append(
                    f"no image is rejected: rejecting at most {100 * (1 - keep):.4g} % of known images takes "
                    f"{conformal.fewest(keep)} validation images, there are {len(calibration_V)}; keep={most:.2f} "
                    "rejects some, or train with a larger dataset.validation_fraction."
                )
        return cls(classifier, threshold, warnings)

    def predict(self, images: np.ndarray | Sequence) -> Prediction:
        """Classify images of any size.

        Args:
          images: [N, H, W, C] with C = 1 or 3, float in [0, 1] or uint8, or a sequence of Pillow images, file names or
            such arrays.

        Returns:
          The prediction.

        Raises:
          ValueError: no image, a file that cannot be read as one, or an array of a wrong type or shape.
        """
        if not len(images):
            raise ValueError("predict needs one image or more, got none.")
        found = self._classifier.scores(self._classifier.outputs(np.stack([self.array(image) for image in images])))
        label_N = np.where(found["score"] >= self.threshold, found["class"], UNKNOWN)
        names = (*self.class_names, "unknown")
        return Prediction(label_N, [names[label] for label in label_N], found["score"])

    def array(self, image: Any) -> np.ndarray:
        """One image in the model's input format, uint8 [H, W, C]; raises as `predict`."""
        described = self._classifier.metadata["image"]
        background = described["background"]
        return images_lib.as_array(image, described["size"], described["channels"], background=background)

    def p_values(self, score_N: np.ndarray) -> np.ndarray | None:
        """Split-conformal p-values of scores, see `conformal.p_values`; None without validation images."""
        calibration_V = self._classifier.calibration_V
        return None if calibration_V is None else conformal.p_values(calibration_V, score_N)

    def records(self, images_NxHxWxC: np.ndarray, *, top: int = 3, neighbors: int = 0) -> list[dict[str, Any]]:
        """One JSON-compatible dict per image.

        Args:
          images_NxHxWxC: images from `array`.
          top: number of classes to list.
          neighbors: number of training images to list.

        Returns:
          [{"label", "accepted", "score", "p_value" or None, "top": [{"class", "score"}], "neighbors": [...] if asked}],
          see `Classifier.neighbors`.

        Raises:
          ValueError: neighbors are requested but the run's score has none.
        """
        outputs = self._classifier.outputs(images_NxHxWxC)
        found = self._classifier.scores(outputs)
        p_N = self.p_values(found["score"])
        nearest = self._classifier.neighbors(outputs, count=neighbors) if neighbors else None
        records = []
        for row, (score, label) in enumerate(zip(found["score"].tolist(), found["class"].tolist())):
            accepted = score >= self.threshold
            classes_K = found["class_scores"][row]
            best = np.argsort(-classes_K, kind="stable")[:top]
            record = {
                "label": self.class_names[label] if accepted else "unknown",
                "accepted": accepted,
                "score": score,
                "p_value": None if p_N is None else float(p_N[row]),
                "top": [{"class": self.class_names[each], "score": float(classes_K[each])} for each in best],
            }
            records.append(record | ({"neighbors": nearest[row]} if nearest else {}))
        return records

    def maps(self, images_NxHxWxC: np.ndarray) -> np.ndarray:
        """map_NxHxW in [0, 1]: where changing the image changes the score most (gradient of the score)."""
        return self._classifier.maps(images_NxHxWxC)


def _read(classifier: OpenSetClassifier, paths: Iterable[str], broken: list[str]):
    """Batches of ([path], images_NxHxWxC); a file that cannot be read is reported and added to `broken`."""
    names, arrays = [], []
    for path in paths:
        try:
            arrays.append(classifier.array(path))
            names.append(path)
        except ValueError as error:
            broken.append(path)
            print(f"error: {one_line(str(error))}", file=sys.stderr)
        if len(names) == BATCH:
            yield names, np.stack(arrays)
            names, arrays = [], []
    if names:
        yield names, np.stack(arrays)


class _Plain:
    """One line per image, with classes and neighbors below it if requested."""

    def __init__(self, classifier: OpenSetClassifier):
        self.threshold = classifier.threshold

    def write(self, path: str, record: dict[str, Any]) -> None:
        said = f"{path}: {record['label']} (score {record['score']:.3f}, threshold {self.threshold:.3f})"
        print(one_line(said))
        for each in record["top"] if flags.FLAGS["top"].present else ():
            print(one_line(f"    class {each['class']} {each['score']:.3f}"))
        for each in record.get("neighbors", ()):
            print(one_line(f"    neighbor {each['image']} ({each['class']}) {each['cosine']:.3f}"))


class _Json:
    """One JSON object per line."""

    def __init__(self, classifier: OpenSetClassifier):
        pass

    def write(self, path: str, record: dict[str, Any]) -> None:
        print(json.dumps({"path": path} | record))


class _Csv:
    """One row per image, below the column names."""

    COLUMNS = ("label", "accepted", "score", "p_value")

    def __init__(self, classifier: OpenSetClassifier):
        self._writer = csv.writer(sys.stdout, lineterminator="\n")
        self._is_first = True

    def write(self, path: str, record: dict[str, Any]) -> None:
        lists = {"top": record["top"], "neighbor": record.get("neighbors", ())}
        row = {"path": path} | {name: record[name] for name in self.COLUMNS}
        for kind, entries in lists.items():
            for number, entry in enumerate(entries, 1):
                row |= {f"{kind}{number}_{name}": value for name, value in entry.items()}
        if self._is_first:
            self._writer.writerow(row)
            self._is_first = False
        self._writer.writerow(row.values())


def _drawings() -> str:
    return storage.expand(flags.FLAGS.explain, "--explain", remote=False)


def _explain(classifier: OpenSetClassifier, names: list[str], images_NxHxWxC: np.ndarray, taken: set[str]) -> None:
    directory = _drawings()
    for name, image, map_HxW in zip(names, images_NxHxWxC, classifier.maps(images_NxHxWxC)):
        images_lib.overlay(image, map_HxW).save(os.path.join(directory, images_lib.drawing_name(name, taken)))


def _main(argv: list[str]) -> None:
    options = flags.FLAGS
    if len(argv) < 3:
        raise ValueError("predict takes the workdir of a run or an export, then image files, folders or -; see --help.")
    if options["threshold"].present and options["keep"].present:
        raise ValueError("--threshold and --keep exclude each other; give one of them.")
    if options.json and options.csv:
        raise ValueError("--json and --csv exclude each other; give one of them.")
    if options.explain:
        workdir_lib.check_directory(_drawings(), "--explain")
    paths = list(images_lib.find(argv[2:], sys.stdin))
    if not paths:
        raise ValueError("no image to classify: standard input must list one path a line, got none.")
    model = storage.expand(argv[1], "the model")
    classifier = OpenSetClassifier.load(model, threshold=options.threshold, keep=options.keep)
    for warning in classifier.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if options.explain:
        os.makedirs(_drawings(), exist_ok=True)
    writer = (_Json if options.json else _Csv if options.csv else _Plain)(classifier)
    broken, taken = [], set()
    for names, images_NxHxWxC in _read(classifier, paths, broken):
        for name, record in zip(
            names, classifier.records(images_NxHxWxC, top=options.top, neighbors=options.neighbors)
        ):
            writer.write(name, record)
        if options.explain:
            _explain(classifier, names, images_NxHxWxC, taken)
    if broken:
        sys.exit(1)


if __name__ == "__main__":
    flags.DEFINE_float("threshold", None, "Lowest score that counts as known; default: what --keep gives.")
    flags.DEFINE_float(
        "keep", 0.95, "Share of known images to accept, on average, from which the threshold follows.", 0, 1
    )
    flags.DEFINE_bool("json", False, "Print one JSON object per line: path, label, accepted, score, p_value, top, ...")
    flags.DEFINE_bool("csv", False, "Print a CSV table with the values of --json.")
    flags.DEFINE_integer("top", 3, "Number of classes to list with their scores.", lower_bound=1)
    flags.DEFINE_integer("neighbors", 0, "Number of training images to list, the most similar first.", lower_bound=0)
    flags.DEFINE_string("explain", None, "Directory for a PNG of each image with the gradient of its score.")
    cli.run(_main)
