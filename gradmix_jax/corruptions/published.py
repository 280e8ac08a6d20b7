"""The two published sets of constants, and which of them applies to an image size.

Source: the scripts that made CIFAR-10-C (32x32) and TinyImageNet-C (64x64), by the authors of arXiv 1903.12261. Most of
TinyImageNet-C's corruptions are stronger.
"""

CIFAR10_C, TINY_IMAGENET_C = "cifar10_c", "tiny_imagenet_c"
# Image size in pixels that the lengths of a set refer to.
SIZES = {CIFAR10_C: 32, TINY_IMAGENET_C: 64}


def published_set(image_size):
    """The set for images of this height and width: TinyImageNet-C's from 64 pixels on, CIFAR-10-C's below."""
    return TINY_IMAGENET_C if image_size >= SIZES[TINY_IMAGENET_C] else CIFAR10_C


def length_scale(image_size):
    """Factor of the lengths for sizes other than the set's; at least 1, since smaller blurs would be below a pixel."""
    return max(1.0, image_size / SIZES[published_set(image_size)])
