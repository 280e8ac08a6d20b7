"""Properties that hold for any input, checked on a few examples from hypothesis; fuzzing of readers is slow."""

import dataclasses
import gzip
import io
import json
import math
import pickle
import struct
import zipfile
from functools import partial

import jax
import numpy as np
import pytest
from evaluated_runs import write_run
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from gradmix_jax import config as config_lib
from gradmix_jax import data as data_lib
from gradmix_jax import metrics, stored
from gradmix_jax.data import idx, order, source, splits
from gradmix_jax.method import masks, mix
from gradmix_jax.models import safetensors_file, torch_file
from gradmix_jax.report import runs

hypothesis = pytest.importorskip("hypothesis", reason="pip install hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np

# The same examples in every run, so a failure comes from a change of the code.
few = settings(max_examples=25, deadline=None, derandomize=True, database=None)
many = settings(max_examples=1500, deadline=None, database=None, suppress_health_check=list(HealthCheck))

FINITE = st.floats(-1e6, 1e6, width=32)
# Few distinct values, so that there are ties.
SCORES = st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.25, 1.0, 3.0]), min_size=1, max_size=30).map(np.array)
SHAPE = (3, 6, 5)
MAPS = st_np.arrays(np.float32, SHAPE, elements=st.one_of(FINITE, st.sampled_from([0.0, 1.0])))
KEEPS = st_np.arrays(np.float32, (3,), elements=st.floats(0, 1, width=32))
threshold, box = jax.jit(masks.threshold), jax.jit(masks.box)


@few
@given(MAPS, KEEPS)
def test_a_threshold_masks_exactly_the_share_and_the_largest_values(maps, keep):
    mask = np.asarray(threshold(maps, keep))
    wanted = np.round((1 - keep) * np.float32(30))
    np.testing.assert_array_equal(mask.sum(axis=(1, 2)), wanted)
    for values, chosen in zip(maps, mask):
        if chosen.any() and not chosen.all():
            assert values[chosen].min() >= values[~chosen].max()


@few
@given(MAPS, KEEPS)
def test_a_threshold_depends_only_on_the_order_of_the_map(maps, keep):
    _, rank = np.unique(maps, return_inverse=True)
    ranks = rank.reshape(SHAPE).astype(np.float32)
    np.testing.assert_array_equal(threshold(maps, keep), threshold(ranks, keep))


@few
@given(MAPS, KEEPS)
def test_a_box_is_one_rectangle_of_no_more_than_its_share(maps, keep):
    for mask, share in zip(np.asarray(box(maps, keep)), keep):
        rows, columns = mask.any(axis=1), mask.any(axis=0)
        np.testing.assert_array_equal(mask, rows[:, None] & columns[None])
        assert (np.diff(np.flatnonzero(rows)) == 1).all() and (np.diff(np.flatnonzero(columns)) == 1).all()
        sides = [round(float(size * np.sqrt(1 - share)) + 1e-4) for size in SHAPE[1:]]
        assert rows.sum() <= sides[0] + 1 and columns.sum() <= sides[1] + 1


SPEC = mix.Spec(method="gradmix", mask="threshold", fill="partner", group_size=2)
MIXED = {method: dataclasses.replace(SPEC, method=method) for method in ("gradmix", "mixup")}


@partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def mixed(key, images, maps):
    return {
        name: mix.apply(key, images, maps if spec.uses_map else None, spec, views=2, first_group=0)
        for name, spec in MIXED.items()
    }


IMAGES = st_np.arrays(np.float32, (8, 6, 5, 1), elements=st.floats(0, 1, width=32))


@few
@given(st.integers(0, 2**31 - 1), IMAGES, st_np.arrays(np.float32, (8, 6, 5), elements=FINITE))
def test_a_mixed_image_lies_between_its_image_and_its_partner(seed, images, maps):
    for name, (found, weight, partner) in jax.device_get(mixed(jax.random.key(seed), images, maps)).items():
        assert ((weight >= 0) & (weight <= 1)).all() and set(partner.tolist()) <= set(range(8)), name
        low, high = np.minimum(images, images[partner]), np.maximum(images, images[partner])
        assert (found >= low - 1e-6).all() and (found <= high + 1e-6).all(), name
        if name != "mixup":  # whole pixels of one or the other
            own, other = found == images, found == images[partner]
            assert (own | other).all()
            sure = own & ~other
            assert (sure.mean(axis=(1, 2, 3)) <= weight + 1e-6).all()


@few
@given(SCORES, SCORES)
def test_auroc_counts_pairs(known, unknown):
    pairs = np.sign(known[:, None] - unknown[None])
    expected = np.mean((pairs + 1) / 2)
    assert metrics.auroc(known, unknown) == pytest.approx(expected, abs=1e-12)
    assert metrics.auroc(unknown, known) == pytest.approx(1 - expected, abs=1e-12)
    assert metrics.auroc(np.exp(known), np.exp(unknown)) == metrics.auroc(known, unknown)
    truth, scores = np.r_[np.ones(len(known)), np.zeros(len(unknown))], np.r_[known, unknown]
    assert metrics.auroc(known, unknown) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    precision = average_precision_score(truth, scores)
    assert metrics.average_precision(known, unknown) == pytest.approx(precision, abs=1e-12)


@few
@given(SCORES, SCORES, st.integers(0, 2**31 - 1))
def test_oscr_is_at_most_accuracy_and_auroc(known, unknown, seed):
    correct = np.random.default_rng(seed).uniform(size=len(known)) < 0.7
    oscr = metrics.oscr(known, unknown, correct)
    assert 0 <= oscr <= min(correct.mean(), metrics.auroc(known, unknown)) + 1e-12
    assert metrics.oscr(known, unknown, np.ones(len(known), bool)) == pytest.approx(metrics.auroc(known, unknown))
    for positive in ("known", "unknown"):
        assert 0 <= metrics.fpr_at(known, unknown, positive=positive) <= 1


@few
@given(st.integers(2, 300), st.data())
def test_a_random_split_has_every_class_on_one_side(num_classes, drawn):
    num_known = drawn.draw(st.integers(1, num_classes - 1))
    trial = drawn.draw(st.integers(0, 10**6))
    split = splits.random_split(num_classes, num_known, trial=trial)
    assert sorted((*split.known, *split.unknown)) == list(range(num_classes)) and len(split.known) == num_known
    assert split == splits.random_split(num_classes, num_known, trial=trial)
    if num_known < num_classes - 1:
        assert splits.random_split(num_classes, num_known + 1, trial=trial).known[:num_known] == split.known


@few
@given(st.lists(st.integers(0, 5), min_size=1, max_size=80).map(np.array), st.floats(0, 0.99), st.integers(0, 9))
def test_some_but_never_all_images_of_every_class_are_held_out(labels, share, seed):
    chosen = data_lib.stratified(labels, share, seed=seed)
    for label in np.unique(labels):
        of_class, size = chosen[labels == label].sum(), (labels == label).sum()
        assert of_class < size and (of_class >= 1) == (share > 0 and size > 1)


@few
@given(st.integers(0, 2**31 - 1), st.integers(0, 9), st.sampled_from([1, 33]), st.integers(1, 33))
def test_an_epoch_has_every_image_once(seed, epoch, size, batch_size):
    hypothesis.assume(batch_size <= size)
    steps = order.steps_per_epoch(size, batch_size)
    seen = np.concatenate(
        [
            order.host_batch_indices(seed, epoch * steps + step, size=size, batch_size=batch_size)
            for step in range(steps)
        ]
    )
    assert set(seen.tolist()) <= set(range(size)) and len(seen) == steps * batch_size
    assert len(set(seen.tolist())) == min(size, steps * batch_size)


ARRAY = st.one_of(
    *(
        st_np.arrays(dtype, st_np.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
        for dtype in (np.float32, np.float64, np.int64, np.uint8, np.bool_, "<U5")
    )
)


@few
@given(st.dictionaries(st.text("ab/_é", min_size=1, max_size=6), ARRAY, max_size=4))
def test_arrays_come_back_from_an_npz_file(tmp_path_factory, arrays):
    path = tmp_path_factory.getbasetemp() / "arrays.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(f"{name}.npy", buffer.getvalue())
    found = stored.read_npz(str(path))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@few
@given(st.dictionaries(st.text(min_size=1, max_size=6), ARRAY.filter(lambda x: x.dtype.kind != "U"), max_size=4))
def test_arrays_come_back_from_a_safetensors_file(tmp_path_factory, arrays):
    arrays.pop("__metadata__", None)
    path = str(tmp_path_factory.getbasetemp() / "arrays.safetensors")
    safetensors_file.write(path, arrays)
    found = safetensors_file.read(path)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and found[name].tobytes() == array.tobytes()


@few
@given(st_np.arrays(np.uint8, st.tuples(*3 * [st.integers(1, 5)])), st.booleans())
def test_images_come_back_from_an_idx_file(tmp_path_factory, images, zipped):
    root = tmp_path_factory.mktemp("idx")
    content = struct.pack(">HBB3I", 0, 8, 3, *images.shape) + images.tobytes()
    name = "train-images-idx3-ubyte"
    (root / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(content) if zipped else content)
    np.testing.assert_array_equal(idx._read(root, "train-images", dimensions=3), images)


# Any JSON.
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


@few
@given(st.sampled_from(sorted(stored.RESULTS)), JSON)
def test_results_with_any_value_are_read_or_refused_in_one_line(name, value):
    try:
        found = stored.check_results({name: value}, "results.json")
    except ValueError as error:
        assert str(error).startswith(f"results.json is damaged: {name}") and "\n" not in str(error)
    else:
        assert found[name] in (value, stored.MISSING_PARTS.get(name)) or name == "ood" or value != value


def mutated(content: bytes):
    """Strategy: the content with bytes changed, removed, doubled or cut."""

    def change(edits):
        changed = bytearray(content)
        for kind, place, byte in edits:
            place = int(place * max(len(changed) - 1, 0))
            if kind == "set" and changed:
                changed[place] = byte
            elif kind == "cut":
                del changed[place:]
            elif kind == "drop":
                del changed[place : place + byte % 9]
            elif kind == "double":
                changed[place:place] = changed[place : place + byte]
        return bytes(changed)

    edit = st.tuples(st.sampled_from(["set", "set", "cut", "drop", "double"]), st.floats(0, 1), st.integers(0, 255))
    return st.one_of(st.lists(edit, min_size=1, max_size=4).map(change), st.binary(max_size=60))


def refused_or_read(read, *, name):
    """Damaged content is read anyway, or refused in one line that names the file."""
    try:
        read()
    except ValueError as error:
        assert "\n" not in str(error) and name in str(error) and "Errno" not in str(error), str(error)


def _idx_files():
    images = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    content = struct.pack(">HBB3I", 0, 8, 3, *images.shape) + images.tobytes()
    return {"train-images-idx3-ubyte": content, "train-images-idx3-ubyte.gz": gzip.compress(content)}


@pytest.mark.slow
@pytest.mark.parametrize("name", _idx_files())
@many
@given(drawn=st.data())
def test_fuzzed_idx_files(tmp_path_factory, name, drawn):
    root = tmp_path_factory.mktemp("idx")
    (root / name).write_bytes(drawn.draw(mutated(_idx_files()[name])))
    refused_or_read(lambda: idx._read(root, "train-images", dimensions=3), name=name)


def _image_files():
    image, files = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9, 3), np.uint8)), {}
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"):
        buffer = io.BytesIO()
        image.save(buffer, kind)
        files[kind.lower()] = buffer.getvalue()
    return files


@pytest.mark.slow
@pytest.mark.parametrize("ending", _image_files())
@many
@given(drawn=st.data())
def test_fuzzed_images_of_a_folder(tmp_path_factory, ending, drawn):
    path = tmp_path_factory.getbasetemp() / f"fuzzed.{ending}"
    path.write_bytes(drawn.draw(mutated(_image_files()[ending])))
    records = data_lib.files.FileRecords([str(path)], np.zeros(1, np.int32))
    refused_or_read(lambda: source.Source(records, np.zeros(1, int), np.zeros(1, np.int32), 8, 3)[0], name=path.name)


def _archives(folder):
    arrays = {"known_scores": np.linspace(0, 1, 7, dtype=np.float32), "labels": np.arange(7)}
    np.savez(folder / "a.npz", **arrays)
    np.savez_compressed(folder / "b.npz", **arrays)
    safetensors_file.write(str(folder / "c.safetensors"), arrays)
    (folder / "d.pth").write_bytes(pickle.dumps({"a": [1, 2.0]}, protocol=2))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


READERS = {"npz": stored.read_npz, "safetensors": safetensors_file.read, "pth": torch_file.read}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.npz", "b.npz", "c.safetensors", "d.pth"])
@many
@given(drawn=st.data())
def test_fuzzed_archives(tmp_path_factory, name, drawn):
    folder = tmp_path_factory.mktemp("archives")
    content = drawn.draw(mutated(_archives(folder)[name]))
    (folder / name).write_bytes(content)
    refused_or_read(lambda: READERS[name.rpartition(".")[2]](str(folder / name)), name=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["results.json", "config.json", "metrics.jsonl", "scores.npz", "features.npz"])
@settings(many, max_examples=300)
@given(drawn=st.data())
def test_fuzzed_files_of_a_report(tmp_path_factory, name, drawn):
    folder = tmp_path_factory.mktemp("runs") / "run"
    write_run(folder)
    content = (folder / name).read_bytes()
    if name.endswith(".json"):
        found = json.loads(content)
        key = drawn.draw(st.sampled_from(sorted(found)))
        value = found | {key: drawn.draw(JSON)}
        content = drawn.draw(st.one_of(st.just(json.dumps(value).encode()), mutated(content)))
    else:
        content = drawn.draw(mutated(content))
    (folder / name).write_bytes(content)

    def read():
        from gradmix_jax import report

        report.summary([str(folder)])
        run = runs.read(str(folder))
        assert all(math.isfinite(line["step"]) for line in run.log)
        for arrays in (run.scores, run.features):
            assert all(arrays[each] is not None for each in arrays)

    refused_or_read(read, name=name if name != "config.json" else "")


@few
@given(st.dictionaries(st.text("ab_", max_size=5), JSON, max_size=3))
def test_a_config_of_anything_is_refused_in_one_line(config):
    with pytest.raises(ValueError) as raised:
        config_lib.from_config(config, num_devices=1)
    assert len(str(raised.value).splitlines()) == 1
