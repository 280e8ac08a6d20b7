"""The images in the batch of a step: a pure function of (seed, step), on the device and on the host."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gradmix_jax.keys import key_of


def epoch_order(seed: jax.Array | int, epoch: jax.Array | int, *, size: int) -> jax.Array:
    """The order of an epoch: a permutation of 0..size-1, int32 [size]."""
    return jax.random.permutation(key_of(seed, "order", epoch), size).astype(jnp.int32)


def batch_indices(order_N: jax.Array, step: jax.Array | int, *, batch_size: int) -> jax.Array:
    """Indices of the images in the batch of `step`.

    Every epoch has a new order and `size // batch_size` whole batches; the remainder is not used in that epoch.

    Args:
      order_N: `epoch_order` of the step's epoch, `step // steps_per_epoch`. Its sort takes an accelerator longer
        than many kernels of the step, so it is made once per epoch.
      step: 0, 1, ...; may be traced.
      batch_size: batch size of all devices together.

    Returns:
      int32 [batch_size], no index twice.

    Raises:
      ValueError: batch_size is not in 1..size.
    """
    place = step % steps_per_epoch(len(order_N), batch_size)
    return jax.lax.dynamic_slice_in_dim(order_N, place * batch_size, batch_size)


def host_batch_indices(seed: int, step: int, *, size: int, batch_size: int) -> np.ndarray:
    """The same indices on the host, for reading batch after batch across epochs."""
    epoch, place = divmod(step, steps_per_epoch(size, batch_size))
    return _epoch_order_on_host(seed, epoch, size)[place * batch_size : (place + 1) * batch_size]


def steps_per_epoch(size: int, batch_size: int) -> int:
    """Number of whole batches of `size` images. Raises ValueError if there is not even one."""
    if not 1 <= batch_size <= size:
        raise ValueError(f"train.batch_size must be from 1 to {size}, the number of training images, got {batch_size}.")
    return size // batch_size


@functools.lru_cache(maxsize=2)  # batches around the end of an epoch are read ahead
def _epoch_order_on_host(seed: int, epoch: int, size: int) -> np.ndarray:
    # The accelerator is busy with training and has a long queue, so stay on the host if JAX has a CPU backend.
    # Called from reading threads, whose small transfers should not trip a transfer guard.
    with jax.default_device(_cpu()), jax.transfer_guard("allow"):
        return np.asarray(epoch_order(seed, epoch, size=size))


def _cpu() -> jax.Device | None:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS names only an accelerator
        return None
