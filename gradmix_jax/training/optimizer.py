"""The optimizer and its learning-rate schedule."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import optax

from gradmix_jax.fields import Section, key
from gradmix_jax.models.parts import part_of
from gradmix_jax.training.phases import Phase


@dataclasses.dataclass(frozen=True)
class OptimizerSpec(Section, section="optimizer"):
    """The optimizer and its learning rate: the `optimizer` section."""

    name: str = key("adam", "adam (AdamW with weight_decay), sgd (Nesterov), lars", choices=lambda: OPTIMIZERS)
    learning_rate: float = key(1e-3, "learning rate at the peak", above=0)
    warmup_epochs: float = key(0.0, "epochs of linear warm-up, within the first phase that has epochs", least=0)
    final_fraction: float = key(
        0.512, "share of learning_rate that a cosine reaches at the end of each phase", least=0, most=1
    )
    per_epoch: bool = key(True, "after the warm-up, change the rate only at the start of an epoch")
    weight_decay: float = key(0.0, "weight decay, which spares norms and biases", least=0)
    momentum: float = key(0.9, "momentum of sgd and lars", least=0)
    ema: float = key(
        0.0, "decay of a moving average of the weights, which is evaluated in their place; 0: none", least=0, below=1
    )


def learning_rate_schedule(spec: OptimizerSpec, phases: tuple[Phase, ...], steps_per_epoch: int) -> optax.Schedule:
    """Every phase: linear warm-up (only the first that has epochs), a cosine from the peak to `final_fraction` of it.

    A warm-up as long as its phase, or longer, ends one step before it.
    With `per_epoch`, the rate changes only at the start of an epoch, as in the published runs. The warm-up starts at 0
    and still changes it at every step; otherwise the whole first epoch would be at rate 0.
    """
    first = next((index for index, phase in enumerate(phases) if phase.epochs), 0)
    first_phase = max(phases[first].epochs * steps_per_epoch, 1)
    warmup_steps = min(round(spec.warmup_epochs * steps_per_epoch), first_phase - 1)
    schedules, boundaries, end = [], [], 0
    for index, phase in enumerate(phases):
        steps = max(phase.epochs * steps_per_epoch, 1)
        warmup = warmup_steps if index == first else 0
        # optax counts the warm-up into decay_steps.
        schedules.append(
            optax.warmup_cosine_decay_schedule(
                0.0 if warmup else spec.learning_rate,
                spec.learning_rate,
                warmup,
                steps,
                end_value=spec.learning_rate * spec.final_fraction,
            )
        )
        end += phase.epochs * steps_per_epoch
        boundaries.append(end)
    joined = optax.join_schedules(schedules, boundaries[:-1])
    if not spec.per_epoch:
        return joined
    # The rest of the epoch in which the warm-up ends stays at the peak.
    sampled = lambda count: jnp.maximum(count // steps_per_epoch * steps_per_epoch, warmup_steps)
    return lambda count: joined(jnp.where(count < warmup_steps, count, sampled(count)))


def _matrices_only(params):
    # By name too, because biases of attention have an axis for the heads.
    return jax.tree.map_with_path(lambda path, leaf: leaf.ndim > 1 and path[-1].key != "bias", params)


def _adam(spec, schedule):
    # Weight decay, if any, spares norms and biases and is decoupled (AdamW).
    if spec.weight_decay:
        return optax.adamw(schedule, weight_decay=spec.weight_decay, mask=_matrices_only)
    return optax.adam(schedule)


def _sgd(spec, schedule):
    decay = optax.add_decayed_weights(spec.weight_decay, mask=_matrices_only)
    return optax.chain(decay, optax.sgd(schedule, momentum=spec.momentum or None, nesterov=bool(spec.momentum)))


def _lars(spec, schedule):
    return optax.lars(
        schedule,
        weight_decay=spec.weight_decay,
        weight_decay_mask=_matrices_only,
        trust_ratio_mask=_matrices_only,
        momentum=spec.momentum,
    )


OPTIMIZERS = {"adam": _adam, "sgd": _sgd, "lars": _lars}


def optimizer(
    spec: OptimizerSpec, schedule: optax.Schedule, *, frozen: tuple[str, ...] = (), encoder_factor: float = 1.0
) -> optax.GradientTransformation:
    """Gradients to updates, by `spec.name`, with the learning rate of `schedule` at each step.

    Args:
      spec: the `optimizer` section.
      schedule: the learning rate at a step.
      frozen: parts of the network (see `models.parts`) that are not updated and take no optimizer state.
      encoder_factor: factor of the encoder's learning rate.
    """
    transform = OPTIMIZERS[spec.name](spec, schedule)
    if encoder_factor != 1:
        transform = optax.chain(transform, optax.stateless(partial(_scale_encoder, encoder_factor)))
    if frozen:
        labels = partial(_labels, frozen)
        transform = optax.partition({"trained": transform, "frozen": optax.set_to_zero()}, labels)
    return transform


def _scale_encoder(factor, updates, params):
    # Every optimizer here is linear in its learning rate.
    scaled = lambda path, leaf: leaf * factor if path[0].key == "encoder" else leaf
    return jax.tree.map_with_path(scaled, updates)


def _labels(frozen, params):
    names = lambda path: tuple(part.key for part in path)
    return jax.tree.map_with_path(lambda path, _: "frozen" if part_of(names(path)) in frozen else "trained", params)
