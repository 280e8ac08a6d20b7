"""The weights to evaluate."""

import sys
from typing import Any

import jax
import jax.numpy as jnp

from gradmix_jax import data as data_lib
from gradmix_jax.evaluation.spec import Setup
from gradmix_jax.training import initial
from gradmix_jax.training.checkpoint import Checkpoints
from gradmix_jax.training.identity import identity


def restored(setup: Setup, model: Any, workdir: str, *, data: data_lib.OpenSet) -> tuple[int, Any, tuple[str, ...]]:
    """(step, variables, random) of the newest checkpoint, or of `model.init_from`.

    `random` names meaningless outputs: those of a projection that is neither in `model.init_from` nor trained.

    Raises:
      ValueError: there are no such weights, they do not fit, or they lack the classification head.
    """
    init_from = setup.model.init_from
    if init_from and not Checkpoints.exist(workdir):
        # Heads that are not loaded are initialized with seed 0.
        shape = (1, setup.dataset.image_size, setup.dataset.image_size, setup.dataset.channels)
        start = jax.jit(lambda key: model.init(key, jnp.zeros(shape), train=False))(jax.random.key(0))
        start = jax.device_get({"batch_stats": {}} | dict(start))
        variables, report = initial.load(init_from, setup.dataset.trial, start)
        print(report, file=sys.stderr)
        initial.warn_of_unknown(report, setup.dataset, data)
        if setup.model.has_logits:
            initial.check_head(report, setup.model.classifier)
        random = any(path.startswith("params/projection/") for path in report.kept)
        return 0, variables, ("projection",) if random else ()
    of = identity(setup.dataset, setup.seed, data.class_names, data.negative_names)
    checkpoints = Checkpoints(workdir, of=of, read_only=True)
    variables = checkpoints.restore_model(template(model, setup.dataset))
    checkpoints.close()
    return checkpoints.restored_step, variables, ()


def template(model, data_spec):
    """Shapes of the variables to restore; nothing is computed."""
    image = jax.ShapeDtypeStruct((1, data_spec.image_size, data_spec.image_size, data_spec.channels), jnp.float32)
    variables = jax.eval_shape(lambda key, x: model.init(key, x, train=False), jax.random.key(0), image)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
