"""The examples train, and their steps match the built-in step on the same model in cost and result."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import train_linen
import train_nnx
import train_vit
from marks import slow_but
from programs import small_program
from sklearn.datasets import load_digits

from gradmix_jax import no_tap, objectives
from gradmix_jax.config import phase
from gradmix_jax.method import attribution, mix
from gradmix_jax.training import step as step_lib
from gradmix_jax.training.program import Context

EXAMPLES = {"linen": train_linen, "nnx": train_nnx, "vit": train_vit}
BATCH = 64
CROSS_ENTROPY = {"cross_entropy": 1.0}


class Model:
    """An example's model in the form that the train step expects: (z, out), {"batch_stats": ...}.

    Args:
      forward: (params, batch_stats, images, tap) -> (logits or z, new batch_stats).
    """

    def __init__(self, forward):
        self.forward = forward

    def apply(self, variables, images, *, train, mutable):
        out = {}

        def tap(name, x):
            out[name] = x + variables["perturbations"][name] if name in variables.get("perturbations", {}) else x
            return out[name]

        result, new = self.forward(variables["params"], variables["batch_stats"], images, tap)
        return (result, out | {"logits": result}), {"batch_stats": new}


def of_linen(params, batch_stats, images, tap):
    variables = {"params": params, "batch_stats": batch_stats}
    logits, new = train_linen.model.apply(variables, images, mutable=["batch_stats"])
    return logits, new["batch_stats"]


# Name: (model, phase's weights, sections of the built-in step).
BUILT_IN = {
    "linen": (of_linen, CROSS_ENTROPY, attribution.Spec(loss="training"), mix.Spec(group_size=BATCH)),
    "nnx": (
        lambda params, stats, images, tap: (train_nnx.forward(params, images, tap), stats),
        {"supcon": 1.0},
        attribution.Spec(method="layer", stages=("stage2", "stage3"), loss="supcon"),
        mix.Spec(mask="box", fill="partner_resized", group_size=BATCH),
    ),
    "vit": (
        lambda params, stats, images, tap: (train_vit.forward(params, images, tap), stats),
        CROSS_ENTROPY,
        attribution.Spec(method="token", stages=("block0", "block1"), loss="training"),
        mix.Spec(mask="patches", patch_size=2, group_size=BATCH),
    ),
}


def built_in_step(name, optimizer):
    """(params, batch_stats, opt_state, key, images, labels) -> the first three updated, by `step.gradients`."""
    forward, weights, map_spec, mix_spec = BUILT_IN[name]
    head = {
        "model.classifier": "linear" if "cross_entropy" in weights else "none",
        "train.num_views": 1,
        "attribution.loss": "training",
        "objective.mixed_supcon": True,
    }
    _, program = small_program(phases=(phase("one", epochs=1, **weights),), **head)
    program = dataclasses.replace(
        program,
        model=Model(forward),
        attribution=map_spec,
        mix=mix_spec,
        objective=objectives.Spec(temperature=0.1, base_temperature=0.1, mixed_supcon=True),
        mean=(0.0,),
        std=(1.0,),
        num_classes=10,
    )

    def step(params, batch_stats, opt_state, key, images, labels):
        keys = {"map": key, "mix": jax.random.split(key)[1], "objective": key}
        context = Context(program, None, keys, params, batch_stats, labels, weights)
        gradient, batch_stats, _ = step_lib.gradients(context, images)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return optax.apply_updates(params, updates), batch_stats, opt_state

    return jax.jit(step)


def first_state(name, images):
    example = EXAMPLES[name]
    if name == "linen":
        return example.init(jax.random.key(0), images[:2])
    params = example.params if name == "nnx" else example.init(jax.random.key(0))
    return params, example.optimizer.init(params)


def flops(compiled):
    return compiled.cost_analysis()["flops"]


@pytest.mark.parametrize("name", slow_but(["linen", "nnx"], EXAMPLES))
def test_an_example_costs_and_computes_what_the_built_in_step_does(name):
    example = EXAMPLES[name]
    images, labels = load_digits(return_X_y=True)
    images = jnp.asarray(images[:BATCH].reshape(-1, 8, 8, 1) / 16, jnp.float32)
    rest = jax.random.key(3), images, jnp.asarray(labels[:BATCH])
    state = first_state(name, images)
    theirs = state if name == "linen" else (state[0], {}, state[1])
    own = example.step.lower(*state, *rest).compile()
    built_in = built_in_step(name, example.optimizer).lower(*theirs, *rest).compile()
    assert flops(built_in) > 1e6
    assert flops(own) == pytest.approx(flops(built_in), rel=0.02)
    # Adam's first moments are a tenth of the gradient.
    found, expected = own(*state, *rest)[-2][0].mu, built_in(*theirs, *rest)[-1][0].mu
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.abs(b).max() > 1e-6
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())


@pytest.mark.parametrize("name, least", [("linen", 0.3), ("nnx", 0.8), ("vit", 0.3)])
def test_an_example_trains(name, least):
    assert len(Path(EXAMPLES[name].__file__).read_text().splitlines()) < 60
    loss, accuracy = EXAMPLES[name].main(steps=40)
    assert np.isfinite(loss) and accuracy > least


def test_no_tap_changes_nothing():
    assert no_tap("stage1", 3.0) == 3.0
