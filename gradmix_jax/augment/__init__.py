"""Random views of images, made on the device inside the train step.

One view is, in this order: colour jitter, rotation, random resized crop, horizontal flip, grey, blur.
Normalising is a separate function. A step whose strength or probability is 0 is not part of the program at
all, and neither are hue, saturation and grey for images of one channel.

The functions below `views` work on one image and take its own key first, so that they can be mapped, and a
view depends on nothing but its key and its image: not on the batch it is in, nor on the number of devices.
(True of JAX's default threefry keys; `unsafe_rbg` keys give up just this under vmap.)

The semantics are torchvision's (ColorJitter, RandomResizedCrop, RandomRotation, RandomGrayscale), in float32
and without rounding to bytes between the steps. From dm_pix come hue and flip. Its brightness, contrast and
saturation follow TensorFlow's formulae (an added offset, a mean per channel, a scaled HSV saturation), which
are other operations; its rotation took 17 to 120 times as long as the one here, its blur 5 to 26 times
(images of 28 to 224 pixels, on a CPU).
"""

import dataclasses
import math
import numbers
from functools import partial

import dm_pix
import jax
import jax.numpy as jnp

JITTER = ("brightness", "contrast", "saturation", "hue")
CROP_ATTEMPTS = 10  # torchvision's number of boxes drawn before the fallback
BLUR_SIGMA = (0.1, 2.0)  # pixels; SimCLR, arXiv 2002.05709, appendix A


@dataclasses.dataclass(frozen=True)
class Spec:
    """What `views` does. Hashable, so it can be a static argument of `jax.jit`.

    crop_scale (low, high): share of the area that a crop keeps, 0 < low <= high <= 1; (1, 1) = no crop.
    crop_ratio (low, high): width / height of the crop, drawn log-uniformly, 0 < low <= high.
    jitter (brightness, contrast, saturation, hue): half-widths of the draws around 1, 1, 1 and 0; hue <= 0.5.
    jitter_prob, flip_prob, grey_prob, blur_prob: share of the images that each applies to, in [0, 1].
    rotation_degrees: the angle is uniform in +- this, in [0, 180].

    Raises ValueError, naming augment.<key>, for a value outside of these.
    """

    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    jitter: tuple[float, float, float, float]
    jitter_prob: float
    flip_prob: float
    grey_prob: float
    rotation_degrees: float
    blur_prob: float

    def __post_init__(self):
        for name, length in (("crop_scale", 2), ("crop_ratio", 2), ("jitter", 4)):
            object.__setattr__(self, name, _numbers(name, getattr(self, name), length))
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"augment.crop_scale must be 0 < low <= high <= 1, not {self.crop_scale}.")
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ValueError(f"augment.crop_ratio must be 0 < low <= high, not {self.crop_ratio}.")
        if min(self.jitter) < 0 or self.jitter[3] > 0.5:
            raise ValueError(f"augment.jitter must be at least 0, its hue at most 0.5, not {self.jitter}.")
        for name in ("jitter_prob", "flip_prob", "grey_prob", "blur_prob"):
            _check_between(name, getattr(self, name), 0, 1)
        _check_between("rotation_degrees", self.rotation_degrees, 0, 180)


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(name, values, length):
    if not isinstance(values, (tuple, list)) or len(values) != length or not all(map(_is_number, values)):
        raise ValueError(f"augment.{name} must be {length} numbers, not {values!r}.")
    return tuple(float(value) for value in values)


def _check_between(name, value, low, high):
    if not _is_number(value) or not low <= value <= high:
        raise ValueError(f"augment.{name} must be a number from {low} to {high}, not {value!r}.")


def views(keys_B, images_BxHxWxC, spec, *, num_views=2):
    """`num_views` random views of each image.

    Args:
      keys_B: one typed JAX key per image. View v of image i is made from `fold_in(keys_B[i], v)` alone.
      images_BxHxWxC: uint8, C = 1 or 3.
      spec: a `Spec`.
      num_views: V >= 1.

    Returns:
      float32 [V*B, H, W, C] in [0, 1], view-major (all images of view 0 come first), not normalised.

    Raises:
      ValueError: images of another type or shape, not one key per image, or num_views < 1.
    """
    shape = images_BxHxWxC.shape
    if images_BxHxWxC.dtype != jnp.uint8 or len(shape) != 4 or shape[-1] not in (1, 3):
        raise ValueError(f"views takes uint8 [B,H,W,C] with C = 1 or 3, not {images_BxHxWxC.dtype} {shape}.")
    if keys_B.shape != shape[:1]:
        raise ValueError(f"views takes one key per image, not keys {keys_B.shape} for images {shape}.")
    if num_views < 1:
        raise ValueError(f"num_views must be at least 1, not {num_views}.")
    # One flat axis of V*B, not a vmap in a vmap: the random bits of the latter take XLA twice as long to compile.
    keys = jax.vmap(jax.random.fold_in)(
        jnp.concatenate([keys_B] * num_views), jnp.repeat(jnp.arange(num_views), shape[0])
    )
    images = jnp.concatenate([images_BxHxWxC] * num_views).astype(jnp.float32) / 255
    return jax.vmap(partial(view, spec=spec))(keys, images)


def view(key, image_HxWxC, spec):
    """One random view of one image, float32 in [0, 1] -> the same; see `Spec`."""
    # Always six keys: switching one step off leaves the draws of all others as they were.
    jitter_key, rotation_key, crop_key, flip_key, grey_key, blur_key = jax.random.split(key, 6)
    image = color_jitter(jitter_key, image_HxWxC, strengths=spec.jitter, prob=spec.jitter_prob)
    image = rotate(rotation_key, image, degrees=spec.rotation_degrees)
    image = random_resized_crop(crop_key, image, scale=spec.crop_scale, ratio=spec.crop_ratio)
    image = horizontal_flip(flip_key, image, prob=spec.flip_prob)
    image = random_grey(grey_key, image, prob=spec.grey_prob)
    return random_blur(blur_key, image, prob=spec.blur_prob)


def normalize(images, *, mean, std):
    """(images - mean) / std per channel, for images [..., C] and C numbers each.

    Raises ValueError if the images are not floating point, there are not C of each, or a std is not above 0.
    """
    channels = images.shape[-1]
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"normalize takes floating point images in [0, 1], not {images.dtype}.")
    if not len(mean) == len(std) == channels or min(std) <= 0:
        raise ValueError(f"normalize needs {channels} means and {channels} stds > 0, not {mean} and {std}.")
    per_channel = (1,) * (images.ndim - 1) + (channels,)
    mean, std = (jnp.reshape(jnp.array(values, images.dtype), per_channel) for values in (mean, std))
    return (images - mean) / std


def grey(image_HxWxC):
    """Luma [H, W] of an RGB or one-channel image: ITU-R 601, as Pillow's convert('L')."""
    if image_HxWxC.shape[-1] == 1:
        return image_HxWxC[..., 0]
    # Not a dot product (as dm_pix has it): that would not fuse, and would run in bfloat16 or TF32 by default.
    return 0.299 * image_HxWxC[..., 0] + 0.587 * image_HxWxC[..., 1] + 0.114 * image_HxWxC[..., 2]


def color_jitter(key, image_HxWxC, *, strengths, prob):
    """torchvision's ColorJitter with probability `prob`: four operations, each once, in random order.

    Args:
      strengths: (b, c, s, h). The factors of brightness, contrast and saturation are uniform in
        [max(0, 1-b), 1+b] etc., the shift of hue in [-h, h], in turns of the colour circle.
      prob: share of the images that are changed at all.
    """
    coloured = image_HxWxC.shape[-1] == 3
    active = [i for i, strength in enumerate(strengths) if strength > 0 and (coloured or i < 2)]
    if not active or prob == 0:
        return image_HxWxC
    # One call for all draws (each call is a kernel), always of nine numbers, so that switching one operation
    # off leaves the draws of the others as they were.
    uniform = jax.random.uniform(key, (9,))
    low = [max(0.0, 1 - strength) for strength in strengths[:3]] + [-strengths[3]]
    high = [1 + strength for strength in strengths[:3]] + [strengths[3]]
    factors = [low[i] + (high[i] - low[i]) * uniform[i] for i in active]
    order = jnp.argsort(jnp.stack([uniform[4 + i] for i in active]))
    jittered = jitter_in_order(image_HxWxC, tuple(JITTER[i] for i in active), factors, order)
    return jnp.where(uniform[8] < prob, jittered, image_HxWxC)


def jitter_in_order(image_HxWxC, operations, factors, order_N):
    """Apply the N `operations` (names from JITTER), each with its factor; round r applies number order_N[r].

    The order is data, and under vmap a switch would compute all four operations in each of four rounds. But
    three of them are one formula with three weights (`_blend`), so a round costs one blend whichever it is;
    and hue, by far the dearest, is computed once: rounds before it, hue, rounds after it, where a round on
    the wrong side blends with the identity. By XLA's cost analysis this takes 0.36 of the FLOPs and 0.56 of
    the bytes of the switch.
    """
    one, zero = jnp.ones(()), jnp.zeros(())
    weights = {
        "brightness": lambda factor: (factor, zero, zero),
        "contrast": lambda factor: (factor, zero, 1 - factor),
        "saturation": lambda factor: (factor, 1 - factor, zero),
        "hue": lambda shift: (one, zero, zero),
    }
    rows = [jnp.stack(weights[name](factor)) for name, factor in zip(operations, factors)]
    weights_Nx3 = jnp.stack(rows)[order_N]
    image, rounds = image_HxWxC, len(operations)
    if "hue" not in operations:
        for r in range(rounds):
            image = _blend(image, weights_Nx3[r])
        return image
    hue = operations.index("hue")
    hue_round, identity = jnp.argmax(order_N == hue), jnp.stack([one, zero, zero])
    for r in range(rounds - 1):
        image = _blend(image, jnp.where(r < hue_round, weights_Nx3[r], identity))
    image = dm_pix.adjust_hue(image, factors[hue])
    for r in range(1, rounds):
        image = _blend(image, jnp.where(r > hue_round, weights_Nx3[r], identity))
    return image


def _blend(image_HxWxC, weights_3):
    """Weighted sum of image, grey image and mean grey; clipped, as torchvision does after each operation."""
    grey_HxW = grey(image_HxWxC)
    offset_HxW = weights_3[1] * grey_HxW + weights_3[2] * jnp.mean(grey_HxW)
    return jnp.clip(weights_3[0] * image_HxWxC + offset_HxW[..., None], 0, 1)


def rotate(key, image_HxWxC, *, degrees):
    """Rotation about the centre by an angle uniform in +-degrees: bilinear, zeros from outside."""
    if degrees == 0:
        return image_HxWxC
    limit = math.radians(degrees)
    return rotate_by(image_HxWxC, jax.random.uniform(key, minval=-limit, maxval=limit))


def rotate_by(image_HxWxC, radians):
    """Counter-clockwise rotation about the centre; bilinear between pixels, zeros outside of the image."""
    height, width = image_HxWxC.shape[:2]
    center_y, center_x = (height - 1) / 2, (width - 1) / 2
    y_Hx1 = (jnp.arange(height) - center_y)[:, None]
    x_1xW = (jnp.arange(width) - center_x)[None, :]
    cos, sin = jnp.cos(radians), jnp.sin(radians)
    source = [cos * y_Hx1 + sin * x_1xW + center_y, cos * x_1xW - sin * y_Hx1 + center_x]
    bilinear = partial(jax.scipy.ndimage.map_coordinates, coordinates=source, order=1, mode="constant")
    return jax.vmap(bilinear, in_axes=-1, out_axes=-1)(image_HxWxC)


def random_resized_crop(key, image_HxWxC, *, scale, ratio):
    """torchvision's RandomResizedCrop, back to the image's own size."""
    if scale[0] == 1:
        return image_HxWxC
    return resized_crop(image_HxWxC, crop_box(key, image_HxWxC.shape[:2], scale=scale, ratio=ratio))


def crop_box(key, image_size, *, scale, ratio):
    """Draw box_4 = (top, left, height, width) of a crop: whole pixels, as float32, inside of the image.

    As torchvision: the area share is uniform in `scale`, width / height log-uniform in `ratio`; a box that
    does not fit into the image is drawn again, so large shares come out rarer than small ones. If ten do not
    fit, the box is the largest central one whose width / height is in `ratio`.
    """
    image_height, image_width = image_size
    uniform = jax.random.uniform(key, (2 * CROP_ATTEMPTS + 2,))
    area_A = image_height * image_width * (scale[0] + (scale[1] - scale[0]) * uniform[:CROP_ATTEMPTS])
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    ratio_A = jnp.exp(log_low + (log_high - log_low) * uniform[CROP_ATTEMPTS:-2])
    height_A, width_A = jnp.round(jnp.sqrt(area_A / ratio_A)), jnp.round(jnp.sqrt(area_A * ratio_A))
    fits_A = (height_A >= 1) & (height_A <= image_height) & (width_A >= 1) & (width_A <= image_width)
    first = jnp.argmax(fits_A)
    # The uniform draw is below 1 by more than float32 rounding, so the floor never reaches the sum itself.
    top = jnp.floor(uniform[-2] * (image_height - height_A[first] + 1))
    left = jnp.floor(uniform[-1] * (image_width - width_A[first] + 1))
    drawn = jnp.stack([top, left, height_A[first], width_A[first]])
    height = max(1, min(image_height, round(image_width / ratio[0])))
    width = max(1, min(image_width, round(image_height * ratio[1])))
    top, left = (image_height - height) // 2, (image_width - width) // 2
    return jnp.where(jnp.any(fits_A), drawn, jnp.array([top, left, height, width], jnp.float32))


def resized_crop(image_HxWxC, box_4):
    """The box (of `crop_box`; may be fractional) of the image, resized bilinearly to the image's size.

    As Pillow's `resize(box=...)`, by two small matrix products. Output pixels at the edge of the box draw on
    up to half an input pixel beyond it, where the image goes on.
    """
    scale = jnp.array(image_HxWxC.shape[:2], jnp.float32) / box_4[2:]
    translation = -scale * box_4[:2]
    shape, spatial_axes = image_HxWxC.shape, (0, 1)
    cropped = jax.image.scale_and_translate(image_HxWxC, shape, spatial_axes, scale, translation, "linear")
    return jnp.clip(cropped, 0, 1)  # the matrix products of some accelerators round to just above 1


def horizontal_flip(key, image_HxWxC, *, prob):
    """Mirror left and right with probability `prob`."""
    if prob == 0:
        return image_HxWxC
    return dm_pix.random_flip_left_right(key, image_HxWxC, probability=prob)


def random_grey(key, image_HxWxC, *, prob):
    """Replace all channels by the grey image with probability `prob`; one channel stays as it is."""
    if prob == 0 or image_HxWxC.shape[-1] == 1:
        return image_HxWxC
    return jnp.where(jax.random.bernoulli(key, prob), grey(image_HxWxC)[..., None], image_HxWxC)


def random_blur(key, image_HxWxC, *, prob):
    """Gaussian blur with probability `prob`, sigma uniform in BLUR_SIGMA (for 224-pixel images)."""
    if prob == 0:
        return image_HxWxC
    uniform = jax.random.uniform(key, (2,))
    sigma = BLUR_SIGMA[0] + (BLUR_SIGMA[1] - BLUR_SIGMA[0]) * uniform[1]
    return jnp.where(uniform[0] < prob, gaussian_blur(image_HxWxC, sigma), image_HxWxC)


def gaussian_blur(image_HxWxC, sigma):
    """Gaussian blur, sigma in pixels; at the border over the pixels that exist (weights sum to 1)."""
    # Matrix products, like the crop: convolving each image with a kernel of its own is slow.
    rows_HxH, columns_WxW = (_gaussian_weights(size, sigma) for size in image_HxWxC.shape[:2])
    blurred = jnp.einsum("hwc,yh,xw->yxc", image_HxWxC, rows_HxH, columns_WxW, precision="highest")
    return jnp.clip(blurred, 0, 1)


def _gaussian_weights(size, sigma):
    position = jnp.arange(size, dtype=jnp.float32)
    weights = jnp.exp(-((position[:, None] - position[None, :]) ** 2) / (2 * sigma**2))
    return weights / jnp.sum(weights, axis=1, keepdims=True)
