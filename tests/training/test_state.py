"""Optimizers and schedules as a config describes them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from programs import small_program, small_state

from gradmix_jax.config import default_config, phase
from gradmix_jax.training import optimizer
from gradmix_jax.training.phases import Phase

PARAMS = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2), "scale": jnp.ones(3)}


def spec(**changes):
    return optimizer.OptimizerSpec(**default_config().optimizer.to_dict() | changes)


def updated(gradient, steps=1, **changes):
    transform = optimizer.optimizer(spec(learning_rate=0.1, **changes), lambda count: 0.1)
    params, opt_state = PARAMS, transform.init(PARAMS)
    for _ in range(steps):
        updates, opt_state = transform.update(gradient, opt_state, params)
        params = {name: params[name] + updates[name] for name in params}
    return params


@pytest.mark.parametrize("name", optimizer.OPTIMIZERS)
def test_weight_decay_spares_norms_and_biases(name):
    nothing = {name: jnp.zeros_like(value) for name, value in PARAMS.items()}
    decayed = updated(nothing, name=name, weight_decay=0.1)
    np.testing.assert_array_equal(decayed["bias"], 1.0)
    np.testing.assert_array_equal(decayed["scale"], 1.0)
    assert np.all(decayed["kernel"] < 1.0)
    # Without weight decay, nothing moves.
    np.testing.assert_array_equal(updated(nothing, name=name)["kernel"], 1.0)


def test_sgd_is_nesterov_by_hand():
    gradient = {name: jnp.full(value.shape, 0.5) for name, value in PARAMS.items()}
    velocity, expected = 0.0, 1.0
    for _ in range(3):
        velocity = 0.9 * velocity + 0.5
        expected -= 0.1 * (0.5 + 0.9 * velocity)
    found = updated(gradient, steps=3, name="sgd", momentum=0.9)
    np.testing.assert_allclose(found["kernel"], expected, rtol=1e-6)


def test_lars_moves_matrices_by_a_share_of_their_norm():
    gradient = {name: jnp.full(value.shape, 7.0) for name, value in PARAMS.items()}
    found = updated(gradient, name="lars", momentum=0.0)
    # You et al. 2017: rate * trust * |w| / |g| * g; optax's trust coefficient is 0.001. Vectors move as in SGD.
    np.testing.assert_allclose(1 - np.asarray(found["kernel"]), 0.1 * 0.001 / 7.0 * 7.0, rtol=1e-3)
    np.testing.assert_allclose(found["bias"], 1 - 0.7, rtol=1e-6)


def test_the_full_cosine_with_warm_up():
    phases = (Phase("ssl", 10, {"simclr": 1.0}),)
    flat = spec(learning_rate=1.0, warmup_epochs=2.0, final_fraction=0.0, per_epoch=False)
    schedule = optimizer.learning_rate_schedule(flat, phases, steps_per_epoch=10)
    rates = np.array([float(schedule(step)) for step in range(101)])
    np.testing.assert_allclose(rates[:21], np.arange(21) / 20, atol=1e-6)
    np.testing.assert_allclose(rates[20:], (1 + np.cos(np.pi * np.arange(81) / 80)) / 2, atol=1e-6)


def test_the_optimizer_of_a_program_follows_its_schedule():
    options = {"name": "sgd", "momentum": 0.0, "warmup_epochs": 1.0, "per_epoch": False, "final_fraction": 0.1}
    phases = (phase("ssl", epochs=4, ssl=1.0),)
    _, program = small_program(phases=phases, **{f"optimizer.{key}": value for key, value in options.items()})
    opt_state, rates = program.transform.init(PARAMS), []
    for step in range(4):
        gradient = {name: jnp.full(value.shape, 0.5) for name, value in PARAMS.items()}
        updates, opt_state = program.transform.update(gradient, opt_state, PARAMS)
        rates.append(float(program.schedule(step)))
        np.testing.assert_allclose(updates["kernel"], -0.5 * rates[-1], rtol=1e-6)
    assert rates[0] == 0 and len(set(rates)) == 4


def test_the_seed_decides_the_initial_parameters():
    specs, program = small_program()
    states = [small_state(dataclasses.replace(specs, seed=seed), program) for seed in (3, 3, 4)]
    assert [int(each.seed) for each in states] == [3, 3, 4]
    kernels, same, others = ([leaf for leaf in jax.tree.leaves(each.params) if leaf.ndim > 1] for each in states)
    assert all(np.array_equal(a, b) for a, b in zip(kernels, same, strict=True))
    assert all(not np.array_equal(a, b) for a, b in zip(kernels, others, strict=True))


@pytest.mark.parametrize("warmup_epochs, warmup", [(1.0, 10), (0.5, 5), (2.5, 25), (100.0, 99)])
def test_the_warm_up_rises_in_every_step_and_the_cosine_falls_in_every_epoch(warmup_epochs, warmup):
    phases = (Phase("ssl", 10, {"simclr": 1.0}), Phase("joint", 2, {"supcon": 1.0, "simclr": 1.0}))
    changes = dict(learning_rate=1.0, warmup_epochs=warmup_epochs, final_fraction=0.0)
    schedule = optimizer.learning_rate_schedule(spec(**changes), phases, steps_per_epoch=10)
    rates = np.array([float(schedule(step)) for step in range(120)])
    np.testing.assert_allclose(rates[:warmup], np.arange(warmup) / warmup, atol=1e-6)
    flat = optimizer.learning_rate_schedule(spec(**changes, per_epoch=False), phases, steps_per_epoch=10)
    starts = np.maximum(np.arange(warmup, 120) // 10 * 10, warmup)
    np.testing.assert_allclose(rates[warmup:], [float(flat(start)) for start in starts], atol=1e-6)
    assert np.flatnonzero(rates == 0).tolist() == [0]


def test_the_warm_up_applies_to_the_first_phase_with_epochs():
    nothing = Phase("ssl", 0, {"simclr": 1.0})
    whole = Phase("joint", 3, {"supcon": 1.0, "simclr": 1.0})
    rates = [
        [
            float(optimizer.learning_rate_schedule(spec(warmup_epochs=1.0), phases, steps_per_epoch=10)(i))
            for i in range(30)
        ]
        for phases in ((nothing, whole), (whole,), (whole, nothing))
    ]
    assert rates[0] == rates[1] == rates[2] and rates[0][0] == 0


@pytest.mark.parametrize("name", ["adam", "sgd", "lars"])
def test_weight_decay_spares_norms_and_the_biases_of_attention(name):
    params = {
        "attention": {"query": {"kernel": jnp.ones((8, 2, 4)), "bias": jnp.ones((2, 4))}},
        "norm": {"scale": jnp.ones(8), "bias": jnp.ones(8)},
    }
    options = dict(name=name, learning_rate=0.5, weight_decay=0.1, per_epoch=False)
    transform = optimizer.optimizer(spec(**options), optax.constant_schedule(0.5))
    updates, _ = transform.update(jax.tree.map(jnp.zeros_like, params), transform.init(params), params)
    moved = jax.tree.map(lambda update: bool(np.any(update)), updates)
    assert moved == {
        "attention": {"query": {"kernel": True, "bias": False}},
        "norm": {"scale": False, "bias": False},
    }
