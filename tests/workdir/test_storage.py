"""Files in a bucket: the operations of an object store suffice, and its errors are one line."""

import errno
import json
import os

import fake_bucket
import fsspec
import numpy as np
import pytest

from gradmix_jax import stored
from gradmix_jax import workdir as workdir_lib
from gradmix_jax.workdir import storage
from gradmix_jax.workdir.mirror import Mirror


@pytest.fixture
def bucket(tmp_path):
    with fake_bucket.installed(tmp_path / "bucket") as kind:
        yield kind


@pytest.fixture(params=["gs://b/runs", "s3://b/runs", "local"])
def folder(request, bucket, tmp_path):
    return str(tmp_path / "runs") if request.param == "local" else request.param


def test_a_bucket_and_a_disk_answer_alike(folder):
    assert not storage.exists(folder) and storage.names(folder) == storage.files_below(folder) == []
    storage.make_directory(f"{folder}/a/b")
    for name in ("a/x.json", "a/b/y.json", "z.json"):
        with workdir_lib.replacing(f"{folder}/{name}") as file:
            file.write('{"name": "ü"}')
    assert storage.names(folder) == ["a", "z.json"]
    assert storage.names(f"{folder}/a") == ["b", "x.json"]
    assert storage.files_below(folder) == ["a/b/y.json", "a/x.json", "z.json"]
    assert storage.is_directory(f"{folder}/a") and not storage.is_directory(f"{folder}/z.json")
    assert storage.exists(f"{folder}/z.json") and not storage.exists(f"{folder}/z")
    assert workdir_lib.read_json(f"{folder}/a", "x.json") == {"name": "ü"}
    with storage.local_copy(f"{folder}/z.json") as copy, open(copy, encoding="utf-8") as file:
        assert json.load(file) == {"name": "ü"}
    storage.remove(f"{folder}/z.json")
    assert not storage.exists(f"{folder}/z.json")
    storage.remove(f"{folder}/z.json")
    with pytest.raises(ValueError, match=r"^no z\.json in \S+runs; give the workdir of a run that has written it\.$"):
        workdir_lib.read_json(folder, "z.json")


def test_arrays_of_a_bucket_are_read_one_at_a_time(folder):
    storage.make_directory(folder)
    scores = {"known_scores": np.arange(3.0), "unknown_scores": np.zeros(2)}
    with workdir_lib.replacing(f"{folder}/scores.npz", "wb") as file:
        np.savez(file, **scores)
    found = stored.arrays(folder, "scores.npz")
    np.testing.assert_array_equal(found["known_scores"], scores["known_scores"])
    assert stored.arrays(folder, "gallery.npz") is None and stored.metrics(folder) == []
    with workdir_lib.replacing(f"{folder}/scores.npz", "wb") as file:
        file.write(b"garbage")
    with pytest.raises(ValueError, match=rf"^{folder}/scores\.npz is damaged: "):
        stored.arrays(folder, "scores.npz")


def test_an_upload_that_fails_leaves_the_old_file(bucket):
    with workdir_lib.replacing("gs://b/run/a.json") as file:
        file.write("old")

    def refuse(operation, name):
        if operation == "put":
            raise RuntimeError("token\nexpired")

    bucket.fail = staticmethod(refuse)
    said = r"the bucket cannot be used \(RuntimeError: token expired\): 'gs://b/run/a\.json'"
    with pytest.raises(OSError, match=said), workdir_lib.replacing("gs://b/run/a.json") as file:
        file.write("new")
    assert storage.read("gs://b/run/a.json") == b"old"


def test_a_store_that_refuses_is_not_taken_for_an_empty_one(bucket):
    def refuse(operation, name):
        raise PermissionError("Forbidden")

    bucket.fail = staticmethod(refuse)
    for ask in (storage.exists, storage.names, storage.files_below, storage.read, storage.is_directory):
        with pytest.raises(OSError, match=r"the bucket cannot be used \(PermissionError: Forbidden\)"):
            ask("gs://b/run")


@pytest.mark.parametrize(
    ("raised", "may_pass"),
    [
        (FileNotFoundError("The specified bucket does not exist"), False),
        (PermissionError("Access Denied"), False),  # of s3fs
        (OSError("Forbidden: b/run\nno access"), False),  # of gcsfs
        (TimeoutError("no answer"), True),
        (RuntimeError("503"), True),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Exception) else str(each),
)
def test_a_store_that_does_not_answer_is_no_mistake(bucket, raised, may_pass):
    def fail(operation, name):
        raise raised

    bucket.fail = staticmethod(fail)
    for ask in (
        lambda: storage.write("gs://b/run/a", b""),
        lambda: storage.upload(__file__, "gs://b/run/a"),
        lambda: workdir_lib.read_json("gs://b/run", "config.json"),
    ):
        with pytest.raises((OSError, ValueError)) as found:
            ask()
        assert storage.may_pass(found.value) == may_pass


def test_a_disk_that_is_full_is_no_mistake():
    assert storage.may_pass(OSError(errno.ENOSPC, "No space left on device"))
    assert storage.may_pass(ValueError("INTERNAL: Error writing: No space left on device"))
    assert not storage.may_pass(FileNotFoundError(errno.ENOENT, "no such file"))
    assert not storage.may_pass(ValueError("train.batch_size must be positive"))


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("gs://b/runs/a/", "gs://b/runs/a"),
        ("s3://b//runs/./a", "s3://b/runs/a"),
        ("file:///tmp/a%20b", "/tmp/a b"),
        ("file://localhost/tmp/a", "/tmp/a"),
    ],
)
def test_a_url_of_a_workdir(bucket, given, path):
    assert workdir_lib.resolve(given) == path


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("gs://bucket", "--workdir must be gs://BUCKET/FOLDER, got 'gs://bucket'."),
        ("gs://", "--workdir must be gs://BUCKET/FOLDER, got 'gs://'."),
        ("gs://b/..", "--workdir must be gs://BUCKET/FOLDER, got 'gs://b/..'."),
        ("gs:///b/x", "--workdir must be gs://BUCKET/FOLDER, got 'gs:///b/x'."),
        ("gs://b/lr[0.1]", "--workdir must not have [ ] in its absolute path, got 'gs://b/lr[0.1]'."),
        ("ftp://b/x", "--workdir must be a directory, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER, got 'ftp://b/x'."),
        ("file://host/x", "--workdir must be file:///FOLDER on this machine, got 'file://host/x'."),
    ],
)
def test_a_url_that_cannot_hold_a_run_is_refused(bucket, given, said):
    with pytest.raises(ValueError) as raised:
        workdir_lib.resolve(given)
    assert str(raised.value) == said
    with pytest.raises(ValueError, match="--out must be a directory on this machine|must be file:///FOLDER"):
        workdir_lib.resolve(given, "--out", remote=False)


@pytest.mark.parametrize(("scheme", "package"), storage.PACKAGES.items())
def test_a_package_that_is_missing_is_named(monkeypatch, scheme, package):
    def missing(_):
        raise ImportError

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    said = f"^{scheme}:// needs {package}, which is not installed; pip install {package}.$"
    for ask in (
        workdir_lib.resolve,
        storage.exists,
        storage.names,
        storage.read,
        lambda path: storage.write(path, b""),
    ):
        with pytest.raises(ValueError, match=said):
            ask(f"{scheme}://b/run")


def test_growing_files_are_copied_when_they_have_changed(bucket, tmp_path):
    storage.write("gs://b/runs/a/metrics.jsonl", b"1\n")
    storage.write("gs://b/runs/a/mlruns/0/meta", b"m")
    storage.write("gs://b/runs/a/results.json", b"{}")
    mirror = Mirror("gs://b/runs/a", ["metrics.jsonl", "mlruns", "trackers.json"])
    assert os.path.basename(mirror.local) == "a"
    assert storage.files_below(mirror.local) == ["metrics.jsonl", "mlruns/0/meta"]
    with open(f"{mirror.local}/metrics.jsonl", "a", encoding="utf-8") as file:
        file.write("2\n")
    os.makedirs(f"{mirror.local}/tensorboard")
    with open(f"{mirror.local}/tensorboard/events", "wb") as file:
        file.write(b"e")
    put = []
    bucket.fail = staticmethod(lambda operation, name: put.append(name) if operation == "put" else None)
    mirror.push()
    mirror.push()
    assert put == ["b/runs/a/metrics.jsonl", "b/runs/a/tensorboard/events"]
    assert storage.read("gs://b/runs/a/metrics.jsonl") == b"1\n2\n"
    local = Mirror(str(tmp_path), ["metrics.jsonl"])
    assert local.local == str(tmp_path) and not local.is_remote
    local.push()
