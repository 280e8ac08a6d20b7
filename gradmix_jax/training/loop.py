"""The Python loop over training steps. It takes callables and knows neither JAX programs nor files."""

import collections
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import jax


class NonFiniteLossError(ValueError):
    """The loss of a step, or the norm of its gradient, was not a finite number."""


def run(
    state: Any,
    *,
    step: Callable[[Any], tuple[Any, Any]],
    fetch: Callable[[Any], dict[str, Any]],
    start_step: int,
    total_steps: int,
    log_every: int,
    save_every: int,
    on_metrics: Callable[[int, dict[str, float]], None],
    on_step: Callable[[], None],
    snapshot: Callable[[Any], Any],
    save: Callable[[Any], None],
    should_stop: Callable[[int], bool] = lambda step: False,
    max_in_flight: int = 2,
    max_skipped: int = 0,
) -> tuple[Any, int]:
    """Run steps `start_step` ... `total_steps - 1`.

    The metrics of a step are fetched only after later steps have been dispatched, so that the device always has work;
    at most `max_in_flight` steps are in flight. A checkpoint is written only once its own loss and all earlier
    ones are known to be finite, and every `gradient_norm` if there is one; it is a copy, dispatched before the next
    step. The last checkpoint has no loss of its own.

    Args:
      state: the initial state, on the device.
      step: state -> (state, metrics); returns as soon as the work is dispatched.
      fetch: metrics -> scalars, waiting for them.
      start_step: number of steps already done.
      total_steps: number of steps at the end.
      log_every: metrics are averaged over this many steps, or those since `start_step`, and handed to
        `on_metrics(steps done, averages)`; the `learning_rate` is that of the last step.
      save_every: a snapshot of the state is saved after this many steps, and at the end.
      on_metrics: see `log_every`.
      on_step: called once for every step that has finished.
      snapshot: state -> a copy that outlives the next step; returns as soon as the work is dispatched.
      save: called with a snapshot; it blocks the loop.
      should_stop: called with the number of dispatched steps; True saves and returns early.
      max_in_flight: number of dispatched steps whose metrics have not been fetched yet.
      max_skipped: this many steps may have a nonfinite loss or gradient norm: `step` leaves the state unchanged,
        they enter no average, and `on_metrics` receives their number so far as "skipped_steps". The state that such
        a step began with is not saved.

    Returns:
      The final state and the number of steps done.

    Raises:
      NonFiniteLossError: naming the step.
    """
    pending: collections.deque = collections.deque()
    window: list[dict[str, float]] = []
    clock = time.perf_counter()

    saved, skipped = False, 0

    def drain(leave: int):
        nonlocal window, clock, saved, skipped
        while len(pending) > leave:
            index, metrics, kept = pending.popleft()
            scalars = {name: float(value) for name, value in fetch(metrics).items()}
            problem = _problem(scalars)
            if problem and skipped == max_skipped:
                raise NonFiniteLossError(_said(problem, index, skipped, kept_any=bool(start_step or saved)))
            if problem:
                skipped, kept = skipped + 1, None
                print(f"warning: {problem % index}; the step is skipped ({skipped} of {max_skipped})", file=sys.stderr)
            else:
                window.append(scalars)
            on_step()
            if (index + 1) % log_every == 0 or index + 1 == total_steps:
                now = time.perf_counter()
                counted = {"skipped_steps": float(skipped)} if max_skipped else {}
                on_metrics(index + 1, _averages(window) | counted | {"steps_per_second": len(window) / (now - clock)})
                window, clock = [], now
            if kept is not None:
                save(kept)
                saved = True

    done, kept = start_step, None
    while done < total_steps and not should_stop(done):
        with jax.profiler.StepTraceAnnotation("train", step_num=done):
            state, metrics = step(state)
        # The snapshot of the state at the start of this step, which is kept only if its own loss is finite.
        pending.append((done, metrics, kept))
        done += 1
        kept = snapshot(state) if done % save_every == 0 and done < total_steps else None
        drain(leave=max_in_flight)
    drain(leave=0)
    save(snapshot(state))
    return state, done


def _problem(scalars: dict[str, float]) -> str:
    """The nonfinite value, with a placeholder for the step's number; "" if all is well."""
    # A loss can be finite although its gradient is not, and then the parameters no longer are.
    for name in ("loss", "gradient_norm"):
        value = scalars.get(name, 0.0)
        if not math.isfinite(value):
            return f"the {name.replace('_', ' ')} of step %d is {value}"
    return ""


def _said(problem: str, index: int, skipped: int, *, kept_any: bool) -> str:
    before = f" after {skipped} skipped steps" if skipped else ""
    kept = "earlier checkpoints stay" if kept_any else "there is no checkpoint yet"
    return f"{problem % index}{before}; {kept}; lower optimizer.learning_rate, or raise train.skip_nonfinite."


def _averages(window: list[dict[str, float]]) -> dict[str, float]:
    """The average of every scalar, but the last value of the learning rate."""
    if not window:  # all steps were skipped
        return {}
    averages = {name: sum(entry[name] for entry in window) / len(window) for name in window[-1]}
    return averages | {name: window[-1][name] for name in ("learning_rate",) if name in averages}
