"""Batches are a pure function of (seed, step), whether resident on the device or streamed from disk."""

import collections
import contextlib
import itertools

import jax
import numpy as np
import pytest
from stored_data import make_spec, write_folder

from gradmix_jax import data as data_lib
from gradmix_jax.data import order, splits
from gradmix_jax.data.source import Source
from gradmix_jax.keys import key_of

SIZE, BATCH = 22, 4  # 5 batches an epoch, 2 images left over


def indices(step, *, seed=3, size=SIZE, batch_size=BATCH):
    epoch = step // order.steps_per_epoch(size, batch_size)
    return np.asarray(order.batch_indices(order.epoch_order(seed, epoch, size=size), step, batch_size=batch_size))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("stream") / "set"
    name = write_folder(root, train={"a": 11, "b": 11, "c": 1}, test={"a": 1, "b": 1, "c": 1})
    trial = next(t for t in range(20) if set(splits.random_split(3, 2, trial=t).known) == {0, 1})
    return data_lib.open_set(make_spec(name=name, num_known=2, trial=trial)).train


def take(source, count, **options):
    batches = data_lib.host_batches(
        source, **{"seed": 3, "start_step": 0, "batch_size": BATCH, "workers": 2, **options}
    )
    with contextlib.closing(batches):
        return list(itertools.islice(batches, count))


def test_an_epoch_uses_no_image_twice_and_drops_the_remainder():
    epochs = [np.concatenate([indices(step) for step in range(first, first + 5)]) for first in (0, 5)]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 20 and epoch.min() >= 0 and epoch.max() < SIZE and epoch.dtype == np.int32
    assert not np.array_equal(*epochs)


def test_the_order_is_the_permutation_of_the_seed_and_epoch():
    for seed, epoch in ((3, 0), (3, 2), (4, 0)):
        expected = np.asarray(jax.random.permutation(key_of(seed, "order", epoch), SIZE))[:20]
        found = np.concatenate([indices(step, seed=seed) for step in range(5 * epoch, 5 * epoch + 5)])
        np.testing.assert_array_equal(found, expected)


def test_a_traced_step_and_seed_give_the_same_batch():
    order_of = jax.jit(lambda seed, epoch: order.epoch_order(seed, epoch, size=SIZE))
    compiled = jax.jit(lambda order_N, step: order.batch_indices(order_N, step, batch_size=BATCH))
    for step in (0, 4, 5, 11):
        np.testing.assert_array_equal(compiled(order_of(3, step // 5), step), indices(step))


def test_the_order_does_not_depend_on_the_default_generator():
    expected = indices(6)
    order._epoch_order_on_host.cache_clear()
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(indices(6), expected)
        np.testing.assert_array_equal(order.host_batch_indices(3, 6, size=SIZE, batch_size=BATCH), expected)


def test_host_and_device_agree():
    for step in (0, 1, 4, 5, 9, 10, 23):
        on_host = order.host_batch_indices(3, step, size=SIZE, batch_size=BATCH)
        np.testing.assert_array_equal(on_host, indices(step))


@pytest.mark.parametrize("batch_size", [0, 23])
def test_batch_size_has_to_fit(batch_size, source):
    message = f"train.batch_size must be from 1 to 22, the number of training images, got {batch_size}"
    with pytest.raises(ValueError, match=message):
        indices(0, batch_size=batch_size)
    with pytest.raises(ValueError, match=message):
        data_lib.host_batches(source, seed=0, start_step=0, batch_size=batch_size)


# The cache holds all images, the first 7, or none; the latter two decode some images again.
@pytest.mark.parametrize(("start_step", "workers", "kept"), [(0, 1, SIZE), (3, 3, 7), (0, 2, 0)])
def test_streamed_batches_are_the_resident_ones(source, start_step, workers, kept):
    images, labels = data_lib.resident(source)
    cache_bytes = kept * images[0].nbytes
    # Across the ends of two epochs.
    batches = take(source, 13, start_step=start_step, workers=workers, cache_bytes=cache_bytes)
    for step, (batch_images, batch_labels) in enumerate(batches, start_step):
        np.testing.assert_array_equal(batch_images, images[indices(step)])
        np.testing.assert_array_equal(batch_labels, labels[indices(step)])
        assert batch_images.dtype == np.uint8 and batch_labels.dtype == np.int32


@pytest.mark.parametrize("kept", [SIZE, 7, 0])
def test_images_in_the_cache_are_read_once(source, kept, monkeypatch):
    reads = collections.Counter()
    read = Source.__getitem__
    monkeypatch.setattr(Source, "__getitem__", lambda self, index: reads.update([int(index)]) or read(self, index))
    # Extra bytes that do not suffice for another image.
    cache_bytes = (kept + 1) * source[0].nbytes - 1
    reads.clear()
    take(source, 25, workers=1, cache_bytes=cache_bytes)  # every image is in 4 or 5 of these epochs
    assert set(reads) == set(range(SIZE))
    assert all((reads[index] == 1) == (index < kept) for index in range(SIZE))


def test_processes_share_a_batch_in_order(source):
    whole = take(source, 7, start_step=2)
    shares = [take(source, 7, start_step=2, process_index=i, process_count=2) for i in range(2)]
    for (images, labels), *parts in zip(whole, *shares):
        assert [len(part_labels) for _, part_labels in parts] == [2, 2]
        np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), images)
        np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), labels)


def test_the_number_of_processes_must_divide_the_batch(source):
    with pytest.raises(ValueError, match="train.batch_size must be a multiple of the 3 processes, got 4"):
        data_lib.host_batches(source, seed=0, start_step=0, batch_size=4, process_count=3)


def test_streaming_under_a_transfer_guard(source):
    order._epoch_order_on_host.cache_clear()
    before = jax.config.jax_transfer_guard
    jax.config.update("jax_transfer_guard", "disallow")
    try:
        assert len(take(source, 6)) == 6
    finally:
        jax.config.update("jax_transfer_guard", before)


def test_a_bad_image_ends_the_stream_with_its_path(tmp_path):
    root = tmp_path / "set"
    name = write_folder(root, train={"a": 4, "b": 4}, test={"a": 1, "b": 1})
    other = write_folder(tmp_path / "other", train={}, test={"z": 1})
    source = data_lib.open_set(make_spec(name=name, unknown_name=other, benchmark="all")).train
    (root / "train" / "b" / "002.png").write_bytes(b"")
    with pytest.raises(ValueError, match="b/002.png"):
        take(source, 2)
