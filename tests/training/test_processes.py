"""Two processes with four devices each, over loopback, give what one process with eight devices gives.

They also detect differences, stop together on a signal, and end when one of them is lost.
"""

import json
import re
import shutil
import signal
import socket
import time

import numpy as np
import pods
import pytest

EVERY_EPOCH = "--config.train.checkpoint_every_epochs=1"
# Many short steps, so that a signal arrives in the middle.
LONG = ["--mode=train", "--config.phases[0].epochs=4000", "--config.train.checkpoint_every_epochs=1000"]


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir):
    return [line["loss"] for line in lines(workdir)]


def test_processes_that_differ_name_the_difference(tmp_path):
    workdirs = [tmp_path / "first", tmp_path / "second"]
    errors = pods.run(workdirs, ["--mode=train"], each={1: ["--config.seed=3"]}, status=2)
    differ = "error: the processes differ: seed is 0 on process 0 and 3 on process 1; "
    assert [pods.said(each) for each in errors] == [
        [differ + "start all of them with the same command, code and data."]
    ] * 2
    assert not any(workdir.exists() for workdir in workdirs)


ONE_FEWER = """
from gradmix_jax import data
whole = data.open_set
def open_set(spec):
    import dataclasses
    found = whole(spec)
    return dataclasses.replace(found, train=found.train.take(slice(index, None)))
data.open_set = open_set
"""
ONE_PIXEL = """
from gradmix_jax import data
whole = data.resident
def resident(source, **options):
    images, labels = whole(source, **options)
    images[3, 2, 1] += index
    return images, labels
data.resident = resident
"""
OTHER_CODE = "from gradmix_jax import workdir; workdir.code_hash = lambda: f'0{index}'"
UNREADABLE = """
from gradmix_jax import data
whole = data.open_set
def open_set(spec):
    import dataclasses
    return whole(dataclasses.replace(spec, name="folder:/nowhere") if index else spec)
data.open_set = open_set
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (ONE_FEWER, r"the number of images of train is \d+ on process 0 and \d+ on process 1"),
        (ONE_PIXEL, "the content of the training images is"),
        (OTHER_CODE, "the hash of the code is '00' on process 0 and '01' on process 1"),
    ],
)
def test_different_data_or_code_is_found_before_the_first_step(code, sentence, tmp_path):
    errors = pods.run([tmp_path / "a", tmp_path / "b"], ["--mode=train"], code=code, status=2)
    for each in errors:
        (line,) = pods.said(each)
        assert re.search(sentence, line)


@pytest.mark.slow
def test_a_process_that_fails_ends_the_others_with_its_reason(tmp_path):
    with pods.Pod([tmp_path / "a", tmp_path / "b"], ["--mode=train"], code=UNREADABLE) as pod:
        (status, errors), (failed, reason) = pod.wait(120)
    assert failed == 2 and len(pods.said(reason)) == 1 and "/nowhere" in reason
    host = socket.gethostname()
    assert status == 4
    (line,) = pods.said(errors)
    assert line.startswith(f"error: process 1 ({host}) failed: ") and "/nowhere" in line


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_the_death_of_a_process_soon_ends_the_other_with_one_line(killed, tmp_path):
    first = tmp_path / "first"
    with pods.Pod([first, tmp_path / "second"], LONG, code="watching.LOST_AFTER = 8.0; joining.LINGER = 13.0") as pod:
        pod.wait_for_steps(first, 3)
        pod[killed].kill()
        started, other = time.monotonic(), pod[1 - killed]
        errors = other.communicate(timeout=60)[1]
        assert time.monotonic() - started < 30  # LOST_AFTER plus room for a busy machine
    (line,) = pods.said(errors)
    assert other.returncode == 4
    assert (
        line == f"error: process {killed} has given no sign of life for 8 s; rerun the command on all hosts to resume."
    )


@pytest.mark.slow
@pytest.mark.parametrize(("number", "told"), [(signal.SIGTERM, 1), (signal.SIGINT, 0), (signal.SIGINT, 1)])
def test_a_signal_to_one_process_stops_all_of_them_at_one_step(number, told, tmp_path):
    first = tmp_path / "first"
    with pods.Pod([first, tmp_path / "second"], LONG) as pod:
        pod.wait_for_steps(first, 3)
        pod[told].send_signal(number)
        ended = pod.wait(120)
    for status, errors in ended:
        assert status == 128 + number, errors
    (step,) = {line.split()[3] for _, errors in ended for line in pods.said(errors) if line.startswith("stopped at")}
    assert (first / "checkpoints" / step).is_dir() and len(lines(first)) == int(step)


AT_THE_END = """
import os, signal
from gradmix_jax.training import loop
inner = loop.run
def run(state, **options):
    result = inner(state, **options)
    if index == {told}:
        os.kill(os.getpid(), signal.{name})
    return result
loop.run = run
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "told"), [("SIGTERM", 0), ("SIGTERM", 1), ("SIGINT", 1)])
def test_a_signal_after_the_last_step_ends_all_before_the_evaluation(name, told, tmp_path):
    code = AT_THE_END.format(name=name, told=told)
    status = 128 + getattr(signal, name)
    pods.run([tmp_path / "first", tmp_path / "second"], code=code, status=status)
    assert (tmp_path / "first" / "checkpoints" / "10").is_dir()
    assert not (tmp_path / "first" / "results.json").exists()


IN_THE_EVALUATION = """
import os, signal
from gradmix_jax.evaluation import evaluate
def told(*_, **__):
    os.kill(os.getpid(), signal.SIGTERM)
if index == 1:
    evaluate.fitting.serve = told
"""


@pytest.mark.slow
def test_a_signal_during_the_evaluation_ends_all_of_them(tmp_path):
    with pods.Pod([tmp_path / "first", tmp_path / "second"], code=IN_THE_EVALUATION) as pod:
        (status, errors), (told, _) = pod.wait(240)
    assert (status, told) == (4, 143), errors
    assert "failed: told to end (SIGTERM); rerun the command on all hosts" in pods.said(errors)[-1]


def test_a_port_in_use_is_one_line(tmp_path):
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        listener.listen()
        port = listener.getsockname()[1]
        options = [f"--coordinator=localhost:{port}", "--num_processes=2", "--process_id=0"]
        with pods.Pod([tmp_path], options, code="joining.LINGER = -4.0") as pod:
            ((status, errors),) = pod.wait(60)
    assert status == 2
    waiting, line = pods.said(errors)
    assert line.startswith(f"error: --multihost: the coordinator cannot listen on port {port} (Address already in use)")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The evaluated workdir of a single-process run."""
    workdir = tmp_path_factory.mktemp("one")
    pods.run([workdir])
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("mapping, storage", [("pmap", "resident"), ("shard_map", "stream"), ("sharded", "stream")])
def test_two_processes_without_a_shared_disk_agree_with_one(mapping, storage, one, tmp_path):
    """Stop after the third step, continue on two processes, then finish on one."""
    first, second, alone = tmp_path / "first", tmp_path / "second", tmp_path / "alone"
    options = [f"--config.train.mapping={mapping}", f"--config.dataset.storage={storage}", EVERY_EPOCH]
    # Stop and resume: only the main process has the checkpoint. A snapshot every epoch.
    stop = "agreement.Stopping.should_stop = lambda self, done: done == 3\n"
    stop += "agreement.Stopping.agreed = lambda self: 15"
    pods.run([first, second], [*options, "--mode=train"], code=stop, status=143)
    assert (first / "checkpoints" / "3").is_dir()
    shutil.copytree(first, alone)
    evaluates = mapping == "pmap"  # the evaluation does not depend on the mapping
    pods.run([first, second], [*options, f"--mode={'train_and_eval' if evaluates else 'train'}"])
    assert not second.exists(), "only the main process writes"
    for devices in (8, 1):  # one process continues what two began, also on one device
        last = tmp_path / f"alone{devices}"
        shutil.copytree(alone, last)
        pods.run([last], [*options, "--mode=train"], devices=devices)
        np.testing.assert_allclose(losses(last), losses(one), rtol=1e-4)
    assert len(losses(first)) == len(losses(one)) == 10
    np.testing.assert_allclose(losses(first), losses(one), rtol=1e-4)
    if evaluates:
        results = [json.loads((path / "results.json").read_text()) for path in (one, first)]
        assert results[1]["auroc"] == pytest.approx(results[0]["auroc"], abs=1e-3)
        assert results[1]["environment"]["processes"] == 2
