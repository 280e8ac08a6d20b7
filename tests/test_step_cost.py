"""What the map costs: XLA's FLOPs and temporary memory of the GradMix step against random CutMix boxes.

The programs are compiled, not run. Width and batch are small, the graph is that of ResNet-18 at 32 x 32.
"""

import functools

import jax
import jax.numpy as jnp
import pytest

from gradmix_jax import config as config_lib
from gradmix_jax import experiment, train, train_step
from gradmix_jax.config import phase


@functools.cache
def cost(recipe, detached=False):
    """(FLOPs, bytes of temporary memory) of one step."""
    c = config_lib.default_config()
    c.dataset.image_size, c.dataset.channels = 32, 3
    c.normalization.mean, c.normalization.std = (0.5,) * 3, (0.25,) * 3
    c.augment.jitter_prob = c.augment.grey_prob = 0.0  # the same on both sides, and slow to compile
    c.model.name, c.model.width = "resnet18", 16
    c.train.batch_size = 64
    c.phases = (phase("ssl", epochs=1, ssl=1.0),)
    c.objective.detach_anchors = detached
    c.attribution.loss = "training" if detached else "simclr"
    config_lib.apply_recipe(c, recipe)
    specs = experiment.from_config(config_lib.to_plain(c), num_devices=1)
    program = train.make_program(specs, num_classes=6, num_images=512, axis_name=None)
    state = jax.eval_shape(lambda: train.initial_state(specs, program))
    images, labels = jax.ShapeDtypeStruct((512, 32, 32, 3), jnp.uint8), jax.ShapeDtypeStruct((512,), jnp.int32)
    step = jax.jit(train_step.make_train_step(program, axis_name=None), donate_argnums=0)
    compiled = step.lower(state, images, labels).compile()
    return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    "recipe, flops, detached",
    [
        ("layer", 1.04, False),
        ("input", 1.18, False),
        pytest.param("layer", 1.02, True, marks=pytest.mark.slow),
        pytest.param("input", 1.02, True, marks=pytest.mark.slow),
    ],
)
def test_map_costs_next_to_nothing(recipe, flops, detached):
    with_map, without = cost(recipe, detached), cost("cutmix", detached)
    assert without[0] > 10e9, "the analysis saw the whole step"
    assert with_map[0] <= flops * without[0]
    assert with_map[1] <= 1.10 * without[1]
