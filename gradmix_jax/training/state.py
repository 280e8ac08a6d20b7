"""The state that training carries from step to step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from gradmix_jax import objectives
from gradmix_jax.keys import key_of


class TrainState(flax.struct.PyTreeNode):
    """Attributes: step and seed (int32 scalars), params, batch_stats (running BatchNorm statistics), opt_state.

    The seed is data, not a constant of the program, so that runs with other seeds need no new compilation.
    `extra` holds what only some runs have: "average" {"params", "batch_stats"}, the moving average to evaluate, and
    what objectives carry, each under its own names.
    """

    step: jax.Array
    seed: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    extra: dict[str, Any] = flax.struct.field(default_factory=dict)

    @property
    def evaluated(self) -> dict[str, Any]:
        """{"params", "batch_stats"} of the model that the run is judged by."""
        return self.extra.get("average", {"params": self.params, "batch_stats": self.batch_stats})


def with_weights(state: TrainState, variables: dict[str, Any]) -> TrainState:
    """The state before the first step with other weights, {"params", "batch_stats"}, in every copy of the model,
    including its average and the copies that objectives carry."""
    both = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
    states = [entry.state for entry in objectives.OBJECTIVES.values() if entry.state]
    copies = {"average", *(name for state in states for name in state.copies)}
    extra = {name: both if name in copies else value for name, value in state.extra.items()}
    return state.replace(**both, extra=extra)


def create(
    model: Any,
    transform: optax.GradientTransformation,
    seed: int,
    image_shape: tuple,
    *,
    averaged: bool = False,
    carrying: tuple[str, ...] = (),
    objective: objectives.Spec | None = None,
) -> TrainState:
    """Initial state, a function of the seed, for images of shape (H, W, C); on the default device.

    Args:
      model, transform: the model and optimizer of the state.
      seed: seed of initialization and of everything that follows.
      image_shape: (H, W, C).
      averaged: whether the run keeps a moving average of the model.
      carrying: the objectives whose state the run carries.
      objective: the `objective` section, for these objectives.
    """

    @jax.jit
    def init(seed):
        key = key_of(seed, "initialization")
        images = jnp.zeros((2, *image_shape), jnp.float32)
        (z, _), variables = model.init_with_output(key, images, train=False)
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        both, extra = {"params": params, "batch_stats": batch_stats}, {}
        if averaged:
            extra["average"] = both
        for number, name in enumerate(carrying, 1):
            init_state = objectives.OBJECTIVES[name].state.init
            extra |= init_state(key_of(seed, "initialization", number), both, z.shape[-1], objective)
        return TrainState(jnp.zeros((), jnp.int32), seed, params, batch_stats, transform.init(params), extra)

    return init(jnp.asarray(seed, jnp.int32))
