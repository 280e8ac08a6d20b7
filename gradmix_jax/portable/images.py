"""Image files to classify: found, read one by one, and drawn with an explanation."""

import os
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from gradmix_jax.data.files import EXTENSIONS
from gradmix_jax.data.source import reason_of, to_array
from gradmix_jax.method.checks import check_images

# Pixels of the shorter side of a drawing, at least.
DRAWN = 224


def find(paths: Iterable[str], listed: Iterable[str] = ()) -> Iterator[str]:
    """The image files named on a command line.

    Args:
      paths: files, taken as they are; folders, searched at any depth for files with an image's ending, in sorted
        order, hidden ones left out; "-" for those of `listed`.
      listed: lines with a path each.

    Raises:
      ValueError: a folder has no image.
    """
    for path in paths:
        if path == "-":
            yield from find(line.rstrip("\r\n") for line in listed if line.strip())
        elif os.path.isdir(path):
            found = list(_in_folder(path))
            if not found:
                raise ValueError(f"{path} has no image; looked for files ending in {', '.join(EXTENSIONS)}.")
            yield from found
        else:
            yield path


def _in_folder(folder: str) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield os.path.join(parent, name)


def as_array(image, size: int, channels: int, *, background: str = "white") -> np.ndarray:
    """uint8 [size, size, channels] of a Pillow image, a file name, or an array [H, W, C] with C = 1 or 3.

    An array is float in [0, 1], as everywhere in the library, or uint8.

    See `to_array` of `data.source`, which training reads its images with.

    Raises:
      ValueError: a file that cannot be read as an image, or an array of another type or shape.
    """
    if isinstance(image, Image.Image):
        return to_array(image, size, channels, background=background)
    if isinstance(image, (str, os.PathLike)):
        try:
            with Image.open(image) as opened:
                return to_array(opened, size, channels, background=background)
        except Exception as error:  # Pillow's decoders raise anything for a broken file
            raise ValueError(f"{image} cannot be read as an image: {reason_of(error, str(image))}") from error
    array = np.asarray(image)
    is_number = array.dtype == np.uint8 or np.issubdtype(array.dtype, np.floating)
    if not is_number or array.ndim != 3 or array.shape[-1] not in (1, 3):
        given = f"{array.dtype} {array.shape}"
        raise ValueError(f"images must be float in [0, 1] or uint8, [H, W, C] with C = 1 or 3, got {given}.")
    if array.dtype != np.uint8:
        check_images(array[None])
        array = np.round(255 * array).astype(np.uint8)
    return to_array(Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array), size, channels)


def overlay(image_HxWxC: np.ndarray, map_HxW: np.ndarray) -> Image.Image:
    """The model's input image, and beside it the same in gray under the map, whose opacity grows with its value.

    Args:
      image_HxWxC: uint8, C = 1 or 3.
      map_HxW: in [0, 1].
    """
    from matplotlib import colormaps

    color_HxWx3 = np.broadcast_to(image_HxWxC, (*image_HxWxC.shape[:2], 3)).astype(np.float32) / 255
    gray_HxWx3 = color_HxWx3.mean(axis=2, keepdims=True).repeat(3, axis=2)
    mapped_HxWx3 = colormaps["magma"](map_HxW)[..., :3]
    share_HxWx1 = 0.8 * map_HxW[..., None]
    both = np.concatenate([color_HxWx3, (1 - share_HxWx1) * gray_HxWx3 + share_HxWx1 * mapped_HxWx3], axis=1)
    factor = max(1, -(-DRAWN // image_HxWxC.shape[0]))
    return Image.fromarray((255 * both).round().astype(np.uint8).repeat(factor, axis=0).repeat(factor, axis=1))


def drawing_name(path: str, taken: set[str]) -> str:
    """A unique name for the drawing of a file, ending in .png; added to `taken`."""
    stem = os.path.splitext(os.path.normpath(path).lstrip("./\\"))[0].replace(os.sep, "_")
    name, number = f"{stem}.png", 1
    while name in taken:
        number += 1
        name = f"{stem}_{number}.png"
    taken.add(name)
    return name
