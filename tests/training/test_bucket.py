"""Checkpoints of a workdir in a bucket: round trips, interrupted and failed uploads, damage."""

import re

import fake_bucket
import jax
import numpy as np
import pytest
from programs import small_program, small_state

from gradmix_jax.training.checkpoint import Checkpoints, SaveError
from gradmix_jax.workdir import lock, storage

WORKDIR = "gs://b/run"


@pytest.fixture(autouse=True)
def bucket(tmp_path):
    with fake_bucket.installed(tmp_path / "bucket") as kind:
        yield kind


@pytest.fixture(scope="module")
def state():
    return jax.device_get(small_state(*small_program()))


def _at(state, step):
    return state.replace(step=np.int32(step), params=jax.tree.map(lambda x: x + step, state.params))


def _save(state, *steps, **options):
    checkpoints = Checkpoints(WORKDIR, of=None, **options)
    for step in steps:
        checkpoints.save(_at(state, step))
    checkpoints.close()


def _restored(state):
    reader = Checkpoints(WORKDIR, of=None, read_only=True)
    try:
        return reader.restore(state)
    finally:
        reader.close()


def _same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def test_round_trip_and_what_is_kept(state):
    assert not Checkpoints.exist(WORKDIR)
    with pytest.raises(ValueError, match=f"^no checkpoint in {WORKDIR}; give the workdir"):
        Checkpoints(WORKDIR, of=None, read_only=True)
    _save(state, 1, 2, 3, keep=2)
    assert Checkpoints.exist(WORKDIR)
    assert storage.names(f"{WORKDIR}/checkpoints") == ["2", "2.json", "3", "3.json"]
    _same(_restored(state), _at(state, 3))
    _save(state, 4, keep=2)  # by another process
    assert storage.names(f"{WORKDIR}/checkpoints") == ["3", "3.json", "4", "4.json"]


def test_a_copy_of_the_bucket_is_a_run(state, tmp_path):
    _save(state, 1)
    for name in storage.files_below(WORKDIR):
        storage.download(f"{WORKDIR}/{name}", str(tmp_path / "copy" / name))
    reader = Checkpoints(str(tmp_path / "copy"), of=None, read_only=True)
    _same(reader.restore(state), _at(state, 1))
    assert reader.steps() == [1]
    reader.close()


@pytest.mark.parametrize("puts", [0, 1, 5, "marker"])
def test_an_upload_that_fails_leaves_the_one_before(state, bucket, puts):
    _save(state, 1)
    left = []

    def fail(operation, name):
        if operation == "put":
            left.append(name)
            if name.endswith("2.json") if puts == "marker" else len(left) > puts:
                raise RuntimeError("503")

    bucket.fail = staticmethod(fail)
    checkpoints = Checkpoints(WORKDIR, of=None)
    checkpoints.save(_at(state, 2))
    said = (
        rf"^a checkpoint cannot be saved in {WORKDIR}/checkpoints \(the bucket cannot be used \(RuntimeError: 503\)\);"
        r" step 1 is the newest there; rerun the command to resume\.$"
    )
    with pytest.raises(SaveError, match=said):
        checkpoints.close()
    bucket.fail = staticmethod(lambda operation, name: None)
    _same(_restored(state), _at(state, 1))
    before = set(storage.files_below(f"{WORKDIR}/checkpoints/2"))
    _save(state, 2)
    _same(_restored(state), _at(state, 2))
    named = storage.read(f"{WORKDIR}/checkpoints/2.json").decode()
    assert all(name in named for name in storage.files_below(f"{WORKDIR}/checkpoints/2")), before


def test_what_interrupted_uploads_left_is_deleted(state):
    storage.write(f"{WORKDIR}/checkpoints/1/model/part", b"half")
    _save(state, 2)
    assert storage.names(f"{WORKDIR}/checkpoints") == ["2", "2.json"]


@pytest.mark.parametrize("damage", ["flipped", "cut", "deleted", "marker", "garbage", "outside"])
def test_a_damaged_one_gives_way_to_the_one_before(state, damage, capsys):
    _save(state, 1, 2)
    folder = f"{WORKDIR}/checkpoints/2"
    name = next(name for name in storage.files_below(folder) if "/d/" in name)
    content = storage.read(f"{folder}/{name}")
    if damage == "deleted":
        storage.remove(f"{folder}/{name}")
    elif damage == "marker":
        storage.write(f"{folder}.json", storage.read(f"{folder}.json")[:40])
    elif damage == "garbage":
        storage.write(f"{folder}.json", b'{"sha256": 5}')
    elif damage == "outside":
        storage.write(f"{folder}.json", b'{"sha256": {"../../x": ""}}')
    else:
        storage.write(f"{folder}/{name}", content[:-1] if damage == "cut" else bytes([content[0] ^ 1]) + content[1:])
    _same(_restored(state), _at(state, 1))
    said = capsys.readouterr().err
    assert re.fullmatch(rf"warning: {folder} cannot be read \(.+\)\. Using {WORKDIR}/checkpoints/1\.\n", said), said
    checkpoints = Checkpoints(WORKDIR, of=None)
    _same(checkpoints.restore(state), _at(state, 1))
    checkpoints.save(_at(state, 2))  # training reaches this step again
    checkpoints.close()
    _same(_restored(state), _at(state, 2))


def test_a_bucket_that_cannot_be_reached_is_no_damage(state, bucket):
    _save(state, 1, 2)

    def fail(operation, name):
        if operation == "read" and "/d/" in name:
            raise TimeoutError("no answer")

    bucket.fail = staticmethod(fail)
    checkpoints = Checkpoints(WORKDIR, of=None)
    with pytest.raises(OSError, match=r"the bucket cannot be used \(TimeoutError: no answer\)"):
        checkpoints.restore(state)
    checkpoints.close()
    assert checkpoints.steps() == [1, 2]


def test_nothing_is_saved_in_a_workdir_that_another_process_has_taken_over(state):
    with lock.hold(WORKDIR):
        checkpoints = Checkpoints(WORKDIR, of=None)
        checkpoints.save(_at(state, 1))
        checkpoints._finish()
        owner = vars(lock.Owner.this()) | {"host": "elsewhere"}
        storage.write(f"{WORKDIR}/{lock.NAME}", str(owner).replace("'", '"').encode())
        checkpoints.save(_at(state, 2))
        with pytest.raises(lock.LockedError, match="is in use by process .* on elsewhere"):
            checkpoints.close()
    assert storage.names(f"{WORKDIR}/checkpoints") == ["1", "1.json"]
