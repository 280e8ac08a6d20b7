"""Images of nothing: `noise:uniform` and `noise:gaussian`, the farthest that is out of any distribution."""

import numpy as np

from gradmix_jax.data.source import ArrayRecords, DataSet

NUM_IMAGES = 1000
KINDS = {
    "noise:uniform": lambda random, shape: random.integers(0, 256, shape, dtype=np.uint8),
    # Around grey, with most values within the range.
    "noise:gaussian": lambda random, shape: random.normal(127.5, 64, shape).clip(0, 255).astype(np.uint8),
}


def load(name: str, *, image_size: int, channels: int) -> DataSet:
    """NUM_IMAGES test images of one class, the same at each call; every value of every pixel is drawn apart."""
    images = KINDS[name](np.random.default_rng(0), (NUM_IMAGES, image_size, image_size, channels))
    images = images if channels == 3 else images[..., 0]
    records = ArrayRecords(images, np.zeros(NUM_IMAGES, np.int32), name)
    return DataSet((f"{name.partition(':')[2]} noise",), None, records)
