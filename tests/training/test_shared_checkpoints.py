"""Checkpoints whose parts are written by all processes restore like those of one process."""

import json
import shutil

import jax
import numpy as np
import pods
import pytest
from programs import small_program, small_state

from gradmix_jax import pod
from gradmix_jax.training import digests, mapping
from gradmix_jax.training.checkpoint import Checkpoints
from gradmix_jax.training.shared_checkpoints import SharedCheckpoints

TOGETHER = ["--config.train.checkpoint_writers=all", "--config.train.mapping=sharded", "--mode=train"]
EVERY_EPOCH = "--config.train.checkpoint_every_epochs=1"


def same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def about(workdir, step):
    return json.loads((workdir / "checkpoints" / str(step) / "about" / "metadata").read_text())


@pytest.mark.parametrize("name", mapping.MAPPINGS)
def test_a_state_on_several_devices_comes_back_and_survives_donation(name, tmp_path, monkeypatch):
    monkeypatch.setattr(mapping, "SMALLEST_SHARDED", 64)
    overrides = {"objective.ssl": "moco", "objective.options.moco.queue_size": 64, "optimizer.ema": 0.9}
    state = jax.device_get(small_state(*small_program("input", **overrides)))
    mapped = mapping.MAPPINGS[name]()
    placed = mapped.place_state(state)
    step = mapped.compile_step(lambda state: (jax.tree.map(lambda leaf: leaf + 1, state), {}))
    snapshot = mapped.make_shared_snapshot(placed)
    checkpoints = SharedCheckpoints(str(tmp_path), of={"trial": 2})
    expected = state
    for _ in range(2):
        placed, _ = step(placed)
        expected = jax.tree.map(lambda leaf: leaf + np.ones((), leaf.dtype), expected)
        checkpoints.save(snapshot(placed))
    step(placed)
    checkpoints.close()
    reader = Checkpoints(str(tmp_path), of={"trial": 2}, read_only=True)
    same(reader.restore(state), expected)
    same(reader.restore_model({"params": state.params, "batch_stats": state.batch_stats}), expected.extra["average"])
    assert reader.steps() == [1, 2]
    reader.close()
    parts = about(tmp_path, 2)["sha256"]["training"]
    arrays = {part.partition(" ")[0] for part in parts}
    assert len(parts) > len(arrays) if name == "sharded" else len(parts) == len(arrays)


def test_altered_parts_are_detected(tmp_path, capsys):
    state = jax.device_get(small_state(*small_program()))
    mapped = mapping.ShardMap()
    for folder, by in (("run", 0), ("other", 1)):
        checkpoints = SharedCheckpoints(str(tmp_path / folder), of=None)
        for step in (1, 2):
            shifted = state.replace(step=np.int32(step), params=jax.tree.map(lambda x, by=by: x + by, state.params))
            checkpoints.save(mapped.place_state(shifted))
        checkpoints.close()
    saved = tmp_path / "run" / "checkpoints" / "2" / "model"
    shutil.rmtree(saved)
    shutil.copytree(tmp_path / "other" / "checkpoints" / "2" / "model", saved)
    reader = Checkpoints(str(tmp_path / "run"), of=None, read_only=True)
    same(reader.restore(state), state.replace(step=np.int32(1)))
    assert "checkpoints/2 cannot be read (the SHA-256 of 'model' differs" in capsys.readouterr().err
    reader.close()


def test_digests_of_parts():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("x",))
    placed = lambda array, *spec: jax.device_put(array, jax.NamedSharding(mesh, jax.P(*spec)))
    matrix, vector = np.arange(24, dtype=np.float32).reshape(3, 8), np.arange(5, dtype=np.int32)
    scalar = np.float32(7)
    whole = {"a": matrix, "b": vector, "c": scalar}
    parts = digests.of_parts({"a": placed(matrix, None, "x"), "b": placed(vector), "c": placed(scalar)})
    assert sorted(parts) == ["0 0:3,0:2", "0 0:3,2:4", "0 0:3,4:6", "0 0:3,6:8", "1 0:5", "2 "]
    assert digests.agree(parts, whole)
    altered = matrix.copy()
    altered[2, 5] += 1
    assert not digests.agree(parts, whole | {"a": altered})
    assert not digests.agree(parts, whole | {"b": vector.astype(np.int64)})
    assert not digests.agree({key: sha for key, sha in parts.items() if key != "0 0:3,2:4"}, whole)
    assert digests.agree("", whole) and digests.agree(digests.of_tree(whole), whole)
    assert not digests.agree({}, whole) and not digests.agree("0", whole)


def test_a_bucket_is_refused():
    with pytest.raises(ValueError, match=r"^train\.checkpoint_writers=all needs a disk .* got gs://b/run; use "):
        SharedCheckpoints("gs://b/run", of=None)


def test_processes_agree_on_what_is_saved_already(tmp_path, monkeypatch):
    """Otherwise one that sees an outdated listing would not write, and the others would wait for it."""
    asked = []
    monkeypatch.setattr(pod, "agree", asked.append)
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    SharedCheckpoints(str(tmp_path), of=None).close()
    assert asked[-1] == {"the list of checkpoints in the workdir": [7]}


@pytest.mark.slow
def test_two_processes_write_together_and_others_resume(tmp_path):
    """Stop after the third step, continue on two processes, then finish on one, also with the other writers."""
    alone, run = tmp_path / "alone", tmp_path / "run"
    pods.run([alone], ["--mode=train"])
    stop = "agreement.Stopping.should_stop = lambda self, done: done == 3\n"
    stop += "agreement.Stopping.agreed = lambda self: 15"
    pods.run([run, run], [*TOGETHER, EVERY_EPOCH], code=stop, status=143)
    parts = about(run, 3)["sha256"]["model"]
    assert len(parts) > len({part.partition(" ")[0] for part in parts})
    one, main = tmp_path / "one", tmp_path / "main"
    for copy in (one, main):
        shutil.copytree(run, copy)
    pods.run([run, run], [*TOGETHER, EVERY_EPOCH])
    pods.run([one], TOGETHER)
    pods.run([main, main], ["--config.train.mapping=sharded", "--mode=train"])
    expected = [json.loads(line)["loss"] for line in (alone / "metrics.jsonl").read_text().splitlines()]
    for each in (run, one, main):
        losses = [json.loads(line)["loss"] for line in (each / "metrics.jsonl").read_text().splitlines()]
        np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert isinstance(about(run, 10)["sha256"]["model"], dict) and isinstance(about(main, 10)["sha256"]["model"], str)


@pytest.mark.slow
def test_processes_without_a_shared_disk_are_told(tmp_path):
    errors = pods.run([tmp_path / "first", tmp_path / "second"], TOGETHER, status=2)
    for each in errors:
        (line,) = [line for line in pods.said(each) if line.startswith("error")]
        assert "train.checkpoint_writers=all needs a disk that all processes share, and " in line


FAILS = """
from gradmix_jax.training import shared_checkpoints
if index == 1:
    def write(self, *_):
        with self._told():
            raise OSError("No space left on device")
    shared_checkpoints.SharedCheckpoints._write = write
"""


@pytest.mark.slow
def test_a_process_that_cannot_write_ends_all_soon(tmp_path):
    workdir = tmp_path / "run"
    with pods.Pod([workdir, workdir], [*TOGETHER, EVERY_EPOCH], code=FAILS) as pod:
        (status, errors), (failed, reason) = pod.wait(120)
    assert (status, failed) == (4, 5), errors + reason
    assert "no space left on device" in pods.said(reason)[-1] and "no space left on device" in errors, repr(errors)
    assert not [path for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]


FULL = """
import resource
from gradmix_jax.training import shared_checkpoints
write = shared_checkpoints.SharedCheckpoints._write
def fills(self, *rest):
    if index == {index}:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, resource.RLIM_INFINITY))
    try:
        write(self, *rest)
    except Exception:  # there is room for the files that are written at the end
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        raise
shared_checkpoints.SharedCheckpoints._write = fills
"""


@pytest.mark.slow
@pytest.mark.parametrize("full", [0, 1])
def test_a_disk_that_fills_up_while_arrays_are_written_ends_all_soon(full, tmp_path):
    workdir = tmp_path / "run"
    with pods.Pod([workdir, workdir], TOGETHER, code=FULL.format(index=full)) as pod:
        ended = pod.wait(90)
    assert ended[full][0] == 5 and ended[1 - full][0] == 4, "\n---\n".join(errors for _, errors in ended)
    assert not [path for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]


KILLED = """
import os, signal
from gradmix_jax.training import shared_checkpoints
from orbax.checkpoint._src.multihost import multihost
watching.LOST_AFTER, joining.LINGER = 8.0, 13.0
write, meet, writing = shared_checkpoints.SharedCheckpoints._write, multihost.sync_global_processes, []
def noted(self, step, *rest):
    writing.append(step)
    write(self, step, *rest)
def dies(name, **more):
    # It has written its part, and now waits for the others.
    if name.endswith("Checkpointer:save") and writing[-1] == 10 and index == {index}:
        os.kill(os.getpid(), signal.SIGKILL)
    meet(name, **more)
shared_checkpoints.SharedCheckpoints._write, multihost.sync_global_processes = noted, dies
"""


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_killed_while_all_write_loses_nothing(killed, tmp_path):
    workdir = tmp_path / "run"
    with pods.Pod([workdir, workdir], [*TOGETHER, EVERY_EPOCH], code=KILLED.format(index=killed)) as pod:
        ended = pod.wait(120)
    assert ended[killed][0] == -9
    assert [path.name for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()] == ["5"]
    pods.run([workdir, workdir], TOGETHER)
    reader = Checkpoints(str(workdir), of=None, read_only=True)
    reader.saved_model()
    assert reader.restored_step == 10
    reader.close()
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [*range(1, 11)]
