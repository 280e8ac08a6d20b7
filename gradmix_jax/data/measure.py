"""Measures training images: their size, whether they are gray, and the mean and standard deviation of channels."""

import dataclasses

import numpy as np

from gradmix_jax.data.source import BadImage, Source, read_all, reason_of

# Number of evenly spaced images to measure: the mean of 1,000 is within .01 of that of all.
SAMPLE = 1000
# Image sizes to choose from, all divisible by 8, as a network with four stages needs.
SIZES = (16, 24, 32, 48, 64)
# A channel that never changes has no standard deviation to divide by.
LEAST_STD = 0.01


@dataclasses.dataclass(frozen=True)
class Channels:
    """Mean and standard deviation over all pixels of each channel, for images in [0, 1], to four digits."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def sample(source: Source, count: int = SAMPLE) -> Source:
    """At most `count` evenly spaced images of a source."""
    return source.take(np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)))


def shorter_side(source: Source) -> int:
    """The median length in pixels of the images' shorter sides; no image is decoded.

    Raises:
      ValueError: a file cannot be read as an image.
    """
    return int(np.median([min(_size(source, int(position))) for position in source.indices]))


def _size(source: Source, position: int) -> tuple[int, int]:
    try:
        with source.records.open(position) as image:
            return image.size
    except Exception as error:  # as in `Source.__getitem__`
        what = source.records.describe(position)
        raise BadImage(
            f"{what} ({reason_of(error, what)}) cannot be read; repair or remove it, or set dataset.bad_images to "
            "'skip'."
        ) from error


def size_for(side: int) -> int:
    """The one of `SIZES` whose ratio to this shorter side is closest to 1."""
    return min(SIZES, key=lambda size: max(size / side, side / size))


def is_gray(images_NxHxWx3: np.ndarray) -> bool:
    """Whether the three channels of every image are equal."""
    return bool((images_NxHxWx3 == images_NxHxWx3[..., :1]).all())


def channels(images_NxHxWxC: np.ndarray) -> Channels:
    """Mean and standard deviation, at least `LEAST_STD`, of each channel of uint8 images."""
    pixels_PxC = images_NxHxWxC.reshape(-1, images_NxHxWxC.shape[-1])
    # Integer sums are exact and need no float64 copy of all pixels.
    counts_Cx256 = [np.bincount(pixels_P, minlength=256) for pixels_P in pixels_PxC.T]
    levels = np.arange(256) / 255
    means = [float(np.average(levels, weights=counts)) for counts in counts_Cx256]
    stds = [float(np.sqrt(np.average((levels - m) ** 2, weights=n))) for m, n in zip(means, counts_Cx256)]
    return Channels(tuple(round(m, 4) for m in means), tuple(max(LEAST_STD, round(s, 4)) for s in stds))


def decoded(source: Source, *, image_size: int, channels: int) -> np.ndarray:
    """The images of a source at another size and channel count: uint8 [N, H, W, C]; raises as `read_all`."""
    return read_all(dataclasses.replace(source, image_size=image_size, channels=channels))
