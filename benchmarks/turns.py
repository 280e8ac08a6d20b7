"""Timing of steps that take turns, so that a slowdown of the machine hits all of them."""

import time
from collections.abc import Callable, Mapping
from typing import Any


def timed(
    runs: Mapping[str, Callable[[int], Any]], *, repeats: int, steps: int = 1, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds a step of each, one number for every turn.

    Args:
      runs: by name; each runs so many steps and waits for the last one. An accelerator is given the next step while it
        computes, as in training, so that many steps tell of the device and one of the host's work too.
      repeats: turns.
      steps: of a turn.
      warm_up: turns of one step each before the clock starts: compilation, tuning.
    """
    for run in runs.values():
        for _ in range(warm_up):
            run(1)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.perf_counter()
            run(steps)
            times[name].append((time.perf_counter() - started) / steps)
    return times


def of_executable(executable, state, data) -> Callable[[int], Any]:
    """Steps of a compiled (state, *data) -> (state, metrics) that goes on from its last state; returns the metrics."""
    import jax  # late: some have to set the environment first

    def run(steps):
        nonlocal state
        for _ in range(steps):
            state, metrics = executable(state, *data)
        return jax.block_until_ready((state, metrics))[1]

    return run
