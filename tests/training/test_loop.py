"""The training loop: order of work, averages, saving, stopping."""

import itertools

import pytest

from gradmix_jax.training import loop


class Recorder:
    """A fake device that records the order of calls."""

    def __init__(self, losses):
        self.losses = losses
        self.events = []
        self.metrics = []
        self.saved = []

    def step(self, state):
        self.events.append(("dispatch", state))
        return state + 1, {"loss": self.losses[state], "index": state}

    def fetch(self, metrics):
        self.events.append(("fetch", metrics["index"]))
        return metrics

    def snapshot(self, state):
        self.events.append(("snapshot", state))
        return state

    def save(self, state):
        self.events.append(("save", state))
        self.saved.append(state)

    def run(self, total, **options):
        defaults = dict(start_step=0, log_every=2, save_every=100, on_step=lambda: None)
        return loop.run(
            defaults.get("start_step") if "start_step" not in options else options["start_step"],
            step=self.step,
            fetch=self.fetch,
            total_steps=total,
            on_metrics=lambda step, scalars: self.metrics.append((step, scalars)),
            snapshot=self.snapshot,
            save=self.save,
            **(defaults | options),
        )


def test_metrics_are_fetched_after_later_steps_were_dispatched():
    recorder = Recorder([1.0] * 6)
    recorder.run(6)  # as `train` does; the default keeps two steps in flight
    steps = [(kind, i) for kind in ("dispatch", "fetch") for i in range(6)]
    assert sorted(recorder.events) == sorted([*steps, ("snapshot", 6), ("save", 6)])
    for i in range(4):
        assert recorder.events.index(("fetch", i)) > recorder.events.index(("dispatch", i + 2))
    for i in range(3):
        assert recorder.events.index(("fetch", i)) < recorder.events.index(("dispatch", i + 3))


def test_averages_over_the_window_and_the_rest():
    recorder = Recorder([1.0, 3.0, 5.0, 7.0, 11.0])
    state, done = recorder.run(5)
    assert (state, done) == (5, 5)
    assert [(step, scalars["loss"]) for step, scalars in recorder.metrics] == [(2, 2.0), (4, 6.0), (5, 11.0)]
    recorder.metrics.clear()
    recorder.run(5, log_every=3)
    assert [(step, scalars["loss"]) for step, scalars in recorder.metrics] == [(3, 3.0), (5, 9.0)]


def test_steps_per_second_are_those_of_the_window(monkeypatch):
    recorder, clock = Recorder([1.0] * 5), itertools.count(1000, 10)
    monkeypatch.setattr(loop.time, "perf_counter", lambda: next(clock))  # ten seconds pass between calls
    recorder.run(5)
    assert [scalars["steps_per_second"] for _, scalars in recorder.metrics] == [0.2, 0.2, 0.1]


def test_the_learning_rate_is_that_of_the_last_step():
    recorder = Recorder([1.0, 3.0, 5.0])
    recorder.fetch = lambda metrics: metrics | {"learning_rate": 0.5 ** metrics["index"]}
    recorder.run(3)
    assert [scalars["learning_rate"] for _, scalars in recorder.metrics] == [0.5, 0.25]


def test_saves_every_so_often_and_once_at_the_end():
    recorder = Recorder([1.0] * 7)
    recorder.run(7, save_every=3)
    assert recorder.saved == [3, 6, 7]
    recorder = Recorder([1.0] * 6)
    recorder.run(6, save_every=3)
    assert recorder.saved == [3, 6]


def test_saving_does_not_wait_for_the_device():
    recorder = Recorder([1.0] * 9)
    recorder.run(9, save_every=4, max_in_flight=2)
    at = recorder.events.index
    # The state is copied before it is donated to the next step, and saved once its own loss is known, while later
    # steps are running.
    assert at(("dispatch", 3)) < at(("snapshot", 4)) < at(("dispatch", 4))
    assert at(("dispatch", 6)) < at(("fetch", 4)) < at(("save", 4)) < at(("fetch", 5))


def test_a_state_with_a_nonfinite_loss_is_not_saved():
    recorder = Recorder([1.0, 1.0, 1.0, 1.0, float("nan"), 1.0])
    with pytest.raises(loop.NonFiniteLossError, match="the loss of step 4 is nan"):
        recorder.run(6, save_every=2)
    assert recorder.saved == [2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nonfinite_loss_stops_and_keeps_the_last_good_state(bad):
    recorder = Recorder([1.0, 1.0, 1.0, bad, 1.0, 1.0])
    with pytest.raises(loop.NonFiniteLossError, match=r"the loss of step 3 is (nan|inf)"):
        recorder.run(6, save_every=2)
    assert recorder.saved == [2]


def test_stop_saves_what_was_done():
    recorder = Recorder([1.0] * 9)
    state, done = recorder.run(9, should_stop=lambda step: step == 4)
    assert (state, done, recorder.saved) == (4, 4, [4])


def test_resumes_at_a_step():
    recorder = Recorder([1.0] * 9)
    recorder.run(9, start_step=7)
    assert [event for event in recorder.events if event[0] == "dispatch"] == [("dispatch", 7), ("dispatch", 8)]
    assert recorder.metrics[-1][0] == 9


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nonfinite_gradient_ends_the_run_before_its_state_is_saved(bad):
    recorder = Recorder([1.0] * 4)
    step = recorder.step
    norm = lambda index: {"gradient_norm": bad if index == 3 else 1.0}
    recorder.step = lambda state: (state + 1, step(state)[1] | norm(state))
    # The last step: no later loss shows the state of the parameters.
    with pytest.raises(loop.NonFiniteLossError, match=rf"the gradient norm of step 3 is {bad}; earlier checkpoints"):
        recorder.run(4, save_every=2)
    assert recorder.saved == [2]


def test_steps_without_a_finite_loss_are_skipped_up_to_a_number(capsys):
    losses = [1.0, 3.0, float("nan"), 5.0, float("inf"), float("nan"), float("nan"), 7.0]
    recorder = Recorder(losses)
    recorder.run(8, max_skipped=4, save_every=2)
    averages = [scalars.get("loss") for _, scalars in recorder.metrics]
    assert averages == [2.0, 5.0, None, 7.0]
    assert [scalars["skipped_steps"] for _, scalars in recorder.metrics] == [0, 1, 3, 4]
    # The states at the start of steps 2, 4 and 6, which have no finite loss of their own.
    assert recorder.saved == [8]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "warning: the loss of step 2 is nan; the step is skipped (1 of 4)" and len(said) == 4
    recorder = Recorder(losses)
    with pytest.raises(
        loop.NonFiniteLossError, match=r"the loss of step 5 is nan after 2 skipped steps; earlier check"
    ):
        recorder.run(8, start_step=1, max_skipped=2)
