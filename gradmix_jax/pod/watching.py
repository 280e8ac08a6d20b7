"""The processes of a pod watch each other: if one fails or dies, the others end too, each with one line.

Each process writes heartbeats to the store of `jax.distributed`. Process 0 watches the beats of all others, and they
watch those of process 0, so that each of them follows only a few keys. A process that fails says so before it ends.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable

import jax

# Seconds between two beats, and without one until a process counts as lost. A process keeps beating while it compiles
# or reads; only one that is stopped or has lost its network misses this many beats.
BEAT = 1.0
LOST_AFTER = 30.0
# Exit status of a process that ends because another one ended.
OTHER_FAILED = 4
_ROOT = "gradmix_jax/pod"
_BEATS, _TOLD, _LOST, _BYE = (f"{_ROOT}/{kind}/" for kind in ("beat", "told", "lost", "bye"))
_DONE = "done"


def store():
    """The key-value store of all processes."""
    from jax._src import distributed  # no public name for it

    return distributed.global_state.client


class Watch:
    """Sends the beats of this process and watches those of others.

    Args:
      index: index of this process.
      count: number of processes.
      end: called with a line if another process has failed or is lost; does not return.

    Attributes:
      each_beat: called at each beat, in the watch's thread.
    """

    def __init__(self, index: int, count: int, end: Callable[..., None]):
        self.index, self.count, self._end = index, count, end
        self.each_beat: Callable[[], None] = lambda: None
        now = time.monotonic()
        self._answered = now
        self._heard = {each: ("", now) for each in (range(1, count) if index == 0 else (0,))}
        self._over = threading.Event()

    def start(self) -> None:
        # Two threads, because a store that is gone may block the one that asks it.
        for run in (self._beat, self._look):
            threading.Thread(target=run, name="pod", daemon=True).start()

    def stop(self) -> None:
        """Stop beating, and announce that this is intended."""
        self._over.set()
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            store().key_value_set(f"{_BEATS}{self.index}", _DONE, allow_overwrite=True)

    def tell(self, said: str) -> None:
        """Tell the others that this process has failed."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            store().key_value_set(f"{_TOLD}{self.index}", f"{socket.gethostname()} {said}", allow_overwrite=True)

    def bye(self) -> None:
        """Confirm the end of this process; process 0 waits a few beats for the others, which depend on its service."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            store().key_value_set(f"{_BYE}{self.index}", "1", allow_overwrite=True)
            deadline = time.monotonic() + 5 * BEAT
            while self.index == 0 and time.monotonic() < deadline:
                if len(store().key_value_dir_get(_BYE)) + len(store().key_value_dir_get(_LOST)) >= self.count:
                    break
                time.sleep(BEAT / 5)

    def _beat(self) -> None:
        number = 0
        while not self._over.wait(BEAT):
            number += 1
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                store().key_value_set(f"{_BEATS}{self.index}", str(number), allow_overwrite=True)
                self._hear()
                self.each_beat()
                self._answered = time.monotonic()

    def _hear(self) -> None:
        for key, said in store().key_value_dir_get(_TOLD):
            failed = int(key.rpartition("/")[2])
            if failed != self.index and not self._over.is_set():
                host, _, reason = said.partition(" ")
                self._end(f"process {failed} ({host}) failed: {reason}")
        for _, said in store().key_value_dir_get(_LOST):
            self._end(said)
        # All others follow the beat of process 0; only process 0 follows all beats.
        for key, beat in store().key_value_dir_get(_BEATS):
            each = int(key.rpartition("/")[2])
            if each in self._heard and beat != self._heard[each][0]:
                self._heard[each] = (beat, time.monotonic())

    def _look(self) -> None:
        while not self._over.wait(BEAT):
            now = time.monotonic()
            if now - self._answered > LOST_AFTER:
                said = f"the coordinator, on the host of process 0, has not answered for {LOST_AFTER:g} s"
                self._end(said, bye=False)  # another request to it could take long
            for each, (beat, heard) in self._heard.items():
                if beat != _DONE and now - heard > LOST_AFTER:
                    said = f"process {each} has given no sign of life for {LOST_AFTER:g} s"
                    with contextlib.suppress(jax.errors.JaxRuntimeError):
                        store().key_value_set(f"{_LOST}{each}", said, allow_overwrite=True)
                    self._end(said)


_watch: Watch | None = None
_once, _ending = threading.Lock(), threading.Event()


def start() -> None:
    """Watch the other processes; every process must call this."""
    global _watch
    _watch = Watch(jax.process_index(), jax.process_count(), _end)
    _watch.start()


def stop() -> None:
    """End the watch, because this process has done its work."""
    global _watch
    watch, _watch = _watch, None
    if watch:
        watch.stop()


def current() -> Watch | None:
    """The watch of this process; None if it is the only process."""
    return _watch


def joined() -> bool:
    """Whether there are other processes."""
    return _watch is not None


def leave(said: str, status: int) -> None:
    """End this process with a status and tell the others why; returns if there are no others.

    It does not wait for running programs: a program on all devices never ends once a process is gone.
    """
    if _watch:
        _watch.tell(said)
        _watch.bye()
        _exit(status)


def wait_for_verdict() -> None:
    """Wait, after a failed collective, until the watch knows whether another process failed and ends this one."""
    if _watch:
        _ending.wait(LOST_AFTER + 5 * BEAT)
        time.sleep(10 * BEAT if _ending.is_set() else 0.0)


def _end(said: str, *, bye: bool = True) -> None:
    with _once:
        if not _watch or _ending.is_set():
            return
        _ending.set()
    print(f"error: {said.rstrip('.')}; rerun the command on all hosts to resume.", file=sys.stderr)
    if bye:
        _watch.bye()
    _exit(OTHER_FAILED)


def _exit(status: int) -> None:
    from jax._src import distributed

    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if distributed.global_state.service:
        distributed.global_state.service.leave()  # not ended here, because this process's own client would abort
    os._exit(status)
