"""Damaged files of a run: each reader says in one line which file it is and what is wrong with it."""

import functools
import io
import json
import math
import pickle
import shutil
import zipfile

import numpy as np
import pytest
from evaluated_runs import write_run

from gradmix_jax import config as config_lib
from gradmix_jax import report, stored, workdir
from gradmix_jax import run as run_lib
from gradmix_jax.evaluation import cache
from gradmix_jax.portable import from_run
from gradmix_jax.report import runs


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """{name of a file: its content} of an evaluated run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    write_run(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def put(folder, whole, **changed):
    """A copy of the run in which some files have other content; None means the file is missing."""
    for name, content in (whole | changed).items():
        if content is not None:
            (folder / name).write_bytes(content)
    return str(folder)


def edited(content: bytes, place: str, value) -> bytes:
    """A JSON file with another value at "a.b.c"; `...` deletes the key."""
    root = json.loads(content)
    holder, *rest = root, *place.split(".")
    for name in rest[:-1]:
        holder = holder[name]
    if value is ...:
        del holder[rest[-1]]
    else:
        holder[rest[-1]] = value
    return json.dumps(root).encode()


# Of any JSON file: (what it is, content -> content, what is said).
OF_JSON = [
    ("empty", lambda content: b"", "is damaged: Expecting value"),
    ("cut", lambda content: content[: len(content) // 2], "is damaged: "),
    ("garbage", lambda content: bytes(range(256)), "is damaged: "),
    ("zeros", lambda content: bytes(100), "is damaged: Expecting value"),
    ("list", lambda content: b"[1]", "is damaged: expected an object, found a list"),
    ("pickled", lambda content: pickle.dumps({"auroc": 1}), "is damaged: "),
    ("deep", lambda content: b"[" * 100_000, "is damaged: "),
    ("digits", lambda content: b'{"seed": ' + b"9" * 5000 + b"}", "is damaged: "),
]
RESULTS = [
    ("auroc", "high", "auroc must be a finite number from 0 to 1, got 'high'"),
    ("auroc", math.inf, "auroc must be a finite number from 0 to 1, got inf"),
    ("auroc", 7, "auroc must be a finite number from 0 to 1, got 7"),
    ("accuracy", True, "accuracy must be a finite number from 0 to 1, got True"),
    ("step", "5", "step must be an integer of at least 0, got '5'"),
    ("step", -1, "step must be an integer of at least 0, got -1"),
    ("by_score", [], r"by_score must be an object, got \[\]"),
    ("by_score.features", 5, "by_score.features must be an object, got 5"),
    ("by_score.features.knn.auroc", "x", "by_score.features.knn.auroc must be a finite number from 0 to 1, got 'x'"),
    ("by_feature.features", None, "by_feature.features must be an object, got None"),
    ("intervals.auroc", [0.1], "intervals.auroc must have 2 elements, got 1"),
    ("confusion.counts", [[1]], "confusion.counts must have 10 rows of 7 numbers"),
    (
        "confusion.counts",
        [[2**31]],
        r"confusion.counts\[0\]\[0\] must be an integer of at most 2147483647, got 2147483648",
    ),
    ("confusion.rows", ..., "confusion.rows is missing"),
    ("confusion.counts", "many", "confusion.counts must be a list, got 'many'"),
    ("known_classes", "cat", "known_classes must be a list, got 'cat'"),
    ("known_classes", [1], r"known_classes\[0\] must be a string, got 1"),
    ("environment", "here", "environment must be an object, got 'here'"),
    ("environment.devices", "cpu", "environment.devices must be a list, got 'cpu'"),
    ("environment.packages.jax", 3, "environment.packages.jax must be a string, got 3"),
    ("duplicates.known", "none", "duplicates.known must be an integer of at least 0, got 'none'"),
    ("failed", {"a": 1}, "failed.a must be a string, got 1"),
    ("corruptions.results", 1, "corruptions.results must be an object, got 1"),
    ("ood.near", 1, "ood.near must be an object, got 1"),
    ("ood.near", {"a": {}}, "ood.near.a.by_score is missing"),
    ("probes.letters", "x", "probes.letters must be an object, got 'x'"),
    ("closed_set.knn", 0.9, "closed_set.knn must be an object, got 0.9"),
    ("threshold_rule", 5, "threshold_rule must be a string, got 5"),
    ("version", "2", "version must be a positive integer, got '2'"),
]
CONFIG = [
    ("mix", 5, "mix must be an object, got 5"),
    ("dataset", [], r"dataset must be an object, got \[\]"),
    ("dataset.trial", "0", "dataset.trial must be a finite number, got '0'"),
    ("dataset.name", 3, "dataset.name must be a string, got 3"),
    ("seed", None, "seed must be a finite number, got None"),
    ("name", 7, "name must be a string, got 7"),
    ("phases", {}, r"phases must be a list, got {}"),
    ("phases", [3], r"phases\[0\] must be an object, got 3"),
    ("normalization.mean", 0.5, "normalization.mean must be a list, got 0.5"),
    ("mix.options", [], r"mix.options must be an object, got \[\]"),
]


@pytest.mark.parametrize("name", ["config.json", "results.json"])
@pytest.mark.parametrize(("damage", "said"), [each[1:] for each in OF_JSON], ids=[each[0] for each in OF_JSON])
def test_a_file_that_is_not_json(name, damage, said, whole, tmp_path):
    folder = put(tmp_path, whole, **{name: damage(whole[name])})
    check_one_line(lambda: runs.read(folder), f"{folder}/{name} {said}")


@pytest.mark.parametrize(("place", "value", "said"), RESULTS)
def test_results_of_another_type(place, value, said, whole, tmp_path):
    folder = put(tmp_path, whole, **{"results.json": edited(whole["results.json"], place, value)})
    check_one_line(lambda: runs.read(folder), f"{folder}/results.json is damaged: {said}.$")


@pytest.mark.parametrize(("place", "value", "said"), CONFIG)
def test_a_config_of_another_type(place, value, said, whole, tmp_path):
    folder = put(tmp_path, whole, **{"config.json": edited(whole["config.json"], place, value)})
    check_one_line(lambda: runs.read(folder), f"{folder}/config.json is damaged: {said}.$")


def check_one_line(read, said):
    with pytest.raises(ValueError, match=f"^{said}") as raised:
        read()
    assert "\n" not in str(raised.value) and "Errno" not in str(raised.value) and len(str(raised.value)) < 400


@pytest.mark.parametrize("name", ["config.json", "results.json"])
def test_a_json_file_that_is_missing_or_a_directory(name, whole, tmp_path):
    folder = put(tmp_path, whole, **{name: None})
    check_one_line(lambda: runs.read(folder), f"no {name} in {folder}; give the workdir of a run")
    (tmp_path / name).mkdir()
    check_one_line(lambda: runs.read(folder), f"{folder}/{name} cannot be read: Is a directory.$")


def test_results_of_a_newer_version(whole, tmp_path):
    newer = edited(whole["results.json"], "version", stored.VERSION + 1)
    folder = put(tmp_path, whole, **{"results.json": newer})
    said = f"{folder}/results.json was written by a newer gradmix_jax .version {stored.VERSION + 1} of the file; this"
    check_one_line(lambda: runs.read(folder), said)
    # Unknown keys are no error: they are not shown.
    put(tmp_path, whole, **{"results.json": edited(whole["results.json"], "of_the_future", [1])})
    assert runs.read(folder).results["of_the_future"] == [1]


def test_a_run_that_failed_says_why(whole, tmp_path):
    folder = put(tmp_path, whole, **{"results.json": None, "failed.json": b'{"error": "no disk."}'})
    check_one_line(lambda: runs.read(folder), rf"no results.json in {folder}: the run failed \(no disk\)")


def test_a_run_without_metrics_of_features_is_summarized(whole, tmp_path):
    folder = put(tmp_path, whole, **{"results.json": edited(whole["results.json"], "by_feature", {})})
    assert "no metrics of any feature" in report.summary([folder])


def test_every_part_may_be_missing_or_null(whole, tmp_path):
    """As in the results of older versions."""
    for name, default in stored.MISSING_PARTS.items():
        for value in (..., None):
            content = edited(edited(whole["results.json"], name, 1), name, value)
            found = runs.read(put(tmp_path, whole, **{"results.json": content})).results[name]
            assert found == ({"near": {}, "far": {}} if name == "ood" else default), name


def npz(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name.replace("__", "/"): x for name, x in arrays.items()})
    return buffer.getvalue()


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def zipped(compression=zipfile.ZIP_DEFLATED, **members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def header(text: str, data: bytes = b"") -> bytes:
    encoded = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(encoded).to_bytes(2, "little") + encoded + data


def flipped(content: bytes) -> bytes:
    """One bit in the data of the first member."""
    changed = bytearray(content)
    changed[200] ^= 16
    return bytes(changed)


F = np.linspace(0, 1, 4, dtype=np.float32)
HEAD = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s,), }"
OF_NPZ = [
    ("empty", lambda content: b"", "File is not a zip file"),
    ("cut", lambda content: content[: len(content) // 2], "File is not a zip file"),
    ("garbage", lambda content: bytes(range(256)) * 9, "File is not a zip file"),
    ("pickled", lambda content: pickle.dumps({"known_scores": 1}), "File is not a zip file"),
    ("flipped", flipped, ""),
    (
        "another checksum",
        lambda content: zipped(zipfile.ZIP_STORED, known_scores=npy(F)).replace(F.tobytes(), bytes(16)),
        "Bad CRC-32",
    ),
    ("other content", lambda content: zipped(known_scores=b"hello"), ""),
    ("no magic", lambda content: zipped(known_scores=bytes(400)), ""),
    ("code in the header", lambda content: zipped(known_scores=header("__import__('os').getcwd()")), ""),
    ("no shape", lambda content: zipped(known_scores=header("{'descr': '<f4'}")), ""),
    ("negative", lambda content: zipped(known_scores=header(HEAD % -3, bytes(16))), ""),
    ("cut inside", lambda content: zipped(known_scores=header(HEAD % 9, bytes(16))), "known_scores is cut short"),
    ("huge", lambda content: zipped(known_scores=header(HEAD % 10**15, bytes(16))), "known_scores is cut short"),
    (
        "too long",
        lambda content: zipped(known_scores=header(HEAD % 2, bytes(16))),
        "known_scores is longer than its header says",
    ),
]


def read_all(folder, name):
    arrays = stored.arrays(folder, name)
    return {each: arrays[each] for each in arrays}


@pytest.mark.parametrize("name", ["scores.npz", "gallery.npz", "features.npz"])
@pytest.mark.parametrize(("damage", "said"), [each[1:] for each in OF_NPZ], ids=[each[0] for each in OF_NPZ])
def test_a_file_that_is_not_npz(name, damage, said, whole, tmp_path):
    folder = put(tmp_path, whole, **{name: damage(whole[name])})
    check_one_line(lambda: read_all(folder, name), f"{folder}/{name} is damaged: {said}")


ARRAYS = [
    (
        "scores.npz",
        dict(known_scores=F, unknown_scores=F + np.inf),
        "unknown_scores: it must be finite, got NaN or inf",
    ),
    ("scores.npz", dict(known_scores=F * np.nan, unknown_scores=F), "known_scores: it must be finite, got NaN or inf"),
    ("scores.npz", dict(known_scores=F[:, None]), r"known_scores must be floating with 1 dimension\(s\), got float32"),
    ("scores.npz", dict(known_scores=F.astype(str)), "known_scores must be floating with 1 dimension.s., got <U32"),
    ("scores.npz", dict(known_scores=F, labels=F), "labels must be integer with 1 dimension.s., got float32 .4."),
    ("scores.npz", dict(known_scores=F, labels=np.arange(3)), "labels has 3 rows and known_scores has 4"),
    ("scores.npz", dict(known_scores=F, a__b__known=F[:2]), "a/b/known has 2 rows and known_scores has 4"),
    ("scores.npz", dict(unknown_scores=F, a__b__unknown=F[:2]), "a/b/unknown has 2 rows and unknown_scores has 4"),
    ("scores.npz", dict(known_scores=np.array([{}] * 4)), "known_scores holds Python objects, which are not loaded"),
    ("gallery.npz", dict(misclassified__images=F), "misclassified/images must be uint8 with 4 dimension.s., got float"),
    ("gallery.npz", dict(a__images=np.zeros((2, 8, 8, 1), np.int64)), "a/images must be uint8 with 4 dimension"),
    (
        "gallery.npz",
        dict(a__images=np.zeros((2, 0, 8, 1), np.uint8)),
        "a/images must be images of 1 or 3 channels, got",
    ),
    ("gallery.npz", dict(a__images=np.zeros((2, 8, 8, 2), np.uint8)), r".* channels, got \[2, 8, 8, 2\]"),
    ("gallery.npz", dict(a__scores=F, a__truth=np.array(["x"])), "a/truth has 1 rows and a/scores has 4"),
    ("gallery.npz", dict(a__truth=F), "a/truth must be string with 1 dimension.s., got float32"),
    ("features.npz", dict(test_known__features=F), "test_known/features must be floating with 2 dimension.s., got"),
    ("features.npz", dict(t__features=F[:, None] + np.inf), "t/features: it must be finite, got NaN or infinity"),
    ("features.npz", dict(t__features=F[:, None], t__labels=np.arange(2)), "t/labels has 2 rows and t/features has 4"),
    ("features.npz", dict(t__labels=F), "t/labels must be integer with 1 dimension.s., got float32"),
]


@pytest.mark.parametrize(("name", "arrays", "said"), ARRAYS)
def test_arrays_of_another_kind(name, arrays, said, whole, tmp_path):
    folder = put(tmp_path, whole, **{name: npz(**arrays)})
    check_one_line(lambda: read_all(folder, name), f"{folder}/{name} is damaged: {said}")


def test_a_file_that_claims_far_more_bytes_than_it_has(tmp_path):
    path = tmp_path / "scores.npz"
    member = dict(name="known_scores.npy", mode="w", force_zip64=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, archive.open(**member) as file:
        file.write(header(HEAD % (2**28 // 4)))
        for _ in range(2**8):
            file.write(bytes(2**20))
    assert path.stat().st_size < 2**22
    with pytest.raises(ValueError, match="scores.npz is damaged: it claims 268,435,5.. bytes of arrays in a file of"):
        stored.arrays(str(tmp_path), "scores.npz")


def test_rows_by_column(tmp_path):
    """Arrays in Fortran order were not written by this package."""
    values = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(4, 3))
    np.savez(tmp_path / "a.npz", a=values, s=np.array("text"), empty=np.zeros((0, 3)))
    found = stored.Arrays(str(tmp_path / "a.npz"))
    np.testing.assert_array_equal(found["a"], values)
    assert found["s"] == "text" and found["empty"].shape == (0, 3) and found.rows("empty", np.zeros(0, int)).size == 0
    with pytest.raises(ValueError, match=r"a.npz is damaged: a: it is in Fortran order"):
        found.rows("a", np.array([1]))
    with pytest.raises(ValueError, match=r"a.npz is damaged: it has no array b.$"):
        found["b"]


@pytest.mark.parametrize(
    ("content", "steps", "bad"),
    [
        (b"", [], 0),
        (b'{"step": 1, "loss": 2}\n{"step": 2, "lo', [1], 0),
        (b'{"step": 1, "loss": 2}\ngarbage\n{"step": 3, "loss": null}\n', [1, 3], 1),
        (bytes(range(256)) + b'\n{"step": 3}\n', [3], None),
        (b"\x80\x04]\x94}\x94K\x01e.", [], 1),
        (b'{"step": "1"}\n{"step": -1}\n{"step": true}\n[1]\n{"loss": 1}\n', [], 5),
        (b'{"step": 1, "loss": "low"}\n{"step": 2, "loss": Infinity}\n', [], 2),
    ],
)
def test_lines_of_metrics(content, steps, bad, whole, tmp_path, capsys):
    folder = put(tmp_path, whole, **{"metrics.jsonl": content})
    assert [line["step"] for line in stored.metrics(folder)] == steps
    said = capsys.readouterr().err
    if bad is None:
        assert "lines are left out" in said
    else:
        assert (f"metrics.jsonl is damaged: {bad} of" in said) == bool(bad) and said.count("\n") == bool(bad)


METADATA = {
    "format": from_run.FORMAT,
    "version": from_run.VERSION,
    "class_names": ["a"],
    "image": {"size": 8, "channels": 1, "background": "white"},
    "score": {"name": "knn", "feature": "features", "arrays": [], "inputs": ["features"], "float64": False},
    "model": {"weights": []},
    "calibration_scores": [0.5],
    "threshold": None,
    "step": 1,
    "steps": 2,
}


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("format", "another", "is damaged: its format is 'another', version 1."),
        ("version", 99, "was written by a newer gradmix_jax .version 99.; update gradmix_jax."),
        ("version", "1", "is damaged: its format is 'gradmix_jax classifier', version '1'."),
        ("class_names", 5, "is damaged: class_names must be a list, got 5."),
        ("image", ..., "is damaged: image is missing."),
        ("image.size", 0, "is damaged: image.size must be an integer of at least 1, got 0."),
        ("score.inputs", "features", "is damaged: score.inputs must be a list, got 'features'."),
        ("calibration_scores", [math.inf], r"is damaged: calibration_scores\[0\] must be a finite number, got inf."),
        ("calibration_scores", ..., "is damaged: calibration_scores is missing."),
        ("model.weights", ..., "is damaged: model.weights is missing."),
        ("steps", None, "is damaged: steps must be an integer of at least 0, got None."),
    ],
)
def test_metadata_of_an_export(place, value, said, tmp_path):
    path = tmp_path / "metadata.json"
    path.write_text(json.dumps(METADATA))
    options = dict(wanted=from_run.FORMAT, newest=from_run.VERSION)
    assert stored.export_metadata(str(path), **options) == METADATA
    path.write_bytes(edited(path.read_bytes(), place, value))
    check_one_line(lambda: stored.export_metadata(str(path), **options), f"{path} {said}")


@pytest.mark.parametrize(("damage", "said"), [each[1:] for each in OF_JSON], ids=[each[0] for each in OF_JSON])
def test_metadata_that_is_not_json(damage, said, tmp_path):
    path = tmp_path / "metadata.json"
    path.write_bytes(damage(json.dumps(METADATA).encode()))
    options = dict(wanted=from_run.FORMAT, newest=from_run.VERSION)
    check_one_line(lambda: stored.export_metadata(str(path), **options), f"{path} {said}")


def test_a_damaged_cache_of_features_is_none(whole, tmp_path, capsys):
    folder = put(tmp_path, whole, **{"features.npz": b"x"})
    content = whole["features.npz"]
    half = len(content) // 2
    cases = {
        "garbage": (b"x", "is damaged: "),
        "empty": (b"", "is damaged: "),
        "cut": (content[:half], "is damaged: "),
        "one byte": (content[:half] + bytes([content[half] ^ 4]) + content[half + 1 :], "is damaged: "),
        "without hashes": (content, "is damaged: it has no array test_known/"),  # made up
    }
    for name, (damaged, said) in cases.items():
        (tmp_path / "features.npz").write_bytes(damaged)
        assert cache.load(folder) is None, name
        line = capsys.readouterr().err
        assert line.startswith(f"warning: {folder}/features.npz {said}"), line
        assert line.endswith("; its features are computed again.\n") and line.count("\n") == 1, line


def test_a_whole_report_of_a_run_with_a_damaged_file_is_one_line_and_writes_nothing(whole, tmp_path):
    for name, content in {"scores.npz": b"x", "gallery.npz": npz(a__images=F), "features.npz": b"y"}.items():
        (tmp_path / name).mkdir()
        folder = put(tmp_path / name, whole, **{name: content})
        write = functools.partial(report.write, [folder], str(tmp_path / "out"))
        check_one_line(write, f"{folder}/{name} is damaged: ")
    assert not (tmp_path / "out").exists()


def test_the_files_of_a_run_fit_their_schemas(whole, tmp_path):
    folder = put(tmp_path, whole)
    for name in ("scores.npz", "gallery.npz", "features.npz"):
        for each, x in read_all(folder, name).items():
            np.testing.assert_array_equal(x, np.load(tmp_path / name)[each])
    assert runs.read(folder).config == config_lib.read(folder)
    before, found = workdir.read_json(folder, "results.json"), stored.results(folder)
    assert all(found[name] == value for name, value in before.items() if value is not None)


def test_arrays_of_another_run_are_refused(tmp_path):
    folders = [write_run(tmp_path / str(seed), "none", seed=seed) for seed in (0, 1)]
    for folder in folders:
        content = workdir.read_json(folder, "results.json")
        both = {entry: dict(np.load(f"{folder}/{name}")) for entry, name in run_lib.ARRAYS.items()}
        config = workdir.read_json(folder, "config.json")
        written = run_lib.save_results(content | both, config, folder)
        assert written["sha256"].keys() == {"scores.npz", "gallery.npz"}
        # A later part of the evaluation leaves the arrays as they are.
        again = run_lib.save_results(content | {"sha256": written["sha256"]}, config, folder)
        assert again["sha256"] == written["sha256"]
        runs.read(folder).check()
    for name in ("scores.npz", "gallery.npz"):
        kept = (tmp_path / "0" / name).read_bytes()
        shutil.copy(tmp_path / "1" / name, tmp_path / "0" / name)
        with pytest.raises(ValueError, match=rf"/0/{name} is damaged or of another run: its SHA-256 is not the one"):
            runs.read(folders[0]).check()
        (tmp_path / "0" / name).write_bytes(kept)


def test_arrays_of_an_earlier_evaluation_are_left_out(tmp_path):
    """The part that made them may have failed since, or is not wanted any more."""
    folder = write_run(tmp_path / "run", "none")
    content, config = workdir.read_json(folder, "results.json"), workdir.read_json(folder, "config.json")
    assert runs.read(folder).gallery is not None
    run_lib.save_results(content | {"arrays": dict(np.load(f"{folder}/scores.npz"))}, config, folder)
    found = runs.read(folder)
    assert found.gallery is None and found.scores is not None
