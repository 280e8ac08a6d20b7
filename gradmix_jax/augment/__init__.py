"""Random views of images, made on the device inside the train step.

One view is, in this order: colour jitter, rotation, random resized crop, horizontal flip, grey, blur (policy
"standard"); or rotation, crop and flip, and then the operations of RandAugment or AugMix in place of jitter, grey
and blur. Normalising is a separate function. A step whose strength or probability is 0 is not part of the program
at all, and neither are hue, saturation and grey for images of one channel.

`view` works on one image and takes its own key first, so that it can be mapped, and a view depends on nothing but
its key and its image: not on the batch it is in, nor on the number of devices. (True of JAX's default threefry keys;
`unsafe_rbg` keys give up just this under vmap.)

`steps.py` has the steps of a standard view, `policies.py` RandAugment and AugMix, `operations.py` what these choose
from.
"""

import dataclasses
from functools import partial

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
    grey,
    horizontal_flip,
    jitter_in_order,
    random_blur,
    random_grey,
    random_resized_crop,
    resized_crop,
    rotate,
    rotate_by,
)
from gradmix_jax.config import check_choice, check_number

__all__ = ["BLUR_SIGMA", "CROP_ATTEMPTS", "JITTER", "Spec", "augmix", "color_jitter", "crop_box", "gaussian_blur"]
__all__ += [
    "grey",
    "horizontal_flip",
    "jitter_in_order",
    "normalize",
    "randaugment",
    "random_blur",
    "random_grey",
    "random_resized_crop",
]
__all__ += ["resized_crop", "rotate", "rotate_by", "view", "views"]

POLICIES = ("standard", "randaugment", "augmix")


@dataclasses.dataclass(frozen=True)
class Spec:
    """What `views` does. Hashable, so it can be a static argument of `jax.jit`.

    crop_scale (low, high): share of the area that a crop keeps, 0 < low <= high <= 1; (1, 1) = no crop.
    crop_ratio (low, high): width / height of the crop, drawn log-uniformly, 0 < low <= high.
    jitter (brightness, contrast, saturation, hue): half-widths of the draws around 1, 1, 1 and 0; hue <= 0.5.
    jitter_prob, flip_prob, grey_prob, blur_prob: share of the images that each applies to, in [0, 1].
    rotation_degrees: the angle is uniform in +- this, in [0, 180].
    policy: "standard", or "randaugment" or "augmix" in place of jitter, grey and blur, whose keys are then not used.
    num_ops: number of operations that randaugment applies, one after the other, at least 1. Not of augmix.
    magnitude: strength of the operations, in [0, 30]: of all of randaugment's, and the upper end of what augmix
      draws. 9 are RandAugment's 9 of 30 as well as AugMix's severity 3 of 10.

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
    policy: str
    num_ops: int
    magnitude: int

    def __post_init__(self):
        for name, length in (("crop_scale", 2), ("crop_ratio", 2), ("jitter", 4)):
            object.__setattr__(self, name, _numbers(name, getattr(self, name), length))
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"augment.crop_scale is {self.crop_scale}; allowed: (low, high) with 0 < low <= high <= 1."
            )
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ValueError(f"augment.crop_ratio is {self.crop_ratio}; allowed: (low, high) with 0 < low <= high.")
        if min(self.jitter) < 0 or self.jitter[3] > 0.5:
            raise ValueError(f"augment.jitter is {self.jitter}; allowed: 0 or more each, the last (hue) at most 0.5.")
        for name in ("jitter_prob", "flip_prob", "grey_prob", "blur_prob"):
            check_number(f"augment.{name}", getattr(self, name), least=0, most=1)
        check_number("augment.rotation_degrees", self.rotation_degrees, least=0, most=180)
        check_choice("augment.policy", self.policy, POLICIES)
        check_number("augment.num_ops", self.num_ops, least=1, whole=True)
        check_number("augment.magnitude", self.magnitude, least=0, most=MAX_MAGNITUDE)


def _numbers(name, values, length):
    if not isinstance(values, (tuple, list)) or len(values) != length:
        raise ValueError(f"augment.{name} is {values!r}; allowed: {length} numbers.")
    for value in values:
        check_number(f"an element of augment.{name}", value)
    return tuple(float(value) for value in values)


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
    # Always six keys: switching one step off leaves the draws of all others as they were, and so does a policy.
    jitter_key, rotation_key, crop_key, flip_key, grey_key, blur_key = jax.random.split(key, 6)
    image = image_HxWxC
    if spec.policy == "standard":
        image = color_jitter(jitter_key, image, strengths=spec.jitter, prob=spec.jitter_prob)
    image = rotate(rotation_key, image, degrees=spec.rotation_degrees)
    image = random_resized_crop(crop_key, image, scale=spec.crop_scale, ratio=spec.crop_ratio)
    image = horizontal_flip(flip_key, image, prob=spec.flip_prob)
    if spec.policy == "randaugment":
        return randaugment(jitter_key, image, num_ops=spec.num_ops, magnitude=spec.magnitude)
    if spec.policy == "augmix":
        return augmix(jitter_key, image, magnitude=spec.magnitude)
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
