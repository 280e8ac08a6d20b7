"""The mappings: eight devices agree with one, and a run may resume under another mapping."""

import functools
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow_but
from programs import final_state, small_config, small_images, small_order, small_program, small_state

from gradmix_jax import config as config_lib
from gradmix_jax import run as run_lib
from gradmix_jax.config import phase
from gradmix_jax.training import loop, mapping, train
from gradmix_jax.training import step as step_lib

MOCO = {
    "objective.ssl": "moco",
    "objective.options.moco.queue_size": 128,
    "objective.options.moco.momentum": 0.5,
    "optimizer.ema": 0.5,
}
CASES = {
    "input": ("input", {}),
    "layer": ("layer", {}),
    "moco": ("input", MOCO),
    "barlow_twins": ("layer", {"objective.ssl": "barlow_twins"}),
}
# The rest is slow; `shard_map` and `pmap` have the same collectives.
QUICK = {("pmap", "input"), ("pmap", "moco"), ("sharded", "layer")}
STEPS = 4


@pytest.fixture(autouse=True)
def small_arrays_are_sharded_too(monkeypatch):
    monkeypatch.setattr(mapping, "SMALLEST_SHARDED", 64)


def largest_difference(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.max(np.abs(np.asarray(x) - np.asarray(y)))), a, b)))


def resident_images():
    images, labels = small_images()
    return images.reshape(len(images), -1), labels


@functools.cache
def on_one_device(case):
    """(state after STEPS steps, metrics of each) with plain `jax.jit`."""
    recipe, overrides = CASES[case]
    specs, program = small_program(recipe, **overrides)
    step = jax.jit(step_lib.make_train_step(program, axis_name=None))
    state, history = small_state(specs, program), []
    images, labels = map(jnp.asarray, resident_images())
    for index in range(STEPS):
        state, metrics = step(state, images, labels, small_order(program, index))
        history.append(jax.device_get(metrics))
    assert step._cache_size() == 1, "one trace must serve both phases"
    return jax.device_get(state), history


@pytest.mark.parametrize("name, case", slow_but(QUICK, itertools.product(mapping.MAPPINGS, CASES)))
def test_eight_devices_agree_with_one(name, case):
    one, history = on_one_device(case)
    recipe, overrides = CASES[case]
    mapped = mapping.MAPPINGS[name]()
    specs, program = small_program(recipe, mapped=mapped, **overrides)
    step = mapped.compile_step(step_lib.make_train_step(program, axis_name=mapped.axis_name))
    images, labels = mapped.replicate(resident_images())
    state = mapped.create(lambda: small_state(specs, program))
    where = lambda state: [leaf.addressable_shards[3].index for leaf in jax.tree.leaves(state)]
    places = where(state)
    for index, metrics_of_one in enumerate(history):
        order_N = mapped.replicate(small_order(program, index))
        before = state
        with jax.transfer_guard("disallow"):
            state, metrics = step(state, images, labels, order_N)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before)), "the step must reuse the memory of the state"
        assert where(state) == places, "and leave every array in place"
        metrics = mapped.to_host(metrics)
        for key, value in metrics_of_one.items():
            np.testing.assert_allclose(metrics[key], value, rtol=2e-5, atol=1e-6, err_msg=key)
    eight = mapped.to_host(state)
    assert jax.tree.map(np.shape, eight) == jax.tree.map(np.shape, one)
    assert largest_difference(one.params, eight.params) < 2e-5
    assert largest_difference(one.batch_stats, eight.batch_stats) < 1e-5
    if one.extra:
        assert set(one.extra) == {"average", "momentum", "queue"}
        assert largest_difference(one.extra, eight.extra) < 1e-4
        # The average and the key encoder each lag behind at their own rate.
        assert largest_difference(one.extra["average"]["params"], one.params) > 1e-5
        assert largest_difference(one.extra["momentum"]["params"], one.extra["average"]["params"]) > 1e-5


def test_sharded_state_takes_an_eighth_of_the_memory():
    on_device = {}
    for name, make in mapping.MAPPINGS.items():
        mapped = make()
        specs, program = small_program("input", mapped=mapped, **MOCO, **{"model.width": 16})
        state = mapped.create(functools.partial(small_state, specs, program))
        whole = sum(leaf.nbytes for leaf in jax.tree.leaves(mapped.to_host(state)))
        on_device[name] = sum(leaf.addressable_shards[3].data.nbytes for leaf in jax.tree.leaves(state))
    assert on_device["pmap"] == on_device["shard_map"] == whole
    assert whole / 8 < on_device["sharded"] < whole / 7
    # Every kind of large array is split: parameters, both moments, the average, the key encoder.
    kernel = lambda tree: tree["encoder"]["stage4_conv"]["kernel"]
    for tree in (state.params, state.opt_state[0].mu, state.opt_state[0].nu):
        assert not kernel(tree).is_fully_replicated
    for extra in ("average", "momentum"):
        assert not kernel(state.extra[extra]["params"]).is_fully_replicated


def test_small_arrays_and_those_that_do_not_divide_stay_whole(monkeypatch):
    monkeypatch.setattr(mapping, "SMALLEST_SHARDED", 1024)
    mapped = mapping.Sharded()
    of = lambda *shape: mapped.place_state(np.zeros(shape, np.float32)).addressable_data(0).shape
    assert of(1023) == (1023,) and of(8, 127) == (8, 127) and of(33, 33) == (33, 33)
    assert of(1024) == (128,) and of(24, 7, 512) == (24, 7, 64) and of(3, 3, 64, 128) == (3, 3, 64, 16)


def test_rows_are_spread_in_order():
    images, labels = small_images()
    for make in mapping.MAPPINGS.values():
        for given, placed in zip((images, labels), make().spread((images, labels))):
            shards = [np.asarray(shard.data).reshape(8, *given.shape[1:]) for shard in placed.addressable_shards]
            np.testing.assert_array_equal(np.concatenate(shards), given)
            assert [shard.device.id for shard in placed.addressable_shards] == list(range(8))


PHASES = (phase("ssl", epochs=2, ssl=1.0), phase("joint", epochs=2, supcon=1.0, ssl=1.2))


def digits(name, **overrides):
    config = small_config("input", phases=PHASES, **{"optimizer.ema": 0.5} | overrides)
    config.seed = 1
    config.dataset.channels = 1
    config.normalization.mean, config.normalization.std = (0.5,), (0.25,)
    config.train.batch_size, config.train.log_every_steps, config.train.mapping = 256, 2, name
    return config


def fit(config, workdir, *, stop_at=None):
    """Train or resume; returns the number of steps done."""
    run = loop.run
    stopping = {} if stop_at is None else {"should_stop": lambda step: step == stop_at}
    plain = config_lib.to_plain(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "run", lambda state, **options: run(state, **options | stopping))
        return run_lib.train(run_lib.from_config(plain, num_devices=8), plain, str(workdir))[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """{mapping: workdir} of runs that were not interrupted, trained when first asked for."""

    @functools.cache
    def workdir(name):
        directory = tmp_path_factory.mktemp(name)
        fit(digits(name), directory)
        return directory

    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shard_map", "sharded"])  # `pmap`: tests/test_main.py
def test_nothing_is_compiled_after_the_first_step_and_resume_gives_the_same_bits(
    name, whole, tmp_path, monkeypatch, programs
):
    workdir, before_step = whole(name), []

    class Writer(train.MetricsWriter):
        def advance(self):
            super().advance()
            before_step.append(len(programs))

    monkeypatch.setattr(train, "MetricsWriter", Writer)
    config = digits(name, **{"train.checkpoint_every_epochs": 1})
    assert fit(config, tmp_path, stop_at=3) == 3
    assert before_step[-1] == before_step[0] == len(programs), programs[before_step[0] :]
    fit(config, tmp_path)
    assert before_step[-1] == before_step[3] == len(programs), programs[before_step[3] :]
    expected, state = final_state(config, workdir), final_state(config, tmp_path)
    assert int(state.step) == int(expected.step) > 5
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), state, expected)


@pytest.mark.slow
@pytest.mark.parametrize("first, second", [("pmap", "sharded"), ("sharded", "shard_map"), ("shard_map", "pmap")])
def test_a_run_may_resume_under_another_mapping(first, second, whole, tmp_path):
    assert fit(digits(first), tmp_path, stop_at=3) == 3
    done = fit(digits(second), tmp_path)
    expected, state = final_state(digits("pmap"), whole("pmap")), final_state(digits(second), tmp_path)
    assert int(state.step) == int(expected.step) == done > 5
    assert largest_difference(state.params, expected.params) < 1e-4
    lines = [json.loads(line) for line in (pathlib.Path(tmp_path) / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines]
    assert steps == sorted(set(steps))


@pytest.mark.slow
@pytest.mark.parametrize("name", mapping.MAPPINGS)
def test_a_run_in_micro_batches_resumes_to_the_same_bits_and_keeps_their_size(name, tmp_path):
    """The batch norm of a micro batch depends on its size."""
    config, other = (digits(name, **{"train.micro_batch_size": size}) for size in (8, 16))
    fit(config, tmp_path / "whole")
    assert fit(config, tmp_path / "run", stop_at=3) == 3
    with pytest.raises(ValueError, match=r"holds a run with train\.micro_batch_size=8, not 16[^\n]*$"):
        fit(other, tmp_path / "run")
    fit(config, tmp_path / "run")
    expected, state = final_state(config, tmp_path / "whole"), final_state(config, tmp_path / "run")
    assert int(state.step) == int(expected.step) > 5
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), state, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shard_map", "sharded"])  # `pmap`: tests/test_main.py
def test_streamed_training_equals_resident_training(name, whole, tmp_path):
    config = digits(name, **{"dataset.storage": "stream"})
    fit(config, tmp_path)
    assert largest_difference(final_state(config, tmp_path).params, final_state(config, whole(name)).params) < 1e-5


def test_an_unknown_mapping_is_named():
    with pytest.raises(ValueError, match=r"train\.mapping must be one of pmap, shard_map, sharded, got 'shard'"):
        digits_specs = config_lib.to_plain(digits("shard"))
        run_lib.from_config(digits_specs, num_devices=8)
