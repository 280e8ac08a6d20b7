"""The 14 operations of RandAugment, applied to one image; the choice is traced data.

Names, formulas and borders are those of Pillow (ImageOps, ImageEnhance, Image.transform), which both RandAugment and
AugMix were published with. Images are float32 in [0, 1] and not rounded to bytes in between, except where an
operation is defined on bytes (equalize, posterize). Solarize comes from dm_pix. Its brightness, contrast and
saturation are different operations (see `steps.py`), and its affine_transform also interpolates between channels,
fetching 8 pixels per value where 4 suffice.
"""

import dataclasses
import math

import dm_pix
import jax.numpy as jnp

from gradmix_jax.augment.steps import blend, blend_weights

IDENTITY = ("identity",)
TONE = ("autocontrast", "equalize", "posterize", "solarize")
ENHANCE = ("color", "contrast", "brightness", "sharpness")
GEOMETRY = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
OPERATIONS = (*IDENTITY, *TONE, *ENHANCE, *GEOMETRY)


@dataclasses.dataclass(frozen=True)
class Ranges:
    """The effect of the operations at strength 1, in either direction for operations with a sign.

    translate: share of the image's side; shear: pixels sideways per pixel; enhance: distance of the factor from 1.
    bits: bits of each byte that posterize keeps at strength 0; at strength 1, it keeps 4 fewer.
    bits_rounding: added to the number of bits lost before it is truncated to an integer.
    Solarize inverts values of at least 1 - strength.
    """

    translate: float
    bits: int
    bits_rounding: float
    degrees: float = 30.0
    shear: float = 0.3
    enhance: float = 0.9


def apply(image_HxWxC, number, strength, sign, *, names, ranges):
    """Apply the operation names[number] to one image.

    The number differs between images, and under vmap a `lax.switch` would compute every operation for every image.
    Most operations share a formula with different weights: the five of GEOMETRY are one affine transform, the four of
    ENHANCE one weighted sum of the image and three others made from it. So an image pays for one transform, one sum
    and TONE, whichever operation it gets.
    By XLA's cost analysis this takes 0.46 of the FLOPs and 0.68 of the bytes of the switch.

    Args:
      image_HxWxC: float32 in [0, 1], C = 1 or 3.
      number: which of `names`, an integer.
      strength: in [0, 1], see `ranges`.
      sign: 1 or -1, the direction of operations that have two, such as rotate or brightness.
      names: a tuple of the operations to choose from; families without any of them cost nothing.
      ranges: a `Ranges`.

    Returns:
      the image, of the same shape and range.
    """
    # Each family starts from the image, not from the result of the one before, which XLA:CPU would recompute for
    # each of the pixels that a transform fetches or a sum takes in.
    image = image_HxWxC
    of_family = lambda family: jnp.isin(number, jnp.array([names.index(name) for name in family]))
    if set(names) & set(TONE):
        image = _tone(image_HxWxC, number, strength, names=names, ranges=ranges)
    if set(names) & set(ENHANCE):
        weights_4 = _of_names(names, number, _enhance_weights(1 + sign * ranges.enhance * strength))
        image = jnp.where(of_family(ENHANCE), enhance(image_HxWxC, weights_4), image)
    if set(names) & set(GEOMETRY):
        height, width, _ = image.shape
        matrix_6 = _of_names(names, number, _matrices(height, width, strength * sign, ranges))
        image = jnp.where(of_family(GEOMETRY), affine(image_HxWxC, matrix_6), image)
    return image


def _of_names(names, number, rows):
    """Row of names[number]; rows["identity"] for operations of another family."""
    stacked = [jnp.stack([jnp.asarray(x, jnp.float32) for x in rows.get(name, rows["identity"])]) for name in names]
    return jnp.stack(stacked)[number]


def _tone(image_HxWxC, number, strength, *, names, ranges):
    lost_bits = jnp.floor(4 * strength + ranges.bits_rounding).astype(jnp.int32) + 8 - ranges.bits
    lost_bits = jnp.minimum(lost_bits, 7)  # like Pillow, keep at least one bit; zero bits would be a black image
    results = {
        "autocontrast": lambda: autocontrast(image_HxWxC),
        "equalize": lambda: equalize(image_HxWxC),
        "posterize": lambda: posterize(image_HxWxC, lost_bits),
        "solarize": lambda: dm_pix.solarize(image_HxWxC, 1 - strength),
    }
    image = image_HxWxC
    for name in TONE:
        if name in names:
            image = jnp.where(number == names.index(name), results[name](), image)
    return image


def autocontrast(image_HxWxC):
    """Each channel stretched to [0, 1]; a constant one is unchanged. Pillow's ImageOps.autocontrast rounds down."""
    low, high = (reduce(image_HxWxC, axis=(0, 1), keepdims=True) for reduce in (jnp.min, jnp.max))
    constant = high <= low
    stretched = (image_HxWxC - low) / jnp.where(constant, 1, high - low)
    return jnp.where(constant, image_HxWxC, stretched)


def equalize(image_HxWxC):
    """Each channel's byte values spread to be about equally frequent; exactly Pillow's ImageOps.equalize."""
    channels = image_HxWxC.shape[-1]
    values_PxC = _to_bytes(image_HxWxC).reshape(-1, channels)
    # A histogram by scatter-add. Comparing every pixel with all 256 values would be one fused sum in theory,
    # but XLA:CPU materialized the comparisons: 680 ms and 415 MB for 128 images of 32 x 32, against 3 ms and 5 MB.
    count_256xC = jnp.zeros((256, channels), jnp.int32).at[values_PxC, jnp.arange(channels)[None]].add(1)
    below_256xC = jnp.cumsum(count_256xC, axis=0) - count_256xC
    # As in Pillow, pixels of the largest value do not count, so a constant channel has none left.
    step_1xC = jnp.max(jnp.where(below_256xC < values_PxC.shape[0], below_256xC, 0), axis=0, keepdims=True) // 255
    table_256xC = jnp.minimum((step_1xC // 2 + below_256xC) // jnp.maximum(step_1xC, 1), 255)
    table_256xC = jnp.where(step_1xC == 0, jnp.arange(256)[:, None], table_256xC)
    equalized = jnp.take_along_axis(table_256xC, values_PxC, axis=0).reshape(image_HxWxC.shape) / 255
    return equalized.astype(image_HxWxC.dtype)


def posterize(image_HxWxC, lost_bits):
    """The lowest `lost_bits` bits of every byte set to 0; Pillow's ImageOps.posterize to 8 - lost_bits bits."""
    return (_to_bytes(image_HxWxC) & -(1 << lost_bits)).astype(image_HxWxC.dtype) / 255


def _to_bytes(image):
    return jnp.round(image * 255).astype(jnp.int32)


def _enhance_weights(factor):
    """Weights of (image, gray, its mean, smooth image) of each operation of ImageEnhance."""
    without_smooth = {name: (*weights, 0) for name, weights in blend_weights(factor).items()}
    # Pillow's names: its Color is torchvision's saturation.
    return {**without_smooth, "color": without_smooth["saturation"], "sharpness": (factor, 0, 0, 1 - factor)}


def enhance(image_HxWxC, weights_4):
    """Weighted sum of image, gray image, mean gray and smooth image, clipped."""
    return jnp.clip(blend(image_HxWxC, weights_4) + weights_4[3] * smooth(image_HxWxC), 0, 1)


def smooth(image_HxWxC):
    """Pillow's ImageFilter.SMOOTH: mean of 3 x 3 pixels, the middle one five times; the border stays as it is."""
    rows = image_HxWxC[:-2] + image_HxWxC[1:-1] + image_HxWxC[2:]
    inside = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * image_HxWxC[1:-1, 1:-1]) / 13
    return image_HxWxC.at[1:-1, 1:-1].set(inside)


def _matrices(height, width, amount, ranges):
    """The source of (y, x) in the result: (yy, yx, y0, xy, xx, x0) with y_from = yy * y + yx * x + y0, etc."""
    angle = math.radians(ranges.degrees) * amount
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    middle_y, middle_x = height / 2, width / 2
    shear = ranges.shear * amount
    # Whole pixels, as published, so nothing is blurred.
    down, right = (jnp.trunc(ranges.translate * amount * side) for side in (height, width))
    return {
        "identity": (1, 0, 0, 0, 1, 0),
        "rotate": (
            cos,
            sin,
            middle_y - cos * middle_y - sin * middle_x,
            -sin,
            cos,
            middle_x + sin * middle_y - cos * middle_x,
        ),
        "shear_x": (1, 0, 0, shear, 1, 0),
        "shear_y": (1, shear, 0, 0, 1, 0),
        "translate_x": (1, 0, 0, 0, 1, right),
        "translate_y": (1, 0, down, 0, 1, 0),
    }


def affine(image_HxWxC, matrix_6):
    """Each pixel from its source by the matrix (see `_matrices`): bilinear, zeros outside the image.

    Pillow's Image.transform(AFFINE, BILINEAR): the first pixel's center is (0.5, 0.5), and positions up to half a
    pixel beyond the outermost centers are inside and take the outermost pixel.
    """
    height, width, _ = image_HxWxC.shape
    y_Hx1, x_1xW = (jnp.arange(height) + 0.5)[:, None], (jnp.arange(width) + 0.5)[None]
    yy, yx, y0, xy, xx, x0 = matrix_6
    from_y, from_x = yy * y_Hx1 + yx * x_1xW + y0, xy * y_Hx1 + xx * x_1xW + x0
    inside = (from_y >= 0) & (from_y < height) & (from_x >= 0) & (from_x < width)
    above, left = jnp.floor(from_y - 0.5), jnp.floor(from_x - 0.5)
    share_y, share_x = (from_y - 0.5 - above)[..., None], (from_x - 0.5 - left)[..., None]

    def pixels(down, right):
        row = jnp.clip(above.astype(jnp.int32) + down, 0, height - 1)
        return image_HxWxC[row, jnp.clip(left.astype(jnp.int32) + right, 0, width - 1)]

    upper = (1 - share_x) * pixels(0, 0) + share_x * pixels(0, 1)
    lower = (1 - share_x) * pixels(1, 0) + share_x * pixels(1, 1)
    return jnp.where(inside[..., None], (1 - share_y) * upper + share_y * lower, 0)
