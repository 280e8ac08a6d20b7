"""scikit-learn's handwritten digits as a TFDS dataset: 1,797 gray images of 8x8 pixels, 10 classes, no download.

Importing this module registers the name `digits` with TFDS.
"""

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

_TEST_SHARE = 1 / 3


class Digits(tfds.core.GeneratorBasedBuilder):
    """`digits`, with a fixed split: in every class the last third of the images, in file order, is the test set.

    Neighbors in the file are similar, so this is harder than a shuffled split (support vector machine: accuracy .966
    against .987), like test data from another source. 1,201 training and 596 test images; values 0..16 become 0..255.
    """

    VERSION = tfds.core.Version("1.0.0")
    # Where TFDS looks for download checksums, of which there are none. To find this out itself, TFDS 4.9.10 imports a
    # package that it does not declare (importlib_resources).
    code_path = None

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        from sklearn.datasets import load_digits

        data = load_digits()
        is_test = last_share(data.target, _TEST_SHARE)
        images = np.round(data.images * (255 / 16)).astype(np.uint8)
        return {
            "train": _examples(images, data.target, np.flatnonzero(~is_test)),
            "test": _examples(images, data.target, np.flatnonzero(is_test)),
        }

    def _generate_examples(self):
        """Unused: `_split_generators` returns the examples themselves."""


def last_share(labels: np.ndarray, share: float) -> np.ndarray:
    """bool [N]: True for the last `share` (rounded down) of the images of each class."""
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        chosen[places[len(places) - int(len(places) * share) :]] = True
    return chosen


def _examples(images, labels, places):
    for place in places:
        # A Pillow image, because TFDS encodes arrays with TensorFlow.
        yield int(place), {"image": Image.fromarray(images[place]), "label": int(labels[place])}
