"""Small programs for the tests of the step, the loop and the commands."""

import functools
from functools import partial

import jax
import numpy as np
from ml_collections import ConfigDict

from gradmix_jax import assembly, models
from gradmix_jax import config as config_lib
from gradmix_jax import run as run_lib
from gradmix_jax.config import phase
from gradmix_jax.data import order
from gradmix_jax.models.vit import PATCHES, ClassTokenViT, ViT
from gradmix_jax.training import state as state_lib
from gradmix_jax.training.checkpoint import Checkpoints

NUM_IMAGES = 64
SIZE = 8
PHASES = (phase("ssl", epochs=1, ssl=1.0), phase("joint", epochs=1, supcon=1.0, ssl=1.2))


def small_config(recipe="input", phases=PHASES, **overrides):
    """A config of the small CNN on 8x8 images without color; `overrides` are {"mix.fill": ...}."""
    c = config_lib.default_config()
    c.dataset.image_size = SIZE
    c.dataset.channels = 3
    c.normalization.mean, c.normalization.std = (0.5,) * 3, (0.25,) * 3
    c.augment.jitter_prob = 0.0
    c.augment.gray_prob = 0.0
    c.model.width, c.model.hidden, c.model.projection = 4, 16, 8
    c.train.batch_size = 32
    c.mix.group_size = 4
    c.phases = tuple(phases)
    config_lib.apply_recipe(c, recipe)
    with c.unlocked():
        for name, value in overrides.items():
            *sections, key = name.split(".")
            # A new section, because an existing one rejects values of another type before our own checks see them.
            holder = functools.reduce(lambda each, section: each[section], sections[:-1], c)
            holder[sections[-1]] = ConfigDict({**holder[sections[-1]], key: value})
    return c


def small_program(recipe="input", *, mapped=None, phases=PHASES, **overrides):
    """(experiment, program) for NUM_IMAGES images of 4 classes."""
    config = small_config(recipe, phases, **overrides)
    num_devices = len(mapped.devices) if mapped else 1
    specs = run_lib.from_config(config_lib.to_plain(config), num_devices=num_devices)
    return specs, assembly.make_program(specs, num_classes=4, num_images=NUM_IMAGES, mapped=mapped)


def shorten_transformers(monkeypatch):
    """One block per stage, because twelve blocks take long to compile and test the same thing three times."""
    for name, build in {"vit_tiny_token": partial(ClassTokenViT, patches=PATCHES), "vit_tiny": ViT}.items():
        entry = models.ENCODERS[name]
        monkeypatch.setitem(models.ENCODERS, name, entry._replace(build=partial(build, blocks_per_stage=1)))


def small_state(specs, program) -> state_lib.TrainState:
    return assembly.initial_state(specs, program)


def small_images(channels=3):
    """Random images with a bright square whose place depends on the class, and their labels."""
    random = np.random.default_rng(0)
    labels = np.arange(NUM_IMAGES, dtype=np.int32) % 4
    images = random.integers(0, 128, (NUM_IMAGES, SIZE, SIZE, channels), dtype=np.uint8)
    for image, label in zip(images, labels):
        row, column = 4 * (label // 2), 4 * (label % 2)
        image[row : row + 4, column : column + 4] += 100
    return images, labels


def small_order(program, step):
    """The order of the epoch of `step`, for a run with seed 0."""
    return order.epoch_order(0, step // program.steps_per_epoch, size=NUM_IMAGES)


def final_state(config, workdir):
    """The state of a digits run's newest checkpoint."""
    specs = run_lib.from_config(config_lib.to_plain(config), num_devices=8)
    program = assembly.make_program(specs, num_classes=6, num_images=256)
    checkpoints = Checkpoints(str(workdir), of=None, read_only=True)
    state = checkpoints.restore(jax.eval_shape(lambda: assembly.initial_state(specs, program)))
    checkpoints.close()
    return state
