"""The train step: one XLA program from uint8 images to the updated state.

    choose batch -> views -> clean forward -> map -> mask -> mix -> mixed forward -> loss -> update

The clean forward pass runs once, under `jax.vjp` with respect to the parameters *and* the taps (the input images, or
zeros added at the chosen stages). Its pullback is called with the cotangent of the attribution loss for the taps,
and with the cotangent of the training loss for the parameters; XLA drops the unused half of each call.
Calling `jax.grad` a second time instead would run a second forward pass, which the compiler does not merge.
If the mixed loss does not depend on the clean outputs, and the attribution loss is the training loss of the clean
views, a single call serves both.

Letters: B rows of this device (views included), b images of this device, H W image, C image channels.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.experimental import layout

from gradmix_jax import augment, objectives
from gradmix_jax.data import order
from gradmix_jax.keys import key_of
from gradmix_jax.method import attribution, mix
from gradmix_jax.training import losses, phases
from gradmix_jax.training.forward import Clean, Outputs, apply_model, clean_forward, forward_views, projections
from gradmix_jax.training.micro_batches import in_micro_batches, place_in_micro_batch
from gradmix_jax.training.program import Context, Program
from gradmix_jax.training.state import TrainState


def step_key(state: TrainState, domain: str) -> jax.Array:
    """The key of the step `state.step` for the views, the map or the mix."""
    return key_of(state.seed, domain, state.step)


def choose_batch(program: Program, step, images, labels, order_N, device, devices) -> tuple[jax.Array, jax.Array]:
    """This device's images and labels: as given, or picked from the whole training set if an order is given."""
    if order_N is None:
        return images, labels
    size = program.batch_size // devices
    indices = order.batch_indices(order_N, step, batch_size=program.batch_size)
    mine = lax.dynamic_slice_in_dim(indices, device * size, size)
    return images[mine].reshape(size, *program.image_shape), labels[mine]


def views_of(program: Program, key, images_bxHxWxC, axis_name) -> jax.Array:
    """Augmented views in [0, 1] of this device's uint8 images, view-major."""
    device = 0 if axis_name is None else lax.axis_index(axis_name)
    keys_b = _keys(key, device, images_bxHxWxC.shape[0])
    return augment.views(keys_b, images_bxHxWxC, program.augment, num_views=program.num_views)


def _keys(key, device, images):
    """One key for each of this device's images, the same for any distribution of the batch over devices."""
    positions = device * images + jnp.arange(images)
    return jax.vmap(lambda position: jax.random.fold_in(key, position))(positions)


def context_of(
    program: Program, state: TrainState, views_BxHxWxC, labels_b, axis_name: str | None
) -> tuple[Context, dict[str, Any]]:
    """The context of the step `state.step`, and the next state's `extra` without the average."""
    carried, extra = {}, {}
    for name in program.carrying:
        update = objectives.Update(
            model={"params": state.params, "batch_stats": state.batch_stats},
            forward=lambda variables: projections(program, variables, views_BxHxWxC),
            step=state.step,
            views=program.num_views,
            axis_name=axis_name,
            spec=program.objective,
        )
        carried[name], new = objectives.OBJECTIVES[name].state.update(state.extra, update)
        extra |= new
    every = program.attribution.every
    context = Context(
        program=program,
        axis_name=axis_name,
        keys={domain: step_key(state, domain) for domain in ("map", "mix", "objective")},
        params=state.params,
        batch_stats=state.batch_stats,
        labels_b=labels_b,
        weights=phases.weights_at(program.phases, program.steps_per_epoch, state.step),
        carried=carried,
        fresh=None if every == 1 else state.step % every == 0,
        temperature_factor=program.temperature_factor(state.step),
    )
    return context, extra


def make_map(context: Context, images_BxHxWxC, clean: Clean, gradients, keys_B) -> jax.Array:
    """map_BxHxW of this device's views, from the gradients at the taps."""
    program = context.program

    def gradient_at(images_BxHxWxC):
        def loss(images_BxHxWxC):
            return losses.attribution_loss(context, forward_views(context, context.params, images_BxHxWxC)[0])

        return jax.grad(loss)(images_BxHxWxC)

    source = attribution.Source(
        images_BxHxWxC,
        clean.activations,
        gradients,
        keys_B,
        context.axis_name,
        attentions=clean.attentions,
        gradient=gradient_at if program.map_needs("gradient") else None,
        patch_size=program.patch_size,
        class_token=program.class_token,
    )
    return attribution.make(source, program.attribution)


class Mixed(NamedTuple):
    """maps_BxHxW (None if the method has none), mixed images, kept shares, partners, and extras (see `mix.Method`)."""

    maps: jax.Array | None
    images: jax.Array
    weight: jax.Array
    partner: jax.Array
    extra: dict[str, jax.Array]


def make_mixed(context: Context, images_BxHxWxC, clean: Clean, tap_gradients) -> Mixed:
    """Map -> mask -> mix for this device's views. Nothing here is differentiated."""
    program, maps = context.program, None
    if program.mix.uses_map:
        keys_B = _view_keys(context, context.keys["map"], images_BxHxWxC.shape[0])
        make = lambda: make_map(context, images_BxHxWxC, clean, tap_gradients, keys_B)
        random = lambda: attribution.random_map(keys_B, image_size=images_BxHxWxC.shape[1:3])
        if context.fresh is None:
            maps = make()
        elif program.map_needs("gradient"):
            # Skips the map's own passes; those of the clean pass are skipped where its gradients are pulled back.
            maps = lax.cond(context.fresh, make, random)
        else:
            maps = jnp.where(context.fresh, make(), random())
    return Mixed(maps, *mix_views(context, program.mix, images_BxHxWxC, maps))


def mix_views(context: Context, spec: mix.Spec, images_BxHxWxC, maps_BxHxW):
    """`mix.apply_in_full` on this device's share of the global batch."""
    device = 0 if context.axis_name is None else lax.axis_index(context.axis_name)
    views = context.program.num_views
    first_group = device * (images_BxHxWxC.shape[0] // views // spec.group_size)
    sizes = dict(views=views, first_group=first_group)
    return mix.apply_in_full(context.keys["mix"], images_BxHxWxC, maps_BxHxW, spec, **sizes)


def _view_keys(context, key, rows):
    """One key for every row of this device's views."""
    device = 0 if context.axis_name is None else lax.axis_index(context.axis_name)
    views = context.program.num_views
    keys_of_view = lambda view: _keys(jax.random.fold_in(key, view), device, rows // views)
    return jax.vmap(keys_of_view)(jnp.arange(views)).reshape(rows)


class CleanHalf(NamedTuple):
    """The first half of a step: everything before the mixed forward pass."""

    clean: Clean
    loss: jax.Array
    terms: dict[str, jax.Array]
    cotangent: Outputs
    gradient: Any | None
    mixed: Mixed | None


def clean_half(context: Context, images_BxHxWxC) -> CleanHalf:
    """Clean forward, clean loss, map, mask and mix. `gradient` is set if the map's backward pass computed it."""
    program = context.program
    clean = clean_forward(context, images_BxHxWxC)
    (loss, terms), cotangent = jax.value_and_grad(lambda outputs: losses.clean_loss(context, outputs), has_aux=True)(
        clean.outputs
    )
    gradient, mixed, tap_gradients = None, None, {}
    if program.shares_backward:
        gradient, tap_gradients = clean.pullback(cotangent)
    elif program.maps_gradients:
        target = losses.attribution_cotangent(context, clean.outputs, cotangent)
        pull = lambda: clean.pullback(target)[1]
        if context.fresh is None:
            tap_gradients = pull()
        else:
            nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(pull))
            tap_gradients = lax.cond(context.fresh, pull, lambda: nothing)
    if program.mixes:
        mixed = make_mixed(context, images_BxHxWxC, clean, tap_gradients)
    return CleanHalf(clean, loss, terms, cotangent, gradient, mixed)


def gradients(context: Context, images_BxHxWxC):
    """Gradient of the whole loss on this device's views, before it is averaged over devices.

    Args:
      context: the context of the step.
      images_BxHxWxC: clean views in [0, 1], view-major.

    Returns:
      The gradient, with the structure of params; new batch statistics (from the clean forward pass only); and a dict of
      scalar metrics.
    """
    clean, loss, terms, cotangent, gradient, mixed = clean_half(context, images_BxHxWxC)
    metrics = {"loss": loss, **terms}
    mixed_gradient = None
    if gradient is not None and mixed is not None:
        # The clean pass is no longer needed. Without the barrier, a GPU's scheduler starts the mixed pass before the
        # clean gradient is done, and holds the activations of both.
        images, gradient = lax.optimization_barrier((mixed.images, gradient))
        mixed = mixed._replace(images=images)
    if mixed is not None:

        def loss_of_mixed(params, outputs):
            return losses.mixed_loss(context, outputs, forward_mixed(context, params, mixed))

        wanted = (0, 1) if context.program.mixed_touches_clean else (0,)
        (extra, mixed_terms), (mixed_gradient, *rest) = jax.value_and_grad(loss_of_mixed, wanted, has_aux=True)(
            context.params, clean.outputs
        )
        if rest:
            cotangent = jax.tree.map(jnp.add, cotangent, rest[0])
        metrics |= {"loss": loss + extra, **mixed_terms, "kept_share": jnp.mean(mixed.weight)}
    if gradient is None:
        gradient = clean.pullback(cotangent)[0]
    if mixed_gradient is not None:
        gradient = jax.tree.map(jnp.add, gradient, mixed_gradient)
    return gradient, clean.batch_stats, metrics


def forward_mixed(context: Context, params, mixed: Mixed) -> objectives.Mixed:
    """The outputs of the mixed images for the losses, with activations mixed too if the method does so."""
    program, spec = context.program, context.program.mix
    views = 1 if spec.mixed_views == "first" else program.num_views

    def forward(rows):
        mixed, partner_B = rows
        blends = {stage: {"share": mixed.extra[stage], "partner": partner_B} for stage in spec.stages}
        options = dict(blends=blends, with_attention=spec.attends)
        z, out, _ = apply_model(program, params, context.batch_stats, mixed.images, **options)
        weight_B = mixed.weight
        if spec.attends:
            last = out["attentions"][-1]
            weight_B = mix.attended_share(last, mixed.extra["mask"], spec.patch_size, program.class_token)
        return z, out.get("logits"), weight_B, out.get("head")

    rows = mixed._replace(maps=None), place_in_micro_batch(program, mixed.partner, views=views)
    z, logits, weight_B, head = in_micro_batches(program, forward, rows, views=views)
    return objectives.Mixed(z, logits, weight_B, mixed.partner, head)


def _in_rows(tree):
    """The arrays in row-major layout, which parameters have.

    cuDNN returns transposed gradients of kernels. An optimizer that reads these cannot update in place: XLA would copy
    parameters and moments once more, with three launches per convolution (benchmarks/README.md).
    """
    return jax.tree.map(lambda leaf: layout.with_layout_constraint(leaf, layout.Layout(tuple(range(leaf.ndim)))), tree)


def make_train_step(program: Program, *, axis_name: str | None) -> Callable:
    """The step for one device: (state, images, labels, order_N) -> (state, metrics).

    It picks its batch from the whole training set, uint8 images_NxP and int32 labels_N, by `order.epoch_order` of its
    epoch. P = H W C, because a TPU stores a row of pixels contiguously, whereas with four dimensions it would make the
    images the innermost dimension and copy all of them at every step. Without an order, images_bxHxWxC and labels_b are
    this device's share of the batch.

    A `mapping` compiles it for all devices; `jax.jit` alone (axis name None), for one.
    """

    def train_step(state: TrainState, images, labels, order_N=None):
        device = 0 if axis_name is None else lax.axis_index(axis_name)
        devices = 1 if axis_name is None else lax.axis_size(axis_name)
        images_b, labels_b = choose_batch(program, state.step, images, labels, order_N, device, devices)
        views_BxHxWxC = views_of(program, step_key(state, "views"), images_b, axis_name)
        context, extra = context_of(program, state, views_BxHxWxC, labels_b, axis_name)
        gradient, batch_stats, metrics = gradients(context, views_BxHxWxC)
        if axis_name is not None:
            gradient, metrics = lax.pmean((gradient, metrics), axis_name)
        gradient = _in_rows(gradient)
        updates, opt_state = program.transform.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {"learning_rate": program.schedule(state.step), "gradient_norm": optax.tree.norm(gradient)}
        if program.average_decay:
            now = {"params": params, "batch_stats": batch_stats}
            extra["average"] = objectives.follow(state.extra["average"], now, program.average_decay)
        after = state.replace(params=params, batch_stats=batch_stats, opt_state=opt_state, extra=extra)
        if program.skips_nonfinite:
            # The same on all devices, because both numbers are.
            finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
            after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state)
        return after.replace(step=state.step + 1), metrics

    return train_step
