"""Attribution maps as a table of entries, and the `attribution` section of a config.

The functions behind the entries are in `maps.py` (gradients and activations), `token_maps.py` (activations alone,
tokens and attention) and `path_maps.py` (gradients at several images).

Letters: B batch, H W image, h w feature map, C image channels, F feature channels, N heads, T tokens.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax

from gradmix_jax import fields
from gradmix_jax.fields import Key, Section, key
from gradmix_jax.method.maps import (
    NORMS,
    average,
    grad_cam,
    grad_cam_raw,
    input_gradient,
    layer_cam,
    layer_cam_raw,
    min_max,
    random_map,
    smooth,
    spectral_residual,
)
from gradmix_jax.method.path_maps import BASELINES, integrated_gradients, smoothgrad
from gradmix_jax.method.token_maps import attention_rollout, eigen_cam, token_map

__all__ = ["MAPS", "NORMS", "TRAINING", "Map", "Source", "Spec", "attention_rollout", "average", "eigen_cam"]
__all__ += ["grad_cam", "grad_cam_raw", "input_gradient", "integrated_gradients", "layer_cam", "layer_cam_raw", "make"]
__all__ += ["min_max", "random_map", "smooth", "smoothgrad", "spectral_residual", "token_map"]

TRAINING = "training"  # the attribution loss that is the sum of the phase


@dataclasses.dataclass(frozen=True)
class Spec(Section, section="attribution"):
    """How maps are made: the `attribution` section."""

    method: str = key("input", "kind of map; layer is LayerCAM", choices=lambda: MAPS)
    stages: tuple[str, ...] = key(("stage3", "stage4"), "tapped stages, for maps of activations")
    sign: int = key(1, "1: evidence that raises the loss; -1: evidence that lowers it")
    norm: str = key("image", 'min-max scaling per "image", or over the whole "batch"', choices=NORMS)
    smoothing: int = key(3, "odd averaging window of input maps, pixels; 1: none", least=1)
    loss: str = key(
        "simclr",
        'the loss to explain: the name of an objective, or "training" (the phase\'s weighted sum)',
    )
    every: int = key(
        1,
        "a fresh map at every N-th step, N being this number; random maps, which need no backward pass, in between",
        least=1,
    )
    options: dict[str, dict[str, Any]] = fields.options(lambda: MAPS, "maps")

    def check(self):
        if self.sign not in (1, -1):
            raise ValueError(f"attribution.sign must be 1 or -1, got {self.sign}.")
        if self.smoothing % 2 == 0:
            raise ValueError(f"attribution.smoothing must be an odd number of pixels, got {self.smoothing}.")
        if self.uses_stages and not self.stages:
            raise ValueError(f"attribution.method {self.method!r} needs at least one of attribution.stages, got none.")

    @property
    def uses_stages(self) -> bool:
        """Whether it uses the activations of `stages`."""
        return MAPS[self.method].taps == "stages" or self.needs("activations")

    @property
    def uses_input(self) -> bool:
        return MAPS[self.method].taps == "input"

    @property
    def uses_gradients(self) -> bool:
        """Whether there is anything to tap."""
        return MAPS[self.method].taps is not None

    @property
    def uses_loss(self) -> bool:
        """Whether it depends on `loss`."""
        return self.uses_gradients or self.needs("gradient")

    def needs(self, what: str) -> bool:
        """Whether the map needs "activations", "attention" or "gradient": see `Map`."""
        return what in MAPS[self.method].needs


@dataclasses.dataclass(frozen=True)
class Source:
    """The inputs of maps.

    Attributes:
      images_BxHxWxC: the views in [0, 1].
      activations: {stage: [B, h, w, F]} of the stages that the map uses.
      gradients: those of the attribution loss at the taps: {"images": [B, H, W, C]} or {stage: [B, h, w, F]}.
      keys_B: one key for each map.
      axis_name: the mapped axis over which the batch is spread, if any.
      attentions: [B, N, T, T] of each block, for a map that needs it.
      gradient: images [B, H, W, C] -> gradient of the attribution loss there, for a map that needs it; one forward and
        one backward pass.
      patch_size: side of the model's patches in pixels; 0 without patches.
      class_token: whether the model's features are those of the first token.
    """

    images_BxHxWxC: jax.Array
    activations: Mapping[str, jax.Array]
    gradients: Mapping[str, jax.Array]
    keys_B: jax.Array
    axis_name: str | None = None
    attentions: tuple[jax.Array, ...] = ()
    gradient: Callable[[jax.Array], jax.Array] | None = None
    patch_size: int = 0
    class_token: bool = False


@dataclasses.dataclass(frozen=True)
class Map:
    """An entry of MAPS: `function(source, spec)` returns map_BxHxW in [0, 1].

    Attributes:
      function: (Source, Spec) -> map_BxHxW.
      taps: where it needs the gradient of the clean pass: "input" (the images), "stages" (`attribution.stages`), None.
      needs: what else it needs from `Source`: "activations" of the stages without their gradients, "attention" of a
        transformer, "gradient" at other images.
      options: {option: Key}, config keys `attribution.options.NAME.OPTION`.
    """

    function: Callable[[Source, Spec], jax.Array]
    taps: str | None
    needs: tuple[str, ...] = ()
    options: Mapping[str, Key] = dataclasses.field(default_factory=dict)


def _of_stages(make_map, source: Source, spec: Spec) -> jax.Array:
    options = dict(
        image_size=source.images_BxHxWxC.shape[1:3], sign=spec.sign, norm=spec.norm, axis_name=source.axis_name
    )
    return average([make_map(source.activations[each], source.gradients[each], **options) for each in spec.stages])


def _of_input(times_input: bool, source: Source, spec: Spec) -> jax.Array:
    return input_gradient(
        source.gradients["images"],
        norm=spec.norm,
        images_BxHxWxC=source.images_BxHxWxC if times_input else None,
        smoothing=spec.smoothing,
        axis_name=source.axis_name,
    )


def _of_activations(source: Source, spec: Spec) -> jax.Array:
    common = dict(image_size=source.images_BxHxWxC.shape[1:3], norm=spec.norm, axis_name=source.axis_name)
    common |= spec.options["eigen_cam"]
    return average([eigen_cam(source.activations[each], **common) for each in spec.stages])


def _of_attention(source: Source, spec: Spec) -> jax.Array:
    return attention_rollout(
        source.attentions,
        image_size=source.images_BxHxWxC.shape[1:3],
        patch_size=source.patch_size,
        class_token=source.class_token,
        norm=spec.norm,
        axis_name=source.axis_name,
    )


def _of_paths(source: Source, spec: Spec) -> jax.Array:
    common = dict(smoothing=spec.smoothing, norm=spec.norm, axis_name=source.axis_name)
    return integrated_gradients(
        source.gradient, source.images_BxHxWxC, **spec.options["integrated_gradients"], **common
    )


def _of_noise(source: Source, spec: Spec) -> jax.Array:
    common = dict(smoothing=spec.smoothing, norm=spec.norm, axis_name=source.axis_name)
    return smoothgrad(source.keys_B, source.gradient, source.images_BxHxWxC, **spec.options["smoothgrad"], **common)


_ITERATIONS = Key(8, "iterations of the power method that finds the principal component", least=1)
_STEPS = Key(4, "images between baseline and image; each costs a forward and a backward pass", least=1)
_BASELINE = Key("zeros", 'where the path starts: black images, or each image\'s "mean" color', choices=BASELINES)
_SAMPLES = Key(4, "noisy images; each costs a forward and a backward pass", least=1)
_NOISE = Key(0.15, "standard deviation of the noise, images in [0, 1]", above=0)

MAPS = {
    "input": Map(partial(_of_input, False), taps="input"),
    "gradient_x_input": Map(partial(_of_input, True), taps="input"),
    "layer": Map(partial(_of_stages, layer_cam), taps="stages"),
    "grad_cam": Map(partial(_of_stages, grad_cam), taps="stages"),
    # For transformers: one value per token.
    "token": Map(partial(_of_stages, token_map), taps="stages"),
    "rollout": Map(_of_attention, taps=None, needs=("attention",)),
    "eigen_cam": Map(_of_activations, taps=None, needs=("activations",), options={"iterations": _ITERATIONS}),
    "integrated_gradients": Map(
        _of_paths, taps=None, needs=("gradient",), options={"steps": _STEPS, "baseline": _BASELINE}
    ),
    "smoothgrad": Map(_of_noise, taps=None, needs=("gradient",), options={"samples": _SAMPLES, "noise": _NOISE}),
    "random": Map(lambda source, spec: random_map(source.keys_B, image_size=source.images_BxHxWxC.shape[1:3]), None),
}


def make(source: Source, spec: Spec) -> jax.Array:
    """map_BxHxW as configured."""
    return MAPS[spec.method].function(source, spec)
