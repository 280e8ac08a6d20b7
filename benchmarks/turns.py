"""Timing of steps that take turns, so that a slowdown of the machine hits all of them."""

import time
from collections.abc import Callable, Mapping
from typing import Any


def timed(
    runs: Mapping[str, Callable[[int], Any]], *, repeats: int, steps: int = 1, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds per step for each, one number per turn.

    Args:
      runs: functions by name; each runs some steps and waits for the last. An accelerator gets the next step while it
        computes, as in training, so many steps measure the device, and a single one includes the host's work.
      repeats: turns.
      steps: steps per turn.
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
    """Run steps of a compiled (state, *data) -> (state, metrics) from its last state; returns the metrics."""
    import jax  # imported late, because some callers set the environment first

    def run(steps):
        nonlocal state
        for _ in range(steps):
            state, metrics = executable(state, *data)
        return jax.block_until_ready((state, metrics))[1]

    return run
