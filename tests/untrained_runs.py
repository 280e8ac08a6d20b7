"""Workdirs of untrained runs, which evaluate quickly."""

import jax
import numpy as np
from PIL import Image
from programs import small_config
from stored_data import write_folder

from gradmix_jax import assembly
from gradmix_jax import config as config_lib
from gradmix_jax import data as data_lib
from gradmix_jax import run as run_lib
from gradmix_jax import workdir as workdir_lib
from gradmix_jax.training.checkpoint import Checkpoints

SCORES = ("topk_cosine", "class_mean_l1", "msp", "vim", "ensemble")


def digits(**overrides):
    config = small_config(**{"evaluate.scores": SCORES, "evaluate.stages": ("stage2",)} | overrides)
    config.dataset.channels = 1
    config.normalization.mean, config.normalization.std = (0.5,), (0.25,)
    return config


def untrained(config, workdir):
    """A run's workdir with a checkpoint of its initial state."""
    plain = config_lib.to_plain(config)
    specs = run_lib.from_config(plain, num_devices=jax.device_count())
    data = data_lib.open_set(specs.dataset)
    program = assembly.make_program(specs, num_classes=data.num_classes, num_images=10**4)
    checkpoints = Checkpoints(str(workdir), of=None)
    checkpoints.save(assembly.initial_state(specs, program))
    checkpoints.close()
    workdir_lib.write_json(str(workdir), workdir_lib.CONFIG, plain)
    return plain, str(workdir)


def write_noise(folder, brightness=None):
    """Fill every image of a folder dataset with different noise from 0 to 127, plus `brightness`: {class: 0 to 128}."""
    for path in sorted(folder.glob("*/*/*.png")):
        least = (brightness or {}).get(path.parent.name, 0)
        random = np.random.default_rng(list(str(path.relative_to(folder)).encode()))
        Image.fromarray(random.integers(least, least + 128, (8, 8), dtype=np.uint8)).save(path)


def animals(folder, **overrides):
    write_folder(folder, train={"cat": 20, "dog": 20, "owl": 20}, test={"cat": 5, "dog": 5, "owl": 5})
    write_noise(folder)
    plain = {"evaluate.scores": ("topk_cosine",), "evaluate.stages": (), "dataset.name": f"folder:{folder}"}
    return digits(**plain | {"dataset.benchmark": "random", "dataset.num_known": 2} | overrides)
