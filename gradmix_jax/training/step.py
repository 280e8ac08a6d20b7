"""The train step: one XLA program from uint8 images to the updated state.

    choose batch -> views -> clean forward -> map -> mask -> mix -> mixed forward -> loss -> update

The clean forward is run once, under `jax.vjp` with respect to the parameters *and* the probes (the input images, or
zeros added at the chosen stages). Its pullback is called with the cotangent of the attribution loss for the probes,
and with the cotangent of the training loss for the parameters; XLA drops the half of each call that nobody asked for.
Asking `jax.grad` a second time instead would run a second forward pass, which the compiler does not merge.
Where the mixed loss leaves the clean outputs alone, and the attribution loss is the training loss of the clean views,
a single call serves both.

Letters: B rows of this device (views included), b images of this device, H W image, C image channels.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.experimental import layout

from gradmix_jax import augment
from gradmix_jax.data import order
from gradmix_jax.method import attribution, mix
from gradmix_jax.objectives import self_supervised
from gradmix_jax.training import losses
from gradmix_jax.training import state as state_lib
from gradmix_jax.training.program import Clean, Outputs, Program, apply_model, clean_forward


def maps_from(program: Program, images_BxHxWxC, activations, probe_gradients, keys_B, axis_name) -> jax.Array:
    """Turn the gradients at the probe into map_BxHxW."""
    spec, image_size = program.attribution, images_BxHxWxC.shape[1:3]
    if spec.uses_input:
        images = images_BxHxWxC if spec.method == "gradient_x_input" else None
        return attribution.input_gradient(
            probe_gradients["images"],
            norm=spec.norm,
            images_BxHxWxC=images,
            smoothing=spec.smoothing,
            axis_name=axis_name,
        )
    if spec.method == "random":
        return attribution.random_map(keys_B, image_size=image_size)
    make_map = {"layer": attribution.layer_cam, "grad_cam": attribution.grad_cam}[spec.method]
    options = dict(image_size=image_size, sign=spec.sign, norm=spec.norm, axis_name=axis_name)
    return attribution.average(
        [make_map(activations[stage], probe_gradients[stage], **options) for stage in spec.stages]
    )


def _keys(key, device, images):
    """One key for each of this device's images, the same however the batch is spread."""
    positions = device * images + jnp.arange(images)
    return jax.vmap(lambda position: jax.random.fold_in(key, position))(positions)


class Mixed(NamedTuple):
    """maps_BxHxW (None where the method has none), mixed images, kept shares and partners."""

    maps: jax.Array | None
    images: jax.Array
    weight: jax.Array
    partner: jax.Array


def make_mixed(program: Program, key, images_BxHxWxC, clean: Clean, probe_gradients, axis_name, fresh=None) -> Mixed:
    """Map -> mask -> mix for this device's views. Nothing here is differentiated.

    Where `fresh` (a traced bool) is False, random maps take the place of those of the gradients.
    """
    maps = None
    if program.mix.uses_map:
        keys_B = _view_keys(program, jax.random.fold_in(key, 1), images_BxHxWxC.shape[0], axis_name)
        maps = maps_from(program, images_BxHxWxC, clean.activations, probe_gradients, keys_B, axis_name)
        if fresh is not None:
            random = attribution.random_map(keys_B, image_size=images_BxHxWxC.shape[1:3])
            maps = jnp.where(fresh, maps, random)
    mixed, weight, partner = mix_views(program, program.mix, key, images_BxHxWxC, maps, axis_name)
    return Mixed(maps, mixed, weight, partner)


def mix_views(program, spec: mix.Spec, key, images_BxHxWxC, maps_BxHxW, axis_name):
    """`mix.apply` on this device's share of the global batch."""
    device = 0 if axis_name is None else lax.axis_index(axis_name)
    first_group = device * (images_BxHxWxC.shape[0] // program.num_views // spec.group_size)
    views = program.num_views
    return mix.apply(jax.random.fold_in(key, 0), images_BxHxWxC, maps_BxHxW, spec, views=views, first_group=first_group)


def _view_keys(program, key, rows, axis_name):
    """One key for every row of this device's views."""
    device = 0 if axis_name is None else lax.axis_index(axis_name)
    keys_of_view = lambda view: _keys(jax.random.fold_in(key, view), device, rows // program.num_views)
    return jax.vmap(keys_of_view)(jnp.arange(program.num_views)).reshape(rows)


def step_keys(state: state_lib.TrainState) -> tuple[jax.Array, jax.Array]:
    """All randomness of a step, a function of (seed, step): (key of the views, key of map and mix)."""
    return tuple(jax.random.split(jax.random.fold_in(jax.random.key(state.seed), state.step)))


def choose_batch(program: Program, step, images, labels, order_N, device, devices) -> tuple[jax.Array, jax.Array]:
    """This device's images and labels: as given, or picked from the whole training set where there is an order."""
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


class CleanHalf(NamedTuple):
    """The first half of a step: everything before the mixed forward pass."""

    clean: Clean
    loss: jax.Array
    terms: dict[str, jax.Array]
    cotangent: Outputs
    gradient: Any | None
    mixed: Mixed | None


def clean_half(
    program: Program, key, params, batch_stats, images_BxHxWxC, labels_b, weights, axis_name, momentum=None, fresh=None
) -> CleanHalf:
    """Clean forward, clean loss, map, mask and mix. `gradient` is there where the map's backward pass gave it."""
    clean = clean_forward(program, params, batch_stats, images_BxHxWxC, axis_name)
    (loss, terms), cotangent = jax.value_and_grad(
        lambda outputs: losses.clean_loss(program, outputs, labels_b, weights, axis_name, momentum), has_aux=True
    )(clean.outputs)
    gradient, mixed, probe_gradients = None, None, {}
    if program.shares_backward:
        gradient, probe_gradients = clean.pullback(cotangent)
    elif program.maps_gradients:
        target = losses.attribution_cotangent(program, clean.outputs, labels_b, cotangent, axis_name, momentum)
        pull = lambda: clean.pullback(target)[1]
        if fresh is None:
            probe_gradients = pull()
        else:
            nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(pull))
            probe_gradients = lax.cond(fresh, pull, lambda: nothing)
    if program.mixes:
        mixed = make_mixed(program, key, images_BxHxWxC, clean, probe_gradients, axis_name, fresh)
    return CleanHalf(clean, loss, terms, cotangent, gradient, mixed)


def gradients(
    program: Program, key, params, batch_stats, images_BxHxWxC, labels_b, weights, axis_name, momentum=None, fresh=None
):
    """Gradient of the whole loss on this device's views, before it is averaged over devices.

    Args:
      program: the static part of the step.
      key: randomness of map and mix.
      params: parameters.
      batch_stats: running statistics, not used in train mode but updated.
      images_BxHxWxC: clean views in [0, 1], view-major.
      labels_b: classes of the images.
      weights: of the objectives in this phase.
      axis_name: the mapped axis, if any.
      momentum: what MoCo compares the views with, None without it.
      fresh: whether this step makes maps of its own (traced), or None: it does.

    Returns:
      gradient like params, new batch statistics (from the clean forward only), and a dict of scalar metrics.
    """
    clean, loss, terms, cotangent, gradient, mixed = clean_half(
        program, key, params, batch_stats, images_BxHxWxC, labels_b, weights, axis_name, momentum, fresh
    )
    metrics = {"loss": loss, **terms}
    mixed_gradient = None
    if gradient is not None and mixed is not None:
        # Nothing of the clean pass is needed any more. Left alone, a GPU's scheduler starts the mixed pass before the
        # clean gradient is done, and holds the activations of both.
        images, gradient = lax.optimization_barrier((mixed.images, gradient))
        mixed = mixed._replace(images=images)
    if mixed is not None:

        def loss_of_mixed(params, outputs):
            z, out, _ = apply_model(program, params, batch_stats, mixed.images)
            mixed_outputs = (z, out.get("logits"))
            return losses.mixed_loss(program, outputs, mixed_outputs, labels_b, mixed, weights, axis_name, momentum)

        wanted = (0, 1) if program.mixed_touches_clean else (0,)
        (extra, mixed_terms), (mixed_gradient, *rest) = jax.value_and_grad(loss_of_mixed, wanted, has_aux=True)(
            params, clean.outputs
        )
        if rest:
            cotangent = jax.tree.map(jnp.add, cotangent, rest[0])
        metrics |= {"loss": loss + extra, **mixed_terms, "kept_share": jnp.mean(mixed.weight)}
    if gradient is None:
        gradient = clean.pullback(cotangent)[0]
    if mixed_gradient is not None:
        gradient = jax.tree.map(jnp.add, gradient, mixed_gradient)
    return gradient, clean.batch_stats, metrics


def momentum_half(program: Program, state: state_lib.TrainState, views_BxHxWxC, axis_name):
    """MoCo's key encoder: moved towards the model, then asked for the keys of the clean views.

    Returns:
      (self_supervised.Momentum or None, the next state's `extra` but for the average).
    """
    if not program.uses_momentum:
        return None, {}
    online = {"params": state.params, "batch_stats": state.batch_stats}
    encoder = self_supervised.follow(state.extra["momentum"], online, program.objective.momentum)
    # Train mode, as the model: the statistics of the batch, over all devices.
    keys, _, _ = apply_model(program, encoder["params"], encoder["batch_stats"], views_BxHxWxC)
    queue = state.extra["queue"]
    options = dict(views=program.num_views, axis_name=axis_name)
    extra = {"momentum": encoder, "queue": self_supervised.enqueue(queue, keys, state.step, **options)}
    return self_supervised.Momentum(keys, queue), extra


def makes_maps(program: Program, step) -> jax.Array | None:
    """Whether this step makes maps of gradients (traced), and not random ones; None: every step does."""
    return None if program.attribution.every == 1 else step % program.attribution.every == 0


class Explanation(NamedTuple):
    """views_BxHxWxC, their Mixed, and mask_BxHxW (bool; all False for mixup, which has none)."""

    views: jax.Array
    mixed: Mixed
    mask: jax.Array


def explain(program: Program, state: state_lib.TrainState, images_bxHxWxC, labels_b) -> Explanation:
    """What the step `state.step` would do to a batch of uint8 images, on one device. Trains nothing."""
    view_key, mix_key = step_keys(state)
    views_BxHxWxC = views_of(program, view_key, images_bxHxWxC, None)
    weights = state_lib.phase_weights(program.phases, program.steps_per_epoch, state.step)
    momentum, _ = momentum_half(program, state, views_BxHxWxC, None)
    given = views_BxHxWxC, labels_b, weights, None, momentum, makes_maps(program, state.step)
    half = clean_half(program, mix_key, state.params, state.batch_stats, *given)
    mixed = half.mixed
    mask_BxHxW = jnp.zeros(mixed.images.shape[:3], bool)
    if program.mix.method != "mixup":
        # The masks, seen by filling them with noise under the same key: it meets no pixel's value.
        noisy = dataclasses.replace(program.mix, fill="noise")
        filled = mix_views(program, noisy, mix_key, views_BxHxWxC, mixed.maps, None)[0]
        mask_BxHxW = jnp.any(filled != views_BxHxWxC[: len(filled)], axis=-1)
    return Explanation(views_BxHxWxC, mixed, mask_BxHxW)


def _in_rows(tree):
    """The arrays in row-major memory, as parameters are.

    cuDNN gives gradients of kernels transposed. An optimiser that reads them so cannot update in place: XLA copies
    parameters and moments once more, three launches for every convolution (benchmarks/README.md).
    """
    return jax.tree.map(lambda leaf: layout.with_layout_constraint(leaf, layout.Layout(tuple(range(leaf.ndim)))), tree)


def make_train_step(program: Program, *, axis_name: str | None) -> Callable:
    """The step for one device: (state, images, labels, order_N) -> (state, metrics).

    It picks its batch from the whole training set, uint8 images_NxP and int32 labels_N, by `order.epoch_order` of its
    epoch; P = H W C, because a TPU keeps a row of pixels in one place, but of four dimensions it would make the images
    the innermost one, and copy all of them in every step. Without an order images_bxHxWxC and labels_b are this
    device's share of the batch.

    A `mapping` compiles it for all devices; `jax.jit` alone (axis name None), for one.
    """

    def train_step(state: state_lib.TrainState, images, labels, order_N=None):
        device = 0 if axis_name is None else lax.axis_index(axis_name)
        devices = 1 if axis_name is None else lax.axis_size(axis_name)
        view_key, mix_key = step_keys(state)
        images_b, labels_b = choose_batch(program, state.step, images, labels, order_N, device, devices)
        views_BxHxWxC = views_of(program, view_key, images_b, axis_name)
        weights = state_lib.phase_weights(program.phases, program.steps_per_epoch, state.step)
        momentum, extra = momentum_half(program, state, views_BxHxWxC, axis_name)
        given = views_BxHxWxC, labels_b, weights, axis_name, momentum, makes_maps(program, state.step)
        gradient, batch_stats, metrics = gradients(program, mix_key, state.params, state.batch_stats, *given)
        if axis_name is not None:
            gradient, metrics = lax.pmean((gradient, metrics), axis_name)
        gradient = _in_rows(gradient)
        updates, opt_state = program.transform.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {"learning_rate": program.schedule(state.step), "gradient_norm": optax.tree.norm(gradient)}
        if program.average_decay:
            now = {"params": params, "batch_stats": batch_stats}
            extra["average"] = self_supervised.follow(state.extra["average"], now, program.average_decay)
        state = state.replace(params=params, batch_stats=batch_stats, opt_state=opt_state, extra=extra)
        return state.replace(step=state.step + 1), metrics

    return train_step
