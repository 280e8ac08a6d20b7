"""The weights to evaluate."""

import sys
from typing import Any

import jax
import jax.numpy as jnp

from gradmix_jax.evaluation.spec import Setup
from gradmix_jax.training import initial
from gradmix_jax.training.checkpoint import Checkpoints


def restored(setup: Setup, model: Any, workdir: str, *, num_classes: int) -> tuple[int, Any, tuple[str, ...]]:
    """(step, variables, random) of the newest checkpoint, or of `model.init_from`.

    `random` names meaningless outputs: those of heads that are neither in `model.init_from` nor trained.
    """
    init_from = setup.model.init_from
    if init_from and not Checkpoints.exist(workdir):
        # Heads that are not loaded are initialized with seed 0.
        shape = (1, setup.dataset.image_size, setup.dataset.image_size, setup.dataset.channels)
        start = jax.jit(lambda key: model.init(key, jnp.zeros(shape), train=False))(jax.random.key(0))
        start = jax.device_get({"batch_stats": {}} | dict(start))
        variables, report = initial.load(init_from, setup.dataset.trial, start)
        print(report, file=sys.stderr)
        random = any(path.startswith("params/projection/") for path in report.kept)
        return 0, variables, ("projection",) if random else ()
    of = {"dataset": setup.dataset.name, "trial": setup.dataset.trial, "classes": num_classes}
    of |= {} if setup.seed is None else {"seed": setup.seed}
    checkpoints = Checkpoints(workdir, read_only=True, of=of)
    variables = checkpoints.restore_model(template(model, setup.dataset))
    checkpoints.close()
    return checkpoints.restored_step, variables, ()


def template(model, data_spec):
    """Shapes of the variables to restore; nothing is computed."""
    image = jax.ShapeDtypeStruct((1, data_spec.image_size, data_spec.image_size, data_spec.channels), jnp.float32)
    variables = jax.eval_shape(lambda key, x: model.init(key, x, train=False), jax.random.key(0), image)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
