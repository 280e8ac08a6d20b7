"""Checkpoints restore what was saved, to the bit."""

import gc
import json
import re
import shutil
import threading

import jax
import numpy as np
import pytest
from programs import small_program, small_state

from gradmix_jax.training import mapping
from gradmix_jax.training.checkpoint import Checkpoints, SaveError


def same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def test_round_trip_and_what_is_kept(tmp_path):
    state = jax.device_get(small_state(*small_program()))
    checkpoints = Checkpoints(str(tmp_path), of=None, keep=2)
    at = lambda step: state.replace(step=np.int32(step), params=jax.tree.map(lambda x: x + step, state.params))
    for step in (1, 2, 3):
        checkpoints.save(at(step))
    checkpoints.close()
    reader = Checkpoints(str(tmp_path), of=None, read_only=True)
    assert reader.latest_step() == 3
    expected = at(3)
    same(reader.restore(state), expected)
    same(
        reader.restore_model({"params": state.params, "batch_stats": state.batch_stats}),
        {"params": expected.params, "batch_stats": expected.batch_stats},
    )
    reader.close()
    steps = sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())
    assert steps == ["2", "3"]


def test_the_average_is_the_model_and_momentum_comes_back(tmp_path):
    overrides = {"objective.ssl": "moco", "objective.options.moco.queue_size": 64, "optimizer.ema": 0.9}
    state = jax.device_get(small_state(*small_program("input", **overrides)))
    shifted = lambda tree, by: jax.tree.map(lambda x: x + by, tree)
    extra = {name: shifted(state.extra[name], by) for by, name in enumerate(("average", "momentum", "queue"), 1)}
    state = state.replace(step=np.int32(7), extra=extra)
    checkpoints = Checkpoints(str(tmp_path), of=None)
    checkpoints.save(state)
    checkpoints.close()
    reader = Checkpoints(str(tmp_path), of=None, read_only=True)
    same(reader.restore(state), state)
    same(reader.restore_model({"params": state.params, "batch_stats": state.batch_stats}), extra["average"])
    reader.close()


def test_missing_checkpoint_is_one_sentence_and_makes_nothing(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint in"):
        Checkpoints(str(tmp_path / "nowhere"), of=None, read_only=True)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", mapping.MAPPINGS)
def test_saving_runs_in_the_background_and_survives_donation(name, tmp_path, monkeypatch):
    monkeypatch.setattr(mapping, "SMALLEST_SHARDED", 64)
    state = small_state(*small_program())
    mapped = mapping.MAPPINGS[name]()
    placed = mapped.create(lambda: state)
    snapshot = mapped.make_snapshot(placed)
    step = mapped.compile_step(lambda state: (jax.tree.map(lambda leaf: leaf + 1, state), {}))
    checkpoints = Checkpoints(str(tmp_path), of=None)
    write, may_write = checkpoints._manager.save, threading.Event()
    monkeypatch.setattr(checkpoints._manager, "save", lambda *a, **k: (may_write.wait(60), write(*a, **k)))
    placed, _ = step(placed)
    checkpoints.save(snapshot(placed))  # returns although nothing can be written yet
    for _ in range(3):
        placed, _ = step(placed)
    assert int(mapped.to_host(placed).step) == 4 and checkpoints.latest_step() is None
    may_write.set()
    checkpoints.close()
    reader = Checkpoints(str(tmp_path), of=None, read_only=True)
    assert reader.latest_step() == 1
    same(reader.restore(state), jax.tree.map(lambda leaf: leaf + 1, jax.device_get(state)))
    reader.close()


def test_a_failed_save_is_reported_by_the_next_one_or_at_the_end(tmp_path, monkeypatch):
    state = jax.device_get(small_state(*small_program()))
    checkpoints = Checkpoints(str(tmp_path), of=None)

    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoints._manager, "save", full)
    checkpoints.save(state)
    said = r"^a checkpoint cannot be saved in \S+checkpoints \(no space left on device\); there is none yet; rerun"
    with pytest.raises(SaveError, match=said):
        checkpoints.save(state)
    checkpoints.save(state)
    with pytest.raises(SaveError, match=said):
        checkpoints.close()
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path, monkeypatch, capsys):
    state = jax.device_get(small_state(*small_program()))
    checkpoints = Checkpoints(str(tmp_path), of=None)
    for step in (1, 2):
        checkpoints.save(state.replace(step=np.int32(step)))
    checkpoints.close()
    model = {"params": state.params, "batch_stats": state.batch_stats}
    for path in (tmp_path / "checkpoints" / "2" / "model").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    for restore, template in (("restore", state), ("restore_model", model)):
        reader = Checkpoints(str(tmp_path), of=None, read_only=True)
        with pytest.raises(ValueError, match=r"checkpoints/2 cannot be read \("):
            reader.restore(state, 2)
        getattr(reader, restore)(template)
        assert reader.restored_step == 1
        said = capsys.readouterr().err
        assert re.fullmatch(r"warning: \S+checkpoints/2 cannot be read \(.+\)\. Using \S+checkpoints/1\.\n", said)
        reader.close()

    def no_memory(*_, **__):
        raise MemoryError("1 GiB")

    reader = Checkpoints(str(tmp_path), of=None, read_only=True)
    monkeypatch.setattr(reader._manager, "restore", no_memory)
    with pytest.raises(MemoryError):  # the checkpoint itself is fine
        reader.restore(state)
    reader.close()
    shutil.rmtree(tmp_path / "checkpoints" / "2")
    reader = Checkpoints(str(tmp_path), of=None, read_only=True)
    assert int(reader.restore(state).step) == 1
    wider = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), model)
    with pytest.raises(ValueError, match=r"\S+ has the shape \(\d+,\) in the checkpoint and \(2, \d+\) in the config"):
        reader.restore_model(wider)
    reader.close()


def test_altered_content_is_detected_and_training_resumes_from_the_checkpoint_before(tmp_path, capsys):
    state = jax.device_get(small_state(*small_program()))
    at = lambda step: state.replace(step=np.int32(step))
    checkpoints = Checkpoints(str(tmp_path), of=None)
    for step in (1, 2):
        checkpoints.save(at(step))
    checkpoints.close()
    # Readable and of the right shapes, but with other weights of the same model.
    other = Checkpoints(str(tmp_path / "other"), of=None)
    other.save(at(2).replace(params=jax.tree.map(lambda x: x + 1, state.params)))
    other.close()
    saved = tmp_path / "checkpoints" / "2" / "model"
    shutil.rmtree(saved)
    shutil.copytree(tmp_path / "other" / "checkpoints" / "2" / "model", saved)
    checkpoints = Checkpoints(str(tmp_path), of=None)
    same(checkpoints.restore(state), at(1))
    assert "checkpoints/2 cannot be read (the SHA-256 of 'model' differs" in capsys.readouterr().err
    checkpoints.save(at(2))  # training reaches this step again
    checkpoints.close()
    reader = Checkpoints(str(tmp_path), of=None, read_only=True)
    same(reader.restore(state), at(2))
    assert reader.restored_step == 2 and reader.steps() == [1, 2]
    reader.close()


def test_a_step_that_is_damaged_again_and_again(tmp_path, capsys):
    state = jax.device_get(small_state(*small_program()))
    at = lambda step: state.replace(step=np.int32(step))
    checkpoints = Checkpoints(str(tmp_path), of=None)
    for step in (1, 2):
        checkpoints.save(at(step))
    checkpoints.close()
    about = tmp_path / "checkpoints" / "2" / "about" / "metadata"
    digests = json.loads(about.read_text())["sha256"]
    unclear = "its 'about' is incomplete"
    for content, why in (
        ({}, unclear),
        ([1], unclear),
        ({"of": [1], "sha256": digests}, unclear),
        ({"of": None, "sha256": digests}, unclear),
        ({"of": {}, "sha256": 5}, unclear),
        ({"of": {}, "step": 9}, "it is of step 9"),
    ):
        content = {"sha256": digests} | content if "step" in content else content
        about.write_text(json.dumps(content))
        checkpoints = Checkpoints(str(tmp_path), of=None)
        same(checkpoints.restore(state), at(1))
        said = capsys.readouterr().err
        assert f"checkpoints/2 cannot be read ({why})" in said and said.count("\n") == 1, said
        checkpoints.save(at(2))
        checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "2", "damaged_2"]


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    state = jax.device_get(small_state(*small_program()))
    checkpoints = Checkpoints(str(tmp_path), of={"trial": 0, "seed": 3})
    for step in (1, 2):
        checkpoints.save(state.replace(step=np.int32(step)))
    checkpoints.close()
    for of in ({"trial": 0, "seed": 3}, {}, {"trial": 0, "seed": 3, "younger": "key"}):
        reader = Checkpoints(str(tmp_path), read_only=True, of=of)
        assert int(reader.restore(state).step) == 2
        reader.close()
    reader = Checkpoints(str(tmp_path), read_only=True, of={"trial": 1, "seed": 3})
    with pytest.raises(ValueError, match=r"checkpoints/2 is of a run with trial 0, not 1; give another workdir"):
        reader.restore(state)
    reader.close()


def test_a_checkpoint_without_digests_is_restored(tmp_path):
    state = jax.device_get(small_state(*small_program()))
    checkpoints = Checkpoints(str(tmp_path), of=None)
    checkpoints.save(state.replace(step=np.int32(1)))
    checkpoints.close()
    shutil.rmtree(tmp_path / "checkpoints" / "1" / "about")
    reader = Checkpoints(str(tmp_path), read_only=True, of={"seed": 3})
    assert int(reader.restore(state).step) == 1
    reader.close()


def test_restoring_leaves_nothing_in_memory(tmp_path):
    """Orbax's description of an array stays in memory forever, so it must not be requested."""
    state = jax.device_get(small_state(*small_program()))
    checkpoints = Checkpoints(str(tmp_path), of=None)
    checkpoints.save(state)
    checkpoints.close()

    def objects(restores):
        for _ in range(restores):
            reader = Checkpoints(str(tmp_path), of=None, read_only=True)
            reader.restore(state)
            reader.close()
        gc.collect()
        return len(gc.get_objects())

    before = objects(2)
    assert objects(4) - before < len(jax.tree.leaves(state))
