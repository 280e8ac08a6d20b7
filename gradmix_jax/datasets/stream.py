"""Batches read from disk while training goes on, for data sets that do not fit on the device."""

from collections.abc import Iterator

import numpy as np

from gradmix_jax.datasets import order
from gradmix_jax.datasets.source import Source

_LAST_STEP = 2**31 - 1


def host_batches(
    source: Source,
    *,
    seed: int,
    start_step: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 4,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """This process's share of the batches of steps start_step, start_step + 1, ..., without end.

    The batch of a step is the one of `order.batch_indices`, whatever was read before: resuming needs the step number
    only. With several processes each gets a contiguous share, in the order of their indices.

    Args:
      source: the training images.
      seed: of the order.
      start_step: first step.
      batch_size: of all processes together.
      process_index: of this process.
      process_count: number of processes; divides batch_size.
      workers: reading threads; each prepares one batch at a time, and as many batches again wait to be used.

    Returns:
      A Grain iterator of (images_bxHxWxC uint8, labels_b int32), b = batch_size / process_count. It raises ValueError
      for an image that cannot be read.

    Raises:
      ValueError: batch_size is larger than the source, or not a multiple of process_count.
    """
    import grain

    if batch_size % process_count:
        raise ValueError(f"train.batch_size is {batch_size}; allowed: a multiple of the {process_count} processes.")
    local_size = batch_size // process_count
    mine = slice(process_index * local_size, (process_index + 1) * local_size)

    def read(step: int) -> tuple[np.ndarray, np.ndarray]:
        indices = order.host_batch_indices(seed, step, size=len(source), batch_size=batch_size)[mine]
        return np.stack([source[i] for i in indices]), source.labels[indices]

    order.host_batch_indices(seed, start_step, size=len(source), batch_size=batch_size)  # fail here, not in a thread
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=2 * workers)
    return iter(grain.MapDataset.range(start_step, _LAST_STEP).map(read).to_iter_dataset(options))
