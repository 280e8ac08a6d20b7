"""What the benchmarks of the step have in common: ResNet-18 on 32 x 32 colour images, two views, any recipe."""

from collections.abc import Mapping
from typing import Any

from gradmix_jax import config as config_lib
from gradmix_jax import experiment
from gradmix_jax.config import phase

SSL = phase("ssl", epochs=1, ssl=1.0)
JOINT = phase("joint", epochs=1, supcon=1.0, ssl=1.2)


def config(
    recipe: str,
    phase_of: Any,
    *,
    width: int,
    batch: int,
    dtype: str = "float32",
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The plain config of one phase (`SSL` or `JOINT`) with a global batch; `overrides` are {"mix.fill": ...}."""
    c = config_lib.default_config()
    c.dataset.image_size, c.dataset.channels = 32, 3
    c.normalization.mean, c.normalization.std = (0.5,) * 3, (0.25,) * 3
    # The same with and without a map, and slow to compile on a CPU.
    c.augment.jitter_prob = c.augment.grey_prob = 0.0
    c.model.name, c.model.width, c.model.dtype = "resnet18", width, dtype
    c.train.batch_size = batch
    c.phases = (phase_of,)
    config_lib.apply_recipe(c, recipe)
    for name, value in (overrides or {}).items():
        section, key = name.split(".")
        c[section][key] = value
    return config_lib.to_plain(c)


def settings(recipe: str, phase_of: Any, *, devices: int = 1, **options: Any) -> experiment.Experiment:
    """The experiment of `config`, which has the options."""
    return experiment.from_config(config(recipe, phase_of, **options), num_devices=devices)
