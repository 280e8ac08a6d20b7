"""GradMix in any training loop: maps, mixed images and the shared clean forward pass of any model.

    def step(params, opt_state, key, images, labels):            # jitted by the caller
        mixing = explain_and_mix(key, forward, params, images, loss=lambda logits: loss_of(logits, labels))
        loss, gradient = mixing.value_and_grad_shared(lambda logits: loss_of_mixed(logits, mixing.weight, ...))

`forward(params, images) -> outputs` is a Linen `apply`, a merged NNX module or a plain function. The clean forward pass
runs once, under one `jax.vjp` with respect to the parameters and the inputs of the map, as in `training.step`.

Letters: B batch (views included), H W image, C image channels, h w feature map, F feature channels.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from gradmix_jax.fields import check_choice
from gradmix_jax.method import attribution, masks, mix
from gradmix_jax.method.checks import check_images

IMAGES = "images"  # among the taps: the images themselves


def no_tap(name: str, activations_BxhxwxF: jax.Array) -> jax.Array:
    """Returns the activations unchanged: the default of a model's `tap` argument."""
    del name
    return activations_BxhxwxF


@dataclasses.dataclass(frozen=True)
class Mixing:
    """The result of `explain_and_mix`, for use inside the same jitted function.

    Attributes:
      outputs: outputs of the clean forward pass.
      aux: the second result of `forward` in the clean pass, with `has_aux`; else None.
      loss: value of the loss that the map explains, a scalar.
      gradient: its gradient with respect to `params`. Costs nothing under `jax.jit` if it is not used.
      maps: map_BxHxW in [0, 1]; None for a method without maps.
      images: mixed images, shape and dtype of the images.
      weight: weight_B, the kept share of each image.
      partner: partner_B, int32: the row that the rest comes from; the row itself if the fill has no partner.
      pullback: cotangent of `outputs` -> (gradient like `params`, gradients at the taps).
      params: the given parameters.
      forward: (params, images) -> outputs.
    """

    outputs: Any
    aux: Any
    loss: jax.Array
    gradient: Any
    maps: jax.Array | None
    images: jax.Array
    weight: jax.Array
    partner: jax.Array
    pullback: Callable[[Any], tuple[Any, Any]]
    params: Any
    forward: Callable[[Any, jax.Array], Any]

    def value_and_grad(self, loss: Callable[[Any, Any], Any], *, has_aux: bool = False) -> tuple[Any, Any]:
        """Value and gradient of a loss of clean and mixed outputs, with one more forward and two backward passes.

        Args:
          loss: (clean outputs, mixed outputs) -> scalar, or (scalar, aux) with `has_aux`.
          has_aux: see `loss`.

        Returns:
          (value, gradient like `params`), as `jax.value_and_grad`; the value is (scalar, aux) with `has_aux`.
        """

        def whole(params, outputs):
            return loss(outputs, self.forward(params, self.images))

        value, (of_mixed, cotangent) = jax.value_and_grad(whole, (0, 1), has_aux=has_aux)(self.params, self.outputs)
        return value, jax.tree.map(jnp.add, of_mixed, self.pullback(cotangent)[0])

    def value_and_grad_shared(self, loss: Callable[[Any], Any], *, has_aux: bool = False) -> tuple[Any, Any]:
        """Value and gradient of the map's own loss plus a loss of the mixed outputs, with one backward pass fewer.

        One backward pass serves map and training, so the map is free.

        Args:
          loss: mixed outputs -> scalar, or (scalar, aux) with `has_aux`.
          has_aux: see `loss`.

        Returns:
          As `value_and_grad`, for `self.loss` plus the scalar.
        """
        # As in the train step: otherwise a GPU's scheduler starts the mixed pass before the clean gradient is done and
        # holds the activations of both.
        images, gradient = lax.optimization_barrier((self.images, self.gradient))
        of_mixed = lambda params: loss(self.forward(params, images))
        value, more = jax.value_and_grad(of_mixed, has_aux=has_aux)(self.params)
        value = (self.loss + value[0], value[1]) if has_aux else self.loss + value
        return value, jax.tree.map(jnp.add, gradient, more)


def explain_and_mix(
    key: jax.Array,
    forward: Callable[..., Any],
    params: Any,
    images_BxHxWxC: jax.Array,
    *,
    loss: Callable[[Any], jax.Array],
    map: str = "input",
    stages: tuple[str, ...] = (),
    sign: int = 1,
    norm: str = "image",
    smoothing: int = 3,
    map_options: Mapping[str, Any] | None = None,
    method: str = "gradmix",
    mask: str = "threshold",
    fill: str = "partner",
    keep_range: tuple[float, float] = (0.5, 0.9),
    border: int = 0,
    patch_size: int = 0,
    method_options: Mapping[str, Any] | None = None,
    views: int = 1,
    group_size: int = 0,
    has_aux: bool = False,
    axis_name: str | None = None,
) -> Mixing:
    """Run the clean forward pass, make the attribution map of a loss of its outputs, and mix the images by the map.

    Source: Xu, Kao, Keuper 2025, "Informed Mixing", arXiv 2505.12803, section 3.

    Args:
      key: randomness of map and mix; use a new one at every step.
      forward: (params, images) -> outputs, any tree of float arrays; (outputs, aux) with `has_aux`. For a map of
        activations it takes a third argument, `tap`: it calls `x = tap("stage1", x)` with the activations [B, h, w, F]
        of each stage and continues with the result. It is called again for the mixed images, with `no_tap`. It
        normalizes the images itself.
      params: any tree of float arrays, to differentiate by.
      images_BxHxWxC: float in [0, 1], not normalized; B = views * images, view-major.
      loss: outputs -> scalar, the loss that the map explains.
      map: "input", "gradient_x_input" (no taps), "layer", "grad_cam", "token", "eigen_cam" (with taps),
        "integrated_gradients", "smoothgrad" (more passes), or "random" (the control).
      stages: names of the taps for a map of activations; all of them by default.
      sign: 1 for evidence that raises the loss, -1 for evidence that lowers it; maps of activations only.
      norm: "image" or "batch", see `maps.min_max`.
      smoothing: odd averaging window in pixels of maps of the input.
      map_options: options of `integrated_gradients`, `smoothgrad` and `eigen_cam`, see `attribution.MAPS`.
      method: a name of `mix.METHODS`, except those that mix or weigh by activations.
      mask, fill, keep_range, border, patch_size: as in `mix.gradmix`, for the methods that take them.
      method_options: options of the method, see `mix.METHODS`.
      views: number of views V in B.
      group_size: partners are drawn within groups of this many images; 0: among all of them.
      has_aux: whether `forward` returns (outputs, aux), such as new batch statistics.
      axis_name: the mapped axis over which the batch is spread, if any. The key is the same on all devices.

    Returns:
      `Mixing`.

    Raises:
      ValueError: images that are not float in [0, 1] (of traced ones, type and shape are checked), an unknown choice,
        a map of activations without a tap, or a batch that does not fit views and groups.
    """
    check_images(images_BxHxWxC)
    images_of_view = _images_of_view(len(images_BxHxWxC), views)
    map_spec = _map_spec(map, stages, sign=sign, norm=norm, smoothing=smoothing, options=map_options)
    check_choice("method", method, _METHODS)
    check_choice("mask", mask, masks.MASKS)
    check_choice("fill", fill, mix.FILLS)
    options = {} if method_options is None else {method: dict(method_options)}
    same = dict(method=method, mask=mask, fill=fill, keep_range=keep_range, border=border, patch_size=patch_size)
    mix_spec = mix.Spec(**same, group_size=group_size or images_of_view, options=options)
    map_key, mix_key = jax.random.split(key)

    model = _Model(forward, has_aux)
    if map_spec.uses_stages:
        shapes = _tap_shapes(forward, params, images_BxHxWxC, stages)
        model, map_spec = model._replace(shapes=shapes), dataclasses.replace(map_spec, stages=tuple(shapes))
    taps = {IMAGES: images_BxHxWxC} if map_spec.uses_input else model.zeros()
    clean = lambda params, taps: model.clean(params, images_BxHxWxC, taps)
    outputs, pullback, (aux, activations) = jax.vjp(clean, params, taps, has_aux=True)
    value, cotangent = jax.value_and_grad(loss)(outputs)
    gradient, tap_gradients = pullback(cotangent)

    device = 0 if axis_name is None else lax.axis_index(axis_name)
    maps_BxHxW = None
    if mix_spec.uses_map:
        keys_B = jax.random.split(jax.random.fold_in(map_key, device), len(images_BxHxWxC))
        gradient_at = jax.grad(lambda images: loss(model(params, images)))
        given = images_BxHxWxC, activations, tap_gradients, keys_B, axis_name
        maps_BxHxW = attribution.make(attribution.Source(*given, gradient=gradient_at), map_spec)
    first_group = device * (images_of_view // mix_spec.group_size)
    mixed = mix.apply(mix_key, images_BxHxWxC, maps_BxHxW, mix_spec, views=views, first_group=first_group)
    return Mixing(outputs, aux, value, gradient, maps_BxHxW, *mixed, pullback, params, model)


class _Model(NamedTuple):
    """A caller's forward pass; `shapes` are those of the taps that the map uses, None for a map without taps."""

    forward: Callable[..., Any]
    has_aux: bool
    shapes: dict[str, jax.ShapeDtypeStruct] | None = None

    def __call__(self, params, images):
        """Outputs alone, without taps."""
        result = self._run(params, images, no_tap)
        return result[0] if self.has_aux else result

    def zeros(self) -> dict[str, jax.Array]:
        """The zeros added at the taps."""
        return {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in (self.shapes or {}).items()}

    def clean(self, params, images, taps):
        """(outputs, (aux, {tap: activations})) with the arrays of `taps` added, or in place of the images."""
        activations = {}

        def tap(name, x):
            if name not in taps:
                return x
            activations[name] = x + taps[name]
            return activations[name]

        images = taps[IMAGES] if self.shapes is None and IMAGES in taps else images
        result = self._run(params, images, tap)
        outputs, aux = result if self.has_aux else (result, None)
        return outputs, (aux, activations)

    def _run(self, params, images, tap):
        return self.forward(params, images) if self.shapes is None else self.forward(params, images, tap)


# The entries for any model: nothing that needs a transformer's attention or mixes activations.
_MAPS = tuple(name for name, entry in attribution.MAPS.items() if "attention" not in entry.needs)
_METHODS = tuple(
    name for name, each in mix.METHODS.items() if each.function and not (each.attends or each.mixes_stages)
)


def _images_of_view(batch: int, views: int) -> int:
    if views < 1 or batch % views or batch // views < 2:
        raise ValueError(f"images must be 2 or more for each of views={views}, view-major, got {batch} rows.")
    return batch // views


def _map_spec(name: str, stages: tuple[str, ...], *, options: Mapping[str, Any] | None, **rest) -> attribution.Spec:
    check_choice("map", name, _MAPS)
    spec = attribution.Spec(method=name, options={} if options is None else {name: dict(options)}, **rest)
    if stages and not spec.uses_stages:
        raise ValueError(f"map {name!r} looks at no stages, got {stages}; leave them out.")
    return spec


def _tap_shapes(forward, params, images_BxHxWxC, stages) -> dict[str, jax.ShapeDtypeStruct]:
    """{name: shape} of the taps that the map uses, in the order in which the model calls them."""
    found: dict[str, jax.ShapeDtypeStruct] = {}

    def tap(name, x):
        if x.ndim != 4:
            raise ValueError(f"tap({name!r}, x) must be given activations [B, h, w, F], got the shape {x.shape}.")
        if name in found:
            raise ValueError(f"tap names must differ, got {name!r} twice; name each stage once.")
        found[name] = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return x

    jax.eval_shape(lambda params, images: forward(params, images, tap), params, images_BxHxWxC)
    if not found:
        raise ValueError('a map of activations needs taps, got none; call x = tap("stage1", x) inside the model.')
    for name in stages:
        check_choice("each of stages", name, found)
    return {name: shape for name, shape in found.items() if not stages or name in stages}
