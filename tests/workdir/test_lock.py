"""A workdir belongs to one process at a time, and a dead process leaves nothing to clean up."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time

import commands
import pytest

from gradmix_jax.workdir import lock

HOLDER = """import sys, time; from gradmix_jax.workdir import lock
with lock.hold(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """(workdir, process that holds it)."""
    workdir = str(tmp_path / "runs" / "a")
    process = subprocess.Popen([sys.executable, "-c", HOLDER, workdir], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield workdir, process
    process.kill()
    process.wait()


def test_a_second_process_is_told_who_holds_the_lock(holder):
    workdir, process = holder
    with pytest.raises(lock.LockedError) as raised, lock.hold(workdir):
        pass
    said = str(raised.value)
    assert f"{workdir} is in use by process {process.pid} on {socket.gethostname()} since 20" in said
    assert "\n" not in said
    assert lock.Owner.read(os.path.join(workdir, lock.NAME)).pid == process.pid, "the refused one changes nothing"


@pytest.mark.parametrize("mode", ["train", "eval", "train_and_eval"])
def test_no_mode_of_the_command_starts_beside_another(holder, mode):
    workdir, process = holder
    before = sorted(os.listdir(workdir))
    words = ["--config=configs/digits_osr.py", f"--workdir={workdir}", f"--mode={mode}"]
    result = commands.run("gradmix_jax.main", *words)
    assert result.returncode == 5
    assert result.stderr.startswith(f"error: {workdir} is in use by process {process.pid} on ")
    assert len(result.stderr.splitlines()) == 1 and sorted(os.listdir(workdir)) == before


def test_the_lock_of_a_killed_process_is_taken_over(holder):
    workdir, process = holder
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert os.path.exists(os.path.join(workdir, lock.NAME))
    with lock.hold(workdir):
        assert lock.Owner.read(os.path.join(workdir, lock.NAME)).pid == os.getpid()


def test_the_owner_is_on_the_disk_at_once(tmp_path, monkeypatch):
    """Other hosts of a network disk read the file while it is open."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.pread(descriptor, 9999, 0)))
    with lock.hold(str(tmp_path)):
        assert [lock.Owner.parse(each).pid for each in synced] == [os.getpid()]


def test_nothing_stays_behind(tmp_path):
    with lock.hold(str(tmp_path / "a" / "b")):
        assert os.listdir(tmp_path / "a" / "b") == [lock.NAME]
    assert not os.listdir(tmp_path)
    (tmp_path / "mine").mkdir()
    with pytest.raises(ZeroDivisionError), lock.hold(str(tmp_path / "mine")):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["mine"]


def _owned(path, **changes):
    owner = {**vars(lock.Owner.this()), **changes}
    path.write_text(json.dumps(owner))
    return owner


def test_the_lock_of_another_host_expires_by_the_time_of_its_file(tmp_path):
    """A file system may lock per host only, in which case the system's lock succeeds on both."""
    path = tmp_path / lock.NAME
    _owned(path, host="elsewhere", pid=4)
    said = "process 4 on elsewhere since .*; wait for it, or delete .*lock.json"
    with pytest.raises(lock.LockedError, match=said), lock.hold(str(tmp_path)):
        pass
    os.utime(path, (time.time() - lock.DEAD_AFTER - 1,) * 2)
    with lock.hold(str(tmp_path)):
        assert lock.Owner.read(path).pid == os.getpid()


@pytest.mark.parametrize(
    ("changes", "alive"),
    [
        ({}, True),
        ({"born": "1"}, False),
        ({"pid": 2**22 + 1}, False),
        ({"pid": 2**70}, False),
        ({"pid": 1, "born": ""}, True),
    ],
    ids=["this process", "its number was reused", "no such process", "no number of a process", "another user's"],
)
def test_without_system_locks_the_named_process_counts(tmp_path, monkeypatch, changes, alive):
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    _owned(tmp_path / lock.NAME, **changes)
    if alive:
        with pytest.raises(lock.LockedError, match="is in use by process"), lock.hold(str(tmp_path)):
            pass
    else:
        with lock.hold(str(tmp_path)):
            pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": "a"}', '{"host": 1, "pid": "x"}'])
def test_a_lock_file_truncated_by_a_crash_blocks_nobody(tmp_path, content):
    (tmp_path / lock.NAME).write_text(content)
    with lock.hold(str(tmp_path)):
        pass
    assert not os.listdir(tmp_path)


def test_the_owner_touches_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "TOUCHED_EVERY", 0.01)
    with lock.hold(str(tmp_path)):
        os.utime(tmp_path / lock.NAME, (1, 1))
        deadline = time.time() + 10
        while os.stat(tmp_path / lock.NAME).st_mtime == 1:
            assert time.time() < deadline
            time.sleep(0.01)
