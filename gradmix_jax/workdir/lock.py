"""One process per workdir: a lock that names its owner and does not outlive it.

Buckets have no system lock. There the lock file is created only if it does not exist yet (of two processes that try at
once, Google Cloud Storage and Amazon S3 let one succeed), and its owner keeps rewriting it. A process that finds the
file of another host watches it: if the file changes, its owner is alive, and the process gives up; if it stays the same
for long enough, its owner is dead. No clocks are compared. An owner that was mistaken for dead finds out before it
saves its next checkpoint, see `check`.
"""

import contextlib
import dataclasses
import datetime
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator

from gradmix_jax.workdir import flock, storage

NAME = "lock.json"
# Seconds between two touches of the file by its owner, and without one until an owner on another host counts as dead.
TOUCHED_EVERY = 20.0
DEAD_AFTER = 180.0
# Seconds between two looks at another host's file in a bucket.
LOOKED_EVERY = 2.0
# Seconds to wait after replacing a dead owner's file in a bucket: two processes that did so at once then both find the
# later file.
SETTLED_AFTER = 2.0


class LockedError(storage.UnavailableError):
    """Another process holds the directory."""


@dataclasses.dataclass(frozen=True)
class Owner:
    """A process: host, pid, when the system started it (pids are reused), and when it took the lock (ISO 8601).

    `place` tells hosts of one name apart, such as the pods of a job that was started again; older files have none.
    """

    host: str
    place: str
    pid: int
    born: str
    since: str
    command: str

    @classmethod
    def this(cls) -> "Owner":
        """The calling process."""
        words = [os.path.basename(sys.argv[0]), *sys.argv[1:2]] if sys.argv else []
        since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        return cls(socket.gethostname(), _place(), os.getpid(), _born(os.getpid()), since, " ".join(words)[:80])

    @classmethod
    def read(cls, path: str) -> "Owner | None":
        """The owner that a lock file names; None if the file is missing, empty or cut short."""
        try:
            return cls.parse(storage.read(os.fspath(path)))
        except OSError:
            return None

    @classmethod
    def parse(cls, content: bytes) -> "Owner | None":
        """The owner in the content of a lock file; None if the content is empty or cut short."""
        try:
            found = {"place": ""} | json.loads(content)
            return cls(**{field.name: field.type(found[field.name]) for field in dataclasses.fields(cls)})
        except (ValueError, KeyError, TypeError):
            return None

    def is_alive(self, touched: float) -> bool:
        """Whether the process still runs; a process on another host counts as alive while it touches its file."""
        if self.host != socket.gethostname():
            return time.time() - touched < DEAD_AFTER
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:  # it belongs to another user
            pass
        return _born(self.pid) in ("", self.born) or not self.born


def _born(pid: int) -> str:
    """The start time of a process, in the system's unit; "" if unknown."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _place() -> str:
    """The start of this machine and whose process ids are ours; "" where the system does not say."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


@contextlib.contextmanager
def hold(workdir: str) -> Iterator[None]:
    """Keep other processes out of a workdir, which is created if necessary; a dead owner's lock is taken over.

    The system's lock on an open file (flock) ends with its process, no matter how the process ends. If the file system
    has no such lock, or only one per host, the owner named in the file decides: an owner on this host is alive while
    its process runs, one on another host while the file is being touched. At the end the file is removed, as are
    directories created here that stayed empty.

    Raises:
      LockedError: another process holds it; one line with host, process and start.
      OSError: the workdir cannot be written to.
    """
    if storage.is_remote(workdir):
        with _hold_remote(workdir):
            yield
        return
    made = _make(workdir)
    path = os.path.join(workdir, NAME)
    descriptor = None
    try:
        descriptor = _acquire(path, workdir)
        done = threading.Event()
        threading.Thread(target=_touch, args=(path, done), name="lock", daemon=True).start()
        try:
            yield
        finally:
            done.set()
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.remove(path)  # before unlocking, so that a process that has opened this file sees that it is stale
            os.close(descriptor)
        for directory in made:
            with contextlib.suppress(OSError):
                os.rmdir(directory)


def _make(directory: str) -> list[str]:
    """Create a directory; returns the directories that had to be created, the innermost first."""
    made, missing = [], os.path.abspath(directory)
    while not os.path.isdir(missing) and os.path.dirname(missing) != missing:
        made.append(missing)
        missing = os.path.dirname(missing)
    os.makedirs(directory, exist_ok=True)
    return made


def _acquire(path: str, workdir: str) -> int:
    """The descriptor of the lock file, locked, with this process written as its owner."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            locked = flock.take(descriptor)
            owner, here = Owner.read(path), os.fstat(descriptor)
            try:
                there = os.stat(path)
            except FileNotFoundError:
                there = None
            if there is None or (there.st_ino, there.st_dev) != (here.st_ino, here.st_dev):
                os.close(descriptor)  # its owner removed it between our opening and our locking
                continue
            other_host = owner is not None and owner.host != socket.gethostname()
            if locked is False or (owner and (locked is None or other_host) and owner.is_alive(here.st_mtime)):
                raise LockedError(_said(owner, workdir, path))
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, (json.dumps(dataclasses.asdict(Owner.this())) + "\n").encode(), 0)
            with contextlib.suppress(OSError):
                os.fsync(descriptor)  # on a network disk, other hosts would see an empty file for a while
            return descriptor
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            raise


def _said(owner: Owner | None, workdir: str, path: str) -> str:
    if owner is None:  # it has just been taken
        return f"{workdir} is in use by another process; wait for it, or use another --workdir."
    what = f"process {owner.pid} on {owner.host} since {owner.since} ({owner.command})"
    if owner.host == socket.gethostname():
        return f"{workdir} is in use by {what}; wait for it, or use another --workdir."
    return f"{workdir} is in use by {what}; wait for it, or delete {path} if that process is gone."


def _touch(path: str, done: threading.Event) -> None:
    while not done.wait(TOUCHED_EVERY):
        with contextlib.suppress(OSError):
            os.utime(path)


# {workdir: owner} of the workdirs in buckets that this process holds.
_held: dict[str, Owner] = {}


def check(workdir: str) -> None:
    """Raises LockedError if another process has taken over a workdir in a bucket that this process holds."""
    mine, path = _held.get(workdir), f"{workdir}/{NAME}"
    owner = Owner.read(path) if mine else None
    if owner not in (mine, None):
        raise LockedError(_said(owner, workdir, path))


@contextlib.contextmanager
def _hold_remote(workdir: str) -> Iterator[None]:
    path, mine, done = f"{workdir}/{NAME}", Owner.this(), threading.Event()
    _acquire_remote(path, workdir, mine)
    touching = threading.Thread(target=_touch_remote, args=(path, mine, done), name="lock", daemon=True)
    touching.start()
    _held[workdir] = mine
    try:
        yield
    finally:
        del _held[workdir]
        done.set()
        touching.join(TOUCHED_EVERY)  # so that it does not write the file again
        if Owner.read(path) == mine:
            with contextlib.suppress(OSError):
                storage.remove(path)


def _acquire_remote(path: str, workdir: str, mine: Owner) -> None:
    """Create the lock file in a bucket, after deleting that of a dead owner."""
    replaced, seen, since = False, None, 0.0
    while True:
        try:
            content = storage.read(path)
        except FileNotFoundError:
            try:
                storage.write(path, _signed(mine), create=True)
            except FileExistsError:  # another process was faster
                time.sleep(LOOKED_EVERY)
                continue
            if replaced:
                time.sleep(SETTLED_AFTER)
                owner = Owner.read(path)
                if owner not in (mine, None):
                    raise LockedError(_said(owner, workdir, path)) from None
            return
        owner = Owner.parse(content)
        if owner and (owner.host, owner.place) != (mine.host, mine.place):
            if seen is None:
                print(f"waiting to see whether process {owner.pid} on {owner.host} updates {path}", file=sys.stderr)
                seen, since = content, time.monotonic()
            if content != seen:
                raise LockedError(_said(owner, workdir, path))
            if time.monotonic() - since < DEAD_AFTER:
                time.sleep(LOOKED_EVERY)
                continue
        elif owner and owner.is_alive(0.0):
            raise LockedError(_said(owner, workdir, path))
        storage.remove(path)
        replaced = True


def _signed(owner: Owner) -> bytes:
    return json.dumps(dataclasses.asdict(owner) | {"touched": time.time()}).encode()


def _touch_remote(path: str, mine: Owner, done: threading.Event) -> None:
    while not done.wait(TOUCHED_EVERY):
        with contextlib.suppress(OSError):
            if Owner.read(path) == mine:  # no other process has taken over
                storage.write(path, _signed(mine))
