"""Facts about the data that the processes of a pod compare before training."""

from typing import Any

import numpy as np

from gradmix_jax.data.build import OpenSet
from gradmix_jax.data.source import hash_of

# Number of images of each part that are decoded for this.
COMPARED = 64


def facts(data: OpenSet) -> dict[str, Any]:
    """Counts and labels of the images of every part, and the pixels of some; training compares all resident pixels.

    File names do not count, since paths may differ between hosts.
    """
    found: dict[str, Any] = {"the known classes": list(data.class_names)}
    for part in ("train", "validation", "test_known", "test_unknown", "negative"):
        source = getattr(data, part)
        if source is None or not len(source):
            continue
        places = np.unique(np.linspace(0, len(source) - 1, COMPARED).astype(int))
        found |= {
            f"the number of images of {part}": len(source),
            f"the hash of the labels of {part}": hash_of(source.labels),
            f"the hash of some images of {part}": hash_of(*(source[int(place)] for place in places)),
        }
    return found
