"""The static description of a step: its epochs, and which losses and gradients its program needs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow
from programs import NUM_IMAGES, PHASES, small_images, small_order, small_program, small_state

from gradmix_jax.config import phase
from gradmix_jax.training import step as step_lib

SUPCON = (phase("supcon", epochs=2, supcon=1.0),)


@pytest.mark.parametrize(
    "recipe, phases, overrides",
    [
        ("cutmix", PHASES, {"attribution.loss": "moco"}),
        slow("cutmix", PHASES, {"attribution.loss": "cross_entropy"}),
        ("cutmix", PHASES, {"attribution.loss": "simclr", "attribution.every": 4}),
        ("mixup", SUPCON, {"attribution.loss": "barlow_twins", "train.num_views": 3, "objective.mixed_supcon": True}),
    ],
)
def test_without_a_map_the_loss_of_maps_does_not_matter(recipe, phases, overrides):
    """Not even a loss that the experiment cannot compute."""
    kept = {name: value for name, value in overrides.items() if not name.startswith("attribution")}
    images, labels = small_images()
    images = images.reshape(len(images), -1)
    metrics = []
    for given in (overrides, kept):
        specs, program = small_program(recipe, phases=phases, **given)
        assert not program.maps_gradients
        step = jax.jit(step_lib.make_train_step(program, axis_name=None))
        metrics.append(step(small_state(specs, program), jnp.asarray(images), labels, small_order(program, 0))[1])
    assert np.isfinite(metrics[0]["loss"]) and metrics[0].keys() == metrics[1].keys()
    for name, value in metrics[1].items():
        np.testing.assert_array_equal(metrics[0][name], value)


@pytest.mark.parametrize(
    "recipe, wanted", [("input", True), ("layer", True), ("grad_cam", True), ("random", False), ("none", False)]
)
def test_only_gradient_maps_request_gradients(recipe, wanted):
    assert small_program(recipe)[1].maps_gradients == wanted


@pytest.mark.parametrize("loss", ["simclr", "training"])
@pytest.mark.parametrize("recipe, shares", [("cutmix", True), ("random", True), ("layer", None)])
def test_one_backward_pass_unless_the_map_needs_another(recipe, shares, loss):
    cross_entropy = (phase("classes", epochs=1, cross_entropy=1.0),)
    keys = {"model.classifier": "linear", "attribution.loss": loss}
    # Its activations are no longer needed when the mixed pass begins.
    assert small_program(recipe, phases=cross_entropy, **keys)[1].shares_backward == (shares or loss == "training")
    # A contrastive mixed loss depends on the clean outputs.
    assert not small_program(recipe, phases=PHASES, **keys | {"model.classifier": "none"})[1].shares_backward


def test_an_epoch_has_whole_batches_and_at_least_one():
    _, program = small_program("none")
    assert dataclasses.replace(program, num_images=NUM_IMAGES - 1).steps_per_epoch == NUM_IMAGES // 32 - 1
    with pytest.raises(ValueError, match=r"train\.batch_size must be from 1 to 31, .*, got 32"):
        _ = dataclasses.replace(program, num_images=31).steps_per_epoch
