"""Agreement between the processes of a pod: on what they run and on the step at which they stop."""

import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax

from gradmix_jax.pod import watching

# Seconds that a process waits for another before it gives up: preparing data or computing scores may take minutes.
WAIT = 3600
# Steps that no process can be ahead of another: with two steps in flight (`loop.run`), a process dispatches a step only
# after all others have dispatched the third one before it.
AHEAD = 4
_SHOWN = 4
# Numbers the questions of this process; equal on all processes, because they all ask the same questions.
_numbers = itertools.count()


def get(key: str) -> str:
    """A value of the store, as soon as it exists; the waits are short, so that Ctrl-C works in between.

    Raises:
      RuntimeError: it does not exist after WAIT seconds.
    """
    deadline = time.monotonic() + WAIT
    while True:
        try:
            return watching.store().blocking_key_value_get(key, 500)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error) or time.monotonic() > deadline:
                raise


def agree(facts: Mapping[str, Any]) -> None:
    """Compare what the processes are about to do; a single process has nothing to compare.

    Args:
      facts: {name: value that JSON can hold}, with the same names on all processes.

    Raises:
      ValueError: on all processes, with the differences from process 0 in one line.
    """
    if jax.process_count() == 1:
        return
    index, prefix = jax.process_index(), f"gradmix_jax/facts/{next(_numbers)}"
    mine = json.loads(json.dumps(facts))
    put = lambda name, value: watching.store().key_value_set(f"{prefix}/{name}", value)
    if index == 0:
        put("all", json.dumps(mine))
        problems = [get(f"{prefix}/{each}")[1:] for each in range(1, jax.process_count())]
        put("verdict", "=" + "; ".join([each for each in problems if each][:_SHOWN]))  # it takes no empty strings
    else:
        put(index, "=" + _difference(json.loads(get(f"{prefix}/all")), mine, index))
    verdict = get(f"{prefix}/verdict")[1:]
    if verdict:
        raise ValueError(f"the processes differ: {verdict}; start all of them with the same command, code and data.")


class Gathering:
    """Values of all processes, brought to process 0; every process must create its own, in the main thread.

    Attributes:
      name: the same on all processes, and of no other.
    """

    def __init__(self):
        self.name = f"gathering{next(_numbers)}"

    def to_main(self, name: str, value: Any) -> list[Any]:
        """The values of all processes on process 0, which waits for them; an empty list on the others.

        Args:
          name: of the value, used once; from any thread.
          value: whatever JSON can hold.
        """
        keys = [f"gradmix_jax/{self.name}/{name}/{each}" for each in range(jax.process_count())]
        if len(keys) == 1:
            return [value]
        index = jax.process_index()
        if index:
            watching.store().key_value_set(keys[index], json.dumps(value))
            return []
        others = [json.loads(get(key)) for key in keys[1:]]
        for key in keys[1:]:  # the store is in memory
            watching.store().key_value_delete(key)
        return [value, *others]


def _difference(main: dict[str, Any], mine: dict[str, Any], index: int) -> str:
    names = [name for name in {**main, **mine} if main.get(name) != mine.get(name)]
    said = [f"{name} is {main.get(name)!r} on process 0 and {mine.get(name)!r} on process {index}" for name in names]
    more = f" and {len(said) - _SHOWN} more" if len(said) > _SHOWN else ""
    return ", ".join(said[:_SHOWN]) + more


class Stopping:
    """SIGTERM and Ctrl-C while several processes train: all of them stop after the same step.

    A process that receives a signal says so in the store. Process 0 then pauses before its next step, announces a step
    that no process can have reached yet, and continues when all of them know it. At the end, `agreed` compares the
    signals once more.

    Use it as a context in the main thread; signal handlers are restored at the end.

    Attributes:
      received: the signals that this process has received.
    """

    def __init__(self):
        self.received: list[int] = []
        self._index, self._count = jax.process_index(), jax.process_count()
        self._prefix = f"gradmix_jax/stop/{next(_numbers)}/"
        self._asked, self._told = threading.Event(), False
        self._step: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stopping":
        self._before = {each: signal.signal(each, self._note) for each in (signal.SIGTERM, signal.SIGINT)}
        if watch := watching.current():
            watch.each_beat = self._exchange
        return self

    def __exit__(self, *_: Any) -> None:
        if watch := watching.current():
            watch.each_beat = lambda: None
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def should_stop(self, done: int) -> bool:
        """Whether to stop before step `done`; process 0 may wait here for the others."""
        if self._index == 0 and self._asked.is_set() and self._step is None:
            self._step = done + AHEAD
            self._put("step/at", self._step)
            for each in range(1, self._count):
                get(f"{self._prefix}knows/{each}")
        return self._step is not None and done >= self._step

    def agreed(self) -> int:
        """The smallest signal number that any process received; 0: none. Every process must ask exactly once."""
        own = list(self.received)
        self._put(f"end/{self._index}", own[0] if own else 0)
        if self._index == 0:
            given = [int(get(f"{self._prefix}end/{each}")) for each in range(self._count)]
            self._put("verdict", min(filter(None, given), default=0))
        number = int(get(f"{self._prefix}verdict"))
        for late in self.received[len(own) :] if not number else []:
            # It arrived after this process had answered, so it applies to what follows the training.
            signal.signal(late, self._before[late])
            os.kill(os.getpid(), late)
        return number

    def _note(self, number: int, frame: Any) -> None:
        self.received.append(number)
        if number == signal.SIGINT:
            print("\nsaving at the next step; Ctrl-C again stops at once", file=sys.stderr)
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _exchange(self) -> None:
        """Read and write the store; called at each beat, in the watch's thread."""
        if self.received and not self._told:
            self._put(f"asked/{self._index}", self.received[0])
            self._told = True
        if self._index == 0 and watching.store().key_value_dir_get(f"{self._prefix}asked/"):
            self._asked.set()
        if self._index and self._step is None:
            for _, step in watching.store().key_value_dir_get(f"{self._prefix}step/"):
                self._step = int(step)
                self._put(f"knows/{self._index}", step)

    def _put(self, name: str, value: Any) -> None:
        watching.store().key_value_set(f"{self._prefix}{name}", str(value), allow_overwrite=True)
