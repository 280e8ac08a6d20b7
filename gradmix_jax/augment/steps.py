"""The steps of a standard view; each function takes a key and one image.

The semantics are torchvision's (ColorJitter, RandomResizedCrop, RandomRotation, RandomGrayscale), in float32
and without rounding to bytes between the steps. Hue and flip come from dm_pix. Its brightness, contrast and
saturation follow TensorFlow's formulas (an added offset, a mean per channel, a scaled HSV saturation), which
are different operations; its rotation took 17 to 120 times as long as ours, its blur 5 to 26 times
(images of 28 to 224 pixels, on a CPU).
"""

import math
from functools import partial

import dm_pix
import jax
import jax.numpy as jnp

JITTER = ("brightness", "contrast", "saturation", "hue")
CROP_ATTEMPTS = 10  # torchvision's number of boxes drawn before the fallback
BLUR_SIGMA = (0.1, 2.0)  # pixels; SimCLR, arXiv 2002.05709, appendix A


def gray(image_HxWxC):
    """Luma [H, W] of an RGB or one-channel image: ITU-R 601, as Pillow's convert('L')."""
    if image_HxWxC.shape[-1] == 1:
        return image_HxWxC[..., 0]
    # Not a dot product (as in dm_pix), which would not fuse and would run in bfloat16 or TF32 by default.
    return 0.299 * image_HxWxC[..., 0] + 0.587 * image_HxWxC[..., 1] + 0.114 * image_HxWxC[..., 2]


def color_jitter(key, image_HxWxC, *, strengths, prob):
    """torchvision's ColorJitter with probability `prob`: four operations, each once, in random order.

    Args:
      strengths: (b, c, s, h). The factors of brightness, contrast and saturation are uniform in
        [max(0, 1-b), 1+b] etc., the shift of hue in [-h, h], in turns of the color circle.
      prob: probability that an image is changed at all.
    """
    colored = image_HxWxC.shape[-1] == 3
    active = [i for i, strength in enumerate(strengths) if strength > 0 and (colored or i < 2)]
    if not active or prob == 0:
        return image_HxWxC
    # One call for all draws (each call is a kernel), always of nine numbers, so that turning one operation
    # off does not change the draws of the others.
    uniform = jax.random.uniform(key, (9,))
    low = [max(0.0, 1 - strength) for strength in strengths[:3]] + [-strengths[3]]
    high = [1 + strength for strength in strengths[:3]] + [strengths[3]]
    factors = [low[i] + (high[i] - low[i]) * uniform[i] for i in active]
    order = jnp.argsort(jnp.stack([uniform[4 + i] for i in active]))
    jittered = jitter_in_order(image_HxWxC, tuple(JITTER[i] for i in active), factors, order)
    return jnp.where(uniform[8] < prob, jittered, image_HxWxC)


def jitter_in_order(image_HxWxC, operations, factors, order_N):
    """Apply the N `operations` (names from JITTER), each with its factor; round r applies number order_N[r].

    The order is traced data, and under vmap a switch would compute all four operations in each of four rounds. But
    three of them share a formula with three weights (`blend`), so any such round costs one blend;
    and hue, by far the most expensive, is computed once: rounds before it, hue, rounds after it, where a round on
    the wrong side blends with the identity. By XLA's cost analysis this takes 0.36 of the FLOPs and 0.56 of
    the bytes of the switch.
    """
    rows = [_weights_3("identity" if name == "hue" else name, factor) for name, factor in zip(operations, factors)]
    weights_Nx3 = jnp.stack(rows)[order_N]
    image, rounds = image_HxWxC, len(operations)
    if "hue" not in operations:
        for r in range(rounds):
            image = _blend(image, weights_Nx3[r])
        return image
    hue = operations.index("hue")
    hue_round, identity = jnp.argmax(order_N == hue), _weights_3("identity", 0)
    for r in range(rounds - 1):
        image = _blend(image, jnp.where(r < hue_round, weights_Nx3[r], identity))
    image = dm_pix.adjust_hue(image, factors[hue])
    for r in range(1, rounds):
        image = _blend(image, jnp.where(r > hue_round, weights_Nx3[r], identity))
    return image


def blend_weights(factor):
    """{name of an operation: its weights of (image, gray image, mean gray)}, see `blend`."""
    return {
        "identity": (1, 0, 0),
        "brightness": (factor, 0, 0),
        "contrast": (factor, 0, 1 - factor),
        "saturation": (factor, 1 - factor, 0),
    }


def blend(image_HxWxC, weights):
    """Weighted sum of image, gray image and mean gray by the first three of `weights`, not clipped."""
    gray_HxW = gray(image_HxWxC)
    offset_HxW = weights[1] * gray_HxW + weights[2] * jnp.mean(gray_HxW)
    return weights[0] * image_HxWxC + offset_HxW[..., None]


def _weights_3(name, factor):
    return jnp.stack([jnp.asarray(weight, jnp.float32) for weight in blend_weights(factor)[name]])


def _blend(image_HxWxC, weights_3):
    """`blend`, clipped, as torchvision does after each operation."""
    return jnp.clip(blend(image_HxWxC, weights_3), 0, 1)


def rotate(key, image_HxWxC, *, degrees):
    """Rotation about the center by an angle uniform in ±degrees: bilinear, zeros outside the image."""
    if degrees == 0:
        return image_HxWxC
    limit = math.radians(degrees)
    return rotate_by(image_HxWxC, jax.random.uniform(key, minval=-limit, maxval=limit))


def rotate_by(image_HxWxC, radians):
    """Counterclockwise rotation about the center; bilinear between pixels, zeros outside the image."""
    height, width = image_HxWxC.shape[:2]
    center_y, center_x = (height - 1) / 2, (width - 1) / 2
    y_Hx1 = (jnp.arange(height) - center_y)[:, None]
    x_1xW = (jnp.arange(width) - center_x)[None, :]
    cos, sin = jnp.cos(radians), jnp.sin(radians)
    source = [cos * y_Hx1 + sin * x_1xW + center_y, cos * x_1xW - sin * y_Hx1 + center_x]
    bilinear = partial(jax.scipy.ndimage.map_coordinates, coordinates=source, order=1, mode="constant")
    return jax.vmap(bilinear, in_axes=-1, out_axes=-1)(image_HxWxC)


def random_resized_crop(key, image_HxWxC, *, scale, ratio):
    """torchvision's RandomResizedCrop, resized back to the image's size."""
    if scale[0] == 1:
        return image_HxWxC
    return resized_crop(image_HxWxC, crop_box(key, image_HxWxC.shape[:2], scale=scale, ratio=ratio))


def crop_box(key, image_size, *, scale, ratio):
    """Draw box_4 = (top, left, height, width) of a crop: whole pixels, as float32, inside the image.

    As torchvision: the area share is uniform in `scale`, width / height log-uniform in `ratio`; a box that
    does not fit into the image is redrawn, so large shares are rarer than small ones. If ten do not
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

    Like Pillow's `resize(box=...)`, by two small matrix products. Output pixels at the edge of the box draw on
    up to half an input pixel beyond it, where the image continues.
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


def random_gray(key, image_HxWxC, *, prob):
    """Replace all channels by the gray image with probability `prob`; a single channel is unchanged."""
    if prob == 0 or image_HxWxC.shape[-1] == 1:
        return image_HxWxC
    return jnp.where(jax.random.bernoulli(key, prob), gray(image_HxWxC)[..., None], image_HxWxC)


def random_blur(key, image_HxWxC, *, prob):
    """Gaussian blur with probability `prob`, sigma uniform in BLUR_SIGMA (for 224-pixel images)."""
    if prob == 0:
        return image_HxWxC
    uniform = jax.random.uniform(key, (2,))
    sigma = BLUR_SIGMA[0] + (BLUR_SIGMA[1] - BLUR_SIGMA[0]) * uniform[1]
    return jnp.where(uniform[0] < prob, gaussian_blur(image_HxWxC, sigma), image_HxWxC)


def gaussian_blur(image_HxWxC, sigma):
    """Gaussian blur, sigma in pixels; at the border, over the existing pixels (weights sum to 1)."""
    # Matrix products, like the crop, because convolving each image with a different kernel is slow.
    rows_HxH, columns_WxW = (_gaussian_weights(size, sigma) for size in image_HxWxC.shape[:2])
    blurred = jnp.einsum("hwc,yh,xw->yxc", image_HxWxC, rows_HxH, columns_WxW, precision="highest")
    return jnp.clip(blurred, 0, 1)


def _gaussian_weights(size, sigma):
    position = jnp.arange(size, dtype=jnp.float32)
    weights = jnp.exp(-((position[:, None] - position[None, :]) ** 2) / (2 * sigma**2))
    return weights / jnp.sum(weights, axis=1, keepdims=True)
