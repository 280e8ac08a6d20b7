"""Batches read from disk during training, for datasets that do not fit on the device."""

import math
from collections.abc import Iterator

import numpy as np

from gradmix_jax.data import order
from gradmix_jax.data.source import Source

_LAST_STEP = 2**31 - 1


class _Decoded:
    """Batches of a source; up to `cache_bytes` of decoded images stay in memory after their first use.

    Opening an image holds Python's lock for tens of microseconds, whatever its size, so small images cannot be decoded
    as fast as a GPU trains on them, however many cores there are. Copying them from memory is fast enough.
    """

    def __init__(self, source: Source, cache_bytes: float):
        self.source = source
        self.shape = (source.image_size, source.image_size, source.channels)
        kept = min(len(source), int(cache_bytes) // math.prod(self.shape))
        # Memory takes no room until it is written to.
        self.images = np.empty((kept, *self.shape), np.uint8)
        self.known = np.zeros(len(source), bool)

    def batch(self, indices: np.ndarray) -> np.ndarray:
        """images_bxHxWxC uint8. Thread-safe: an image that two threads decode at once is written twice."""
        images = np.empty((len(indices), *self.shape), np.uint8)
        known = self.known[indices]
        images[known] = self.images[indices[known]]
        for place in np.flatnonzero(~known):
            index = indices[place]
            images[place] = self.source[index]
            if index < len(self.images):
                self.images[index] = images[place]
                self.known[index] = True
        return images


def host_batches(
    source: Source,
    *,
    seed: int,
    start_step: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    cache_bytes: float = 0,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """This process's share of the batches of steps start_step, start_step + 1, ..., endlessly.

    The batch of a step is given by `order.batch_indices`, whatever was read before, so resuming needs the step number
    only. With several processes, each gets a contiguous share, in the order of their indices.

    Args:
      source: the training images.
      seed: seed of the order.
      start_step: first step.
      batch_size: batch size of all processes together.
      process_index: index of this process.
      process_count: number of processes; divides batch_size.
      workers: reading threads; each prepares one batch at a time, and as many finished batches wait for use. 0: as many
        as suit the images, `Source.threads`.
      cache_bytes: host memory for decoded images, which are read once and then kept.

    Returns:
      A Grain iterator of (images_bxHxWxC uint8, labels_b int32), b = batch_size / process_count. It raises ValueError
      for an image that cannot be read.

    Raises:
      ValueError: batch_size is larger than the source, or not a multiple of process_count.
    """
    import grain

    if batch_size % process_count:
        raise ValueError(f"train.batch_size must be a multiple of the {process_count} processes, got {batch_size}.")
    local_size = batch_size // process_count
    mine = slice(process_index * local_size, (process_index + 1) * local_size)

    decoded = _Decoded(source, cache_bytes)

    def read(step: int) -> tuple[np.ndarray, np.ndarray]:
        indices = order.host_batch_indices(seed, step, size=len(source), batch_size=batch_size)[mine]
        return decoded.batch(indices), source.labels[indices]

    order.host_batch_indices(seed, start_step, size=len(source), batch_size=batch_size)  # fail here, not in a thread
    workers = workers or source.threads
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=2 * workers)
    return iter(grain.MapDataset.range(start_step, _LAST_STEP).map(read).to_iter_dataset(options))
