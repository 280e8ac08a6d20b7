"""No random key is used twice: JAX's check over every recipe, and separate domains for each use."""

import itertools

import jax
import numpy as np
import pytest
from marks import slow
from programs import NUM_IMAGES, shorten_transformers, small_images, small_order, small_program, small_state

from gradmix_jax import config as config_lib
from gradmix_jax import keys
from gradmix_jax.method import masks, mix
from gradmix_jax.training import step as step_lib

# Every step of the augmentation that draws random numbers.
VIEWS = {"jitter_prob": 0.5, "gray_prob": 0.2, "rotation_degrees": 5.0, "blur_prob": 0.5}
# Only their maps, which draw nothing, or their encoders differ from another recipe.
SLOW = {"grad_cam", "tokens", "smooth", "integrated_gradients", "eigen_cam", "rollout", "vit_none", "vit_cutmix"}
CASES = [slow(recipe, {}) if recipe in SLOW else (recipe, {}) for recipe in config_lib.RECIPES]
CASES += [
    ("input", {"objective.ssl": "moco", "objective.options.moco.queue_size": 128}),
    ("layer", {"attribution.every": 2}),
]
# Each mask and each fill once; every pair is a slow test.
PAIRS = [(mask, fill) for mask in masks.MASKS for fill in mix.FILLS]
QUICK = {(mask, "noise") for mask in masks.MASKS} | {("threshold", fill) for fill in mix.FILLS}
of_pair = lambda mask, fill: ("input", {"mix.mask": mask, "mix.fill": fill, "mix.patch_size": 4})
CASES += [of_pair(*pair) if pair in QUICK else slow(*of_pair(*pair)) for pair in PAIRS]


@pytest.mark.parametrize(("recipe", "overrides"), CASES, ids=str)
def test_no_key_of_a_step_is_used_twice(recipe, overrides, monkeypatch):
    """Traced and lowered, which is when JAX checks, but not compiled."""
    shorten_transformers(monkeypatch)
    views = {f"augment.{name}": value for name, value in VIEWS.items()}
    with jax.debug_key_reuse(True):
        specs, program = small_program(recipe, **views, **overrides)
        state = small_state(specs, program)
        images, labels = small_images()
        step = jax.jit(step_lib.make_train_step(program, axis_name=None))
        step.lower(state, images.reshape(NUM_IMAGES, -1), labels, small_order(program, 0))


def test_a_key_that_is_used_twice_is_found():
    with jax.debug_key_reuse(True), pytest.raises(jax.errors.KeyReuseError):
        jax.jit(lambda key: jax.random.normal(key) + jax.random.uniform(key)).lower(keys.key_of(0, "mix"))


def test_domains_and_places_have_separate_keys():
    """In particular, the order of epoch e and the views of step e."""
    places = itertools.product((0, 1), keys.DOMAINS, range(50))
    found = {tuple(np.asarray(jax.random.key_data(keys.key_of(*place))).tolist()) for place in places}
    assert len(found) == 2 * len(keys.DOMAINS) * 50
    assert len(set(keys.DOMAINS.values())) == len(keys.DOMAINS)


def test_keys_do_not_depend_on_jaxs_default_generator():
    before = np.asarray(jax.random.key_data(keys.key_of(3, "views", 7)))
    with jax.default_prng_impl("rbg"):
        after = np.asarray(jax.random.key_data(keys.key_of(3, "views", 7)))
    np.testing.assert_array_equal(before, after)
