"""A workdir in a bucket belongs to one process at a time."""

import json
import os
import socket
import time

import fake_bucket
import pytest

from gradmix_jax.workdir import lock, storage

WORKDIR = "gs://b/run"
PATH = f"{WORKDIR}/{lock.NAME}"


@pytest.fixture(autouse=True)
def bucket(tmp_path, monkeypatch):
    for name, seconds in {"SETTLED_AFTER": 0.01, "LOOKED_EVERY": 0.01, "DEAD_AFTER": 0.3}.items():
        monkeypatch.setattr(lock, name, seconds)
    with fake_bucket.installed(tmp_path / "bucket") as kind:
        yield kind


def _owned(**changes):
    storage.write(PATH, json.dumps(vars(lock.Owner.this()) | {"touched": 1} | changes).encode())


def test_it_is_held_and_let_go():
    with lock.hold(WORKDIR):
        assert lock.Owner.read(PATH).pid == os.getpid()
        with (
            pytest.raises(lock.LockedError, match=f"{WORKDIR} is in use by process {os.getpid()} on"),
            lock.hold(WORKDIR),
        ):
            pass
        assert lock.Owner.read(PATH).pid == os.getpid()
    assert storage.files_below(WORKDIR) == []


@pytest.mark.parametrize("changes", [{"host": "elsewhere"}, {"place": "other"}, {"pid": 2**22 + 1}, {"born": "1"}])
def test_a_dead_owner_gives_way(changes, capsys):
    _owned(**changes)
    started = time.monotonic()
    with lock.hold(WORKDIR):
        assert lock.Owner.read(PATH) == lock._held[WORKDIR]
    if "pid" not in changes and "born" not in changes:
        assert time.monotonic() - started > lock.DEAD_AFTER
        assert "waiting to see whether process" in capsys.readouterr().err


def test_an_owner_on_another_host_is_alive_once_its_file_changes(bucket):
    _owned(host="elsewhere")
    looks = []

    def touch(operation, name):
        looks.append(operation)
        if looks.count("read") == 3 and operation == "read":
            _owned(host="elsewhere", touched=2)

    bucket.fail = staticmethod(touch)
    with pytest.raises(lock.LockedError, match=f"on elsewhere since .*or delete {PATH}"), lock.hold(WORKDIR):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_file_holds_nobody_up(content):
    storage.write(PATH, content)
    with lock.hold(WORKDIR):
        pass
    assert storage.files_below(WORKDIR) == []


def test_one_of_two_that_create_it_at_once_wins(bucket):
    """The other's file appears between our reading and our creating."""
    raced = []

    def race(operation, name):
        if operation == "put" and not raced:
            raced.append(name)
            _owned()

    bucket.fail = staticmethod(race)
    with pytest.raises(lock.LockedError, match="in use by process"), lock.hold(WORKDIR):
        pass


def test_one_of_two_that_replace_a_dead_owner_finds_the_others_file(monkeypatch):
    _owned(pid=2**22 + 1)
    monkeypatch.setattr(time, "sleep", lambda _: _owned(host="faster"))
    with pytest.raises(lock.LockedError, match="on faster"), lock.hold(WORKDIR):
        pass
    assert lock.Owner.read(PATH).host == "faster"


def test_the_owner_writes_the_time_and_finds_out_when_it_was_taken_for_dead(monkeypatch):
    monkeypatch.setattr(lock, "TOUCHED_EVERY", 0.01)
    with lock.hold(WORKDIR):
        first, deadline = storage.read(PATH), time.time() + 10
        while storage.read(PATH) == first:
            assert time.time() < deadline
        lock.check(WORKDIR)
        monkeypatch.setattr(lock, "TOUCHED_EVERY", 60)
        time.sleep(0.1)
        _owned(host="elsewhere")
        time.sleep(0.1)
        with pytest.raises(lock.LockedError, match="is in use by process .* on elsewhere"):
            lock.check(WORKDIR)
    assert lock.Owner.read(PATH).host == "elsewhere" != socket.gethostname(), "only its own file is removed"
    lock.check(WORKDIR)


def test_a_bucket_that_cannot_be_written_is_one_line(bucket):
    def refuse(operation, name):
        if operation == "put":
            raise FileNotFoundError("The specified bucket does not exist")

    bucket.fail = staticmethod(refuse)
    with pytest.raises(OSError, match=r"cannot be used \(FileNotFoundError: The specified bucket"), lock.hold(WORKDIR):
        pass
