"""Checkpoints: what goes in comes out, to the bit."""

import jax
import numpy as np
import pytest
from programs import small_program, small_state

from gradmix_jax.checkpoint import Checkpoints


def same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def test_round_trip_and_what_is_kept(tmp_path):
    state = jax.device_get(small_state(*small_program()))
    checkpoints = Checkpoints(str(tmp_path), keep=2)
    at = lambda step: state.replace(step=np.int32(step), params=jax.tree.map(lambda x: x + step, state.params))
    for step in (1, 2, 3):
        checkpoints.save(at(step))
    checkpoints.close()
    reader = Checkpoints(str(tmp_path), read_only=True)
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
    overrides = {"objective.ssl": "moco", "objective.queue_size": 64, "optimizer.ema": 0.9}
    state = jax.device_get(small_state(*small_program("input", **overrides)))
    shifted = lambda tree, by: jax.tree.map(lambda x: x + by, tree)
    extra = {name: shifted(state.extra[name], by) for by, name in enumerate(("average", "momentum", "queue"), 1)}
    state = state.replace(step=np.int32(7), extra=extra)
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(state)
    checkpoints.close()
    reader = Checkpoints(str(tmp_path), read_only=True)
    same(reader.restore(state), state)
    same(reader.restore_model({"params": state.params, "batch_stats": state.batch_stats}), extra["average"])
    reader.close()


def test_missing_checkpoint_is_one_sentence_and_makes_nothing(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint in"):
        Checkpoints(str(tmp_path / "nowhere"), read_only=True)
    assert not (tmp_path / "nowhere").exists()
