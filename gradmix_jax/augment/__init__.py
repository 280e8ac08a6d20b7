"""Random views of images, made on the device inside the train step.

One view applies, in this order: color jitter, rotation, random resized crop, horizontal flip, gray, blur (policy
"standard"); or rotation, crop and flip, then the operations of RandAugment or AugMix in place of jitter, gray
and blur. Normalization is a separate function. A step whose strength or probability is 0 is not part of the program
at all, nor are hue, saturation and gray for images with one channel.

`view` works on one image and takes its own key first, so that it can be mapped, and a view depends only on
its key and its image, not on its batch or the number of devices. (This holds for JAX's default threefry keys;
`unsafe_rbg` keys lose exactly this property under vmap.)

`steps.py` has the steps of a standard view, `policies.py` RandAugment and AugMix, and `operations.py` the operations
they choose from.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gradmix_jax.augment.policies import MAX_MAGNITUDE, augmix, randaugment
from gradmix_jax.augment.steps import (
    BLUR_SIGMA,
    CROP_ATTEMPTS,
    JITTER,
    color_jitter,
    crop_box,
    gaussian_blur,
    gray,
    horizontal_flip,
    jitter_in_order,
    random_blur,
    random_gray,
    random_resized_crop,
    resized_crop,
    rotate,
    rotate_by,
)
from gradmix_jax.fields import Section, key

__all__ = [
    "BLUR_SIGMA",
    "CROP_ATTEMPTS",
    "JITTER",
    "Normalization",
    "Spec",
    "augmix",
    "color_jitter",
    "crop_box",
    "gaussian_blur",
]
__all__ += [
    "gaussian_blur",
    "gray",
    "horizontal_flip",
    "jitter_in_order",
    "normalize",
    "randaugment",
    "random_blur",
    "random_gray",
    "random_resized_crop",
]
__all__ += ["resized_crop", "rotate", "rotate_by", "view", "views"]


@dataclasses.dataclass(frozen=True)
class Spec(Section, section="augment"):
    """The `augment` section, which configures `views`. Hashable, so it can be a static argument of `jax.jit`."""

    jitter: tuple[float, float, float, float] = key(
        (0.4, 0.4, 0.4, 0.1), "strength of brightness, contrast, saturation, hue (at most 0.5)", least=0, length=4
    )
    jitter_prob: float = key(0.8, "share of the images with color jitter", least=0, most=1)
    crop_scale: tuple[float, float] = key(
        (0.2, 1.0), "share of the image's area that a crop keeps; (1, 1): no crop", above=0, most=1, length=2
    )
    crop_ratio: tuple[float, float] = key(
        (3 / 4, 4 / 3), "width / height of a crop, drawn log-uniformly", above=0, length=2
    )
    flip_prob: float = key(0.5, "probability of a horizontal flip; 0 for digits and letters", least=0, most=1)
    gray_prob: float = key(0.2, "share of the images turned gray", least=0, most=1)
    rotation_degrees: float = key(0.0, "rotation angle, uniform in ± this many degrees", least=0, most=180)
    blur_prob: float = key(0.0, "probability of a Gaussian blur, for large images", least=0, most=1)
    policy: str = key(
        "standard",
        '"standard": jitter, gray and blur; or "randaugment" or "augmix" in their place',
        choices=lambda: POLICIES,
    )
    num_ops: int = key(2, "operations of randaugment, one after the other", least=1)
    magnitude: int = key(
        9,
        "strength of randaugment's operations, 0 to 30; the largest that augmix draws, where 9 is its severity 3",
        least=0,
        most=MAX_MAGNITUDE,
    )

    def check(self):
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"augment.{name} must be (low, high) with low <= high, got {(low, high)}.")
        if self.jitter[3] > 0.5:
            raise ValueError(f"augment.jitter must have a hue of at most 0.5, got {self.jitter}.")


@dataclasses.dataclass(frozen=True)
class Normalization(Section, section="normalization"):
    """The `normalization` section: mean and standard deviation of each channel, images in [0, 1]."""

    mean: tuple[float, ...] = key((0.5,), "mean per channel, images in [0, 1]; (): measured on the training images")
    std: tuple[float, ...] = key((0.25,), "std per channel; (): measured on the training images", above=0)


def views(keys_B, images_BxHxWxC, spec, *, num_views=2):
    """`num_views` random views of each image.

    Args:
      keys_B: one typed JAX key per image. View v of image i is made from `fold_in(keys_B[i], v)` alone.
      images_BxHxWxC: uint8, C = 1 or 3.
      spec: a `Spec`.
      num_views: V >= 1.

    Returns:
      float32 [V*B, H, W, C] in [0, 1], view-major (all images of view 0 come first), not normalized.

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
    of_view = lambda view: jax.vmap(lambda key: jax.random.fold_in(key, view))(keys_B)
    # One flat axis of V*B, because the random bits of nested vmaps take XLA twice as long to compile.
    keys = jax.vmap(of_view)(jnp.arange(num_views)).reshape(num_views * shape[0])
    images = jnp.concatenate([images_BxHxWxC] * num_views).astype(jnp.float32) / 255
    return jax.vmap(partial(view, spec=spec))(keys, images)


def view(key, image_HxWxC, spec):
    """One random view of one image, float32 in [0, 1] -> the same; see `Spec`."""
    # Always six keys, so that neither turning a step off nor choosing a policy changes the draws of the others.
    first_key, rotation_key, crop_key, flip_key, *last_keys = jax.random.split(key, 6)
    policy = POLICIES[spec.policy]
    image = policy.before(first_key, image_HxWxC, spec)
    image = rotate(rotation_key, image, degrees=spec.rotation_degrees)
    image = random_resized_crop(crop_key, image, scale=spec.crop_scale, ratio=spec.crop_ratio)
    image = horizontal_flip(flip_key, image, prob=spec.flip_prob)
    return policy.after((first_key, *last_keys), image, spec)


class Policy(NamedTuple):
    """The steps of a view besides rotation, crop and flip.

    Attributes:
      before: before(key, image_HxWxC, spec) -> image_HxWxC.
      after: after(keys, image_HxWxC, spec) -> image_HxWxC, with three keys; the first is that of `before`, so an entry
        uses it in only one of the two.
    """

    before: Callable
    after: Callable


def _unchanged(key, image_HxWxC, spec):
    del key, spec
    return image_HxWxC


def _jitter(key, image_HxWxC, spec):
    return color_jitter(key, image_HxWxC, strengths=spec.jitter, prob=spec.jitter_prob)


def _gray_and_blur(keys, image_HxWxC, spec):
    image = random_gray(keys[1], image_HxWxC, prob=spec.gray_prob)
    return random_blur(keys[2], image, prob=spec.blur_prob)


def _randaugment(keys, image_HxWxC, spec):
    return randaugment(keys[0], image_HxWxC, num_ops=spec.num_ops, magnitude=spec.magnitude)


def _augmix(keys, image_HxWxC, spec):
    return augmix(keys[0], image_HxWxC, magnitude=spec.magnitude)


POLICIES = {
    "standard": Policy(_jitter, _gray_and_blur),
    "randaugment": Policy(_unchanged, _randaugment),
    "augmix": Policy(_unchanged, _augmix),
}


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
