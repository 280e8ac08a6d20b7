"""Digital: contrast, elastic transform, pixelate, JPEG. Lengths of the elastic transform are image sizes."""

import io
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from gradmix_jax.corruptions import filters
from gradmix_jax.corruptions.published import CIFAR10_C, TINY_IMAGENET_C, published_set

# Factor of the distance to the mean.
CONTRAST = {
    CIFAR10_C: (0.75, 0.5, 0.4, 0.3, 0.15),
    TINY_IMAGENET_C: (0.4, 0.3, 0.2, 0.1, 0.05),
}
# Displacement, sigma of its smoothing, shift of the corners of the affine map.
ELASTIC = {
    CIFAR10_C: ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    TINY_IMAGENET_C: ((0, 0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06), (0.1, 0.03, 0.03), (0.16, 0.03, 0.02)),
}
ELASTIC_TRUNCATE = 3  # sigmas
PIXELATE = {CIFAR10_C: (0.95, 0.9, 0.85, 0.75, 0.65), TINY_IMAGENET_C: (0.9, 0.8, 0.7, 0.6, 0.5)}  # of the image size
JPEG_QUALITY = {CIFAR10_C: (80, 65, 58, 50, 40), TINY_IMAGENET_C: (65, 58, 50, 40, 25)}


def contrast_constants(severity, image_size):
    return (np.float32(CONTRAST[published_set(image_size)][severity - 1]),)


def contrast(key, image_HxWxC, factor):
    """Scale the distance to the mean of each channel."""
    # A sum of whole levels is exact in float32, so its order, which depends on the batch size, does not matter.
    height, width, _ = image_HxWxC.shape
    mean_1x1xC = jnp.sum(jnp.round(255 * image_HxWxC), axis=(0, 1), keepdims=True) / (255 * height * width)
    return (image_HxWxC - mean_1x1xC) * factor + mean_1x1xC


def elastic_transform_constants(severity, image_size):
    levels = ELASTIC[published_set(image_size)]
    half = max(int(ELASTIC_TRUNCATE * image_size * sigma + 0.5) for _, sigma, _ in levels)
    displacement, sigma, shift = (image_size * length for length in levels[severity - 1])
    taps_K = filters.gaussian_taps(sigma, truncate=ELASTIC_TRUNCATE, half=half)
    return np.float32(displacement), taps_K, np.float32(shift)


def elastic_transform(key, image_HxWxC, displacement, taps_K, shift):
    """A random affine map, then a smooth random displacement of every pixel; both bilinear."""
    size = image_HxWxC.shape[0]
    affine_key, displacement_key = jax.random.split(key)
    y_HxW, x_HxW = jnp.mgrid[:size, :size].astype(jnp.float32)
    image = _sample(image_HxWxC, *_affine_source(affine_key, y_HxW, x_HxW, shift), mode="mirror")
    noise_HxWx2 = jax.random.uniform(displacement_key, (size, size, 2), minval=-1, maxval=1)
    moved_HxWx2 = displacement * filters.gaussian(noise_HxWx2, taps_K, mode="symmetric")
    return _sample(image, y_HxW + moved_HxWx2[..., 0], x_HxW + moved_HxWx2[..., 1], mode="reflect")


def _affine_source(key, y_HxW, x_HxW, shift):
    """The source of each pixel if three corners of the central square move by up to `shift` along each axis.

    Corner 0 is bottom right, 1 top right, 2 top left, each a third of the image from the center.
    """
    size = y_HxW.shape[0]
    center, arm = size // 2, size // 3
    corners_3x2 = center + arm * jnp.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0]])  # (y, x)
    moved_3x2 = corners_3x2 + jax.random.uniform(key, (3, 2), minval=-shift, maxval=shift)
    # A pixel lies u and v of the way from moved corner 1 to 0 and 2; its source lies as far between the old corners.
    (down_y, down_x), (left_y, left_x) = moved_3x2[0] - moved_3x2[1], moved_3x2[2] - moved_3x2[1]
    y, x = y_HxW - moved_3x2[1, 0], x_HxW - moved_3x2[1, 1]
    area = down_y * left_x - down_x * left_y
    u_HxW, v_HxW = (y * left_x - x * left_y) / area, (x * down_y - y * down_x) / area
    return center - arm + 2 * arm * u_HxW, center + arm - 2 * arm * v_HxW


def _sample(image_HxWxC, y_HxW, x_HxW, *, mode):
    bilinear = partial(jax.scipy.ndimage.map_coordinates, coordinates=[y_HxW, x_HxW], order=1, mode=mode)
    return jax.vmap(bilinear, in_axes=-1, out_axes=-1)(image_HxWxC)


def pixelate_constants(severity, image_size):
    small = int(image_size * PIXELATE[published_set(image_size)][severity - 1])
    # Pillow's own weights: its resize applied to the columns of an identity matrix.
    weights = lambda old, new: np.asarray(Image.fromarray(np.eye(old, dtype=np.float32)).resize((old, new), Image.BOX))
    down_HxH, up_HxH = np.zeros((2, image_size, image_size), np.float32)
    down_HxH[:small], up_HxH[:, :small] = weights(image_size, small), weights(small, image_size)
    return down_HxH, up_HxH


def pixelate(key, image_HxWxC, down_HxH, up_HxH):
    """Box resize to fewer pixels and back, as Pillow does: columns first, whole levels after each step."""
    levels = jnp.round(255 * image_HxWxC)
    for weights_HxH in (down_HxH, up_HxH):
        for product in ("hwc,vw->hvc", "hwc,vh->vwc"):
            levels = jnp.floor(jnp.einsum(product, levels, weights_HxH, precision="highest") + 0.5)
    return levels / 255


def jpeg_compression_constants(severity, image_size):
    return (JPEG_QUALITY[published_set(image_size)][severity - 1],)


def jpeg_compression(images_BxHxWxC, quality):
    """Encode and decode NumPy images with Pillow, on the host."""

    def one(image_HxWxC):
        encoded = io.BytesIO()
        gray = image_HxWxC.shape[-1] == 1
        Image.fromarray(image_HxWxC[..., 0] if gray else image_HxWxC).save(encoded, "JPEG", quality=quality)
        return np.asarray(Image.open(encoded)).reshape(image_HxWxC.shape)

    if len(images_BxHxWxC) == 0:
        return images_BxHxWxC
    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(one, images_BxHxWxC)))
