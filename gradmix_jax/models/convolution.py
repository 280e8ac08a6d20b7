"""A convolution whose weight gradient is fast on CPUs, and everywhere else the one of JAX.

XLA:CPU computes the weight gradient as a convolution over the batch, whose cost per FLOP rises with the number of
images: on wide or large stages it runs at 0.4 to 0.7 of the rate of the forward convolution. The sum of the gradients
of a few images each runs at the same rate as the forward convolution or faster. benchmarks/README.md has the times.
"""

from functools import partial

import jax
from jax import lax

# Images of a part, and most parts, each of which is a convolution to compile.
IMAGES = 32
MOST_PARTS = 8
# Below these FLOPs the whole batch is as fast.
LEAST_FLOPS = 2**29


def convolve(
    images_BxHxWxC: jax.Array, kernel_hxwxCxF: jax.Array, strides: tuple[int, ...], padding: object, **options: object
) -> jax.Array:
    """`lax.conv_general_dilated` with these arguments, BxHxWxF; differentiable in reverse mode only."""
    plain = partial(lax.conv_general_dilated, window_strides=strides, padding=padding, **options)

    shape = jax.ShapeDtypeStruct(kernel_hxwxCxF.shape, kernel_hxwxCxF.dtype)

    def gradient(images, cotangent):
        (of_kernel,) = jax.linear_transpose(lambda kernel: plain(images, kernel), shape)(cotangent)
        return of_kernel

    def in_parts(images, cotangent, parts):
        # Every parts-th image, so that a batch that is sharded over devices is not moved between them.
        split = [x.reshape(-1, parts, *x.shape[1:]) for x in (images, cotangent)]
        return sum(gradient(*(x[:, part] for x in split)) for part in range(parts))

    @jax.custom_vjp
    def function(images, kernel):
        return plain(images, kernel)

    def backward(saved, cotangent):
        images, kernel = saved
        (of_images,) = jax.linear_transpose(lambda x: plain(x, kernel), images)(cotangent)
        parts = _parts(cotangent.shape, kernel.size)
        if parts == 1:
            return of_images, gradient(images, cotangent)
        on_cpu = partial(in_parts, parts=parts)
        return of_images, lax.platform_dependent(images, cotangent, cpu=on_cpu, default=gradient)

    function.defvjp(lambda images, kernel: (plain(images, kernel), (images, kernel)), backward)
    return function(images_BxHxWxC, kernel_hxwxCxF)


def _parts(shape_BxHxWxF: tuple[int, ...], kernel_size: int) -> int:
    """Into how many equal parts a batch is split on CPUs."""
    batch, height, width, _ = shape_BxHxWxF
    # An export's batch is a symbol.
    if not isinstance(batch, int) or 2 * kernel_size * batch * height * width < LEAST_FLOPS:
        return 1
    most = min(batch // IMAGES, MOST_PARTS)
    return next((parts for parts in range(most, 1, -1) if batch % parts == 0), 1)
