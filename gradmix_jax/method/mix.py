"""Mixing: each image loses a region and gets another image's pixels in its place (or a blend, for mixup).

All methods return `(mixed, weight_B, partner_B)`, where `weight_B` is the kept share of the image and `partner_B` the
index of the image that the rest came from (its own index if the fill has no partner or the image keeps its label, so
that area-weighted labels are right without a special case). Images are float in
[0, 1], not normalized.

With V views the B rows are view-major (all of view 0, then all of view 1), and the partner of view v of image i is
view V-1-v of image pi(i), with pi a random permutation without fixed points.

The methods are in `boxes.py` (CutMix and others that need no map), `guided.py` and `puzzle.py` (GradMix and
others that do), `tokens.py` (for transformers) and `blends.py` (mixup).

Letters: B batch (views included), H W image, C image channels, G groups, g images of a group.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gradmix_jax import fields
from gradmix_jax.fields import Key, Section, key
from gradmix_jax.method import masks
from gradmix_jax.method.blends import INPUT, check_stages, manifold_mixup, mixup
from gradmix_jax.method.boxes import cutmix, fmix, resizemix, saliencymix
from gradmix_jax.method.draws import draw_keep, partners
from gradmix_jax.method.fills import FILLS
from gradmix_jax.method.guided import attentive_cutmix, backmix, gradmix, keep_cutout
from gradmix_jax.method.puzzle import puzzlemix
from gradmix_jax.method.tokens import attended_share, tokenmix, transmix

__all__ = ["FILLS", "INPUT", "METHODS", "Method", "Spec", "apply", "apply_in_full", "attended_share"]
__all__ += ["attentive_cutmix", "backmix", "cutmix", "draw_keep", "fmix", "gradmix", "keep_cutout", "manifold_mixup"]
__all__ += ["mixup", "partners", "puzzlemix", "resizemix", "saliencymix", "tokenmix", "transmix"]

KEEP_DRAWS = ("image", "batch")
MIXED_VIEWS = ("all", "first")


@dataclasses.dataclass(frozen=True)
class Spec(Section, section="mix"):
    """How images are mixed: the `mix` section."""

    method: str = key("gradmix", "mixing method", choices=lambda: METHODS)
    mask: str = key("threshold", "shape of the mask", choices=lambda: masks.MASKS)
    fill: str = key("partner", "what fills the masked part", choices=lambda: FILLS)
    border: int = key(0, "pixels over which a mask fades on each side of its border; 0: sharp", least=0)
    patch_size: int = key(0, "side in pixels of the patches of aligned masks; 0: that of the model's patches", least=0)
    keep_range: tuple[float, float] = key(
        (0.5, 0.9), "share of pixels kept, drawn uniformly", least=0, most=1, length=2
    )
    keep_draw: str = key("image", 'one draw per "image", or per "batch"', choices=KEEP_DRAWS)
    mixed_views: str = key("all", 'mix "all" views, or the "first" only', choices=MIXED_VIEWS)
    group_size: int = key(16, "partners are drawn within groups of this many images; divides a device's batch", least=2)
    options: dict[str, dict[str, Any]] = fields.options(lambda: METHODS, "mixing methods")

    def check(self):
        low, high = self.keep_range
        if low > high:
            raise ValueError(f"mix.keep_range must be (low, high) with low <= high, got {self.keep_range}.")
        if self.mixed_views == "first" and METHODS[self.method].mixes_stages:
            raise ValueError(f"mix.mixed_views must be 'all' with mix.method {self.method!r}, got 'first'.")
        if METHODS[self.method].mixes_stages:
            check_stages(f"mix.options.{self.method}.stages", self.options[self.method]["stages"])
        for name, entry in METHODS.items():
            given = self.options.get(name, {})
            for option, (low, high) in ((each, given[each]) for each in entry.ranges):
                if low > high:
                    raise ValueError(
                        f"mix.options.{name}.{option} must be (low, high) with low <= high, got {given[option]}."
                    )

    @property
    def mixes(self) -> bool:
        return METHODS[self.method].function is not None

    @property
    def uses_map(self) -> bool:
        return METHODS[self.method].needs_map

    @property
    def has_mask(self) -> bool:
        return METHODS[self.method].has_mask

    @property
    def attends(self) -> bool:
        """Whether labels are weighted by the attention of the mixed images."""
        return METHODS[self.method].attends

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages whose activations are mixed, without the images themselves."""
        if not METHODS[self.method].mixes_stages:
            return ()
        return tuple(stage for stage in self.options[self.method]["stages"] if stage != INPUT)

    @property
    def uses_patches(self) -> bool:
        """Whether `patch_size` matters."""
        method = METHODS[self.method]
        aligned = "mask" not in method.takes or masks.MASKS[self.mask].aligned
        return method.attends or ("patch_size" in method.takes and aligned)


@dataclasses.dataclass(frozen=True)
class Method:
    """An entry of METHODS.

    Attributes:
      function: (key, images_BxHxWxC, maps_BxHxW or None, *, views, and what it takes) -> (mixed, weight_B, partner_B),
        and for methods that attend or mix stages {name: array of B rows}; None: nothing is mixed.
      needs_map: whether it uses the attribution maps.
      takes: which of `keep_range`, `keep_B`, `mask`, `fill`, `border` and `patch_size` it takes as arguments.
      attends: whether the weight of the labels is the share of the attention that unmasked patches of the mixed image
        get (see `tokens.attended_share`), in place of weight_B. It returns {"mask": mask_BxHxW} too.
      mixes_stages: whether it mixes activations: it returns {stage: share_B} too, how much of a row's activations stays
        its own, the rest being its partner's. Its option `stages` names them.
      grid: how its option `grid` relates to the side of an image: "divides" it, or "fits" in it; "" without.
      options: {option: Key}, arguments of the function and config keys `mix.options.NAME.OPTION`.
    """

    function: Callable[..., tuple[jax.Array, jax.Array, jax.Array]] | None
    needs_map: bool = False
    takes: tuple[str, ...] = ("keep_range", "keep_B", "fill", "border")
    attends: bool = False
    mixes_stages: bool = False
    grid: str = ""
    options: Mapping[str, Key] = dataclasses.field(default_factory=dict)

    @property
    def has_mask(self) -> bool:
        """Whether it has a hole to fill."""
        return "fill" in self.takes

    @property
    def ranges(self) -> tuple[str, ...]:
        """The options that are (low, high)."""
        return tuple(name for name, each in self.options.items() if each.length == 2)


_ALPHA = Key(1.0, "parameter of Beta(alpha, alpha), from which the kept share is drawn", above=0)
_DECAY = Key(3.0, "decay of the noise's amplitude with frequency; the larger, the larger the patches", least=0, most=10)
_SCALE = Key((0.1, 0.8), "sides of the box as a share of the image's, drawn uniformly", above=0, most=1, length=2)
_STAGES = Key((INPUT, "stage1", "stage2"), '"input" and stages of the encoder: one of them is drawn and mixed')
_GRID = Key(7, "cells along a side of the image", least=1)
_CELLS = Key(6, "number of pasted cells", least=1)
_QUANTILE = Key(0.6, "quantile of the map's sum inside a box; positions above it are spared; 1: none", above=0, most=1)
_PUZZLE = {
    "grid": Key(4, "cells along a side of the image; divides it", least=1),
    "smoothness": Key(0.5, "pull of a cell's neighbors on the mask, in mean saliencies", least=0),
    "distance": Key(1.0, "cost of moving a cell across the image, in mean saliencies", least=0),
    "sweeps": Key(4, "rounds of the search for the mask", least=1),
}
_BLOCKS = Key(8, "number of rectangles of tokens", least=1)
_GUIDED = ("keep_range", "keep_B", "mask", "fill", "border", "patch_size")

METHODS = {
    "none": Method(None, takes=()),
    "gradmix": Method(gradmix, needs_map=True, takes=_GUIDED),
    "backmix": Method(backmix, needs_map=True, takes=_GUIDED),
    "attentive_cutmix": Method(
        attentive_cutmix,
        needs_map=True,
        takes=("fill", "border"),
        grid="fits",
        options={"grid": _GRID, "cells": _CELLS},
    ),
    "keep_cutout": Method(keep_cutout, needs_map=True, options={"quantile": _QUANTILE}),
    "puzzlemix": Method(puzzlemix, needs_map=True, grid="divides", options=_PUZZLE),
    "cutmix": Method(cutmix),
    "resizemix": Method(resizemix, takes=("fill", "border"), options={"scale": _SCALE}),
    "saliencymix": Method(saliencymix),
    "fmix": Method(fmix, options={"decay": _DECAY}),
    "tokenmix": Method(
        tokenmix,
        needs_map=True,
        takes=("keep_range", "keep_B", "fill", "border", "patch_size"),
        options={"blocks": _BLOCKS},
    ),
    "transmix": Method(transmix, attends=True),
    "mixup": Method(mixup, takes=(), options={"alpha": _ALPHA}),
    "manifold_mixup": Method(manifold_mixup, takes=(), mixes_stages=True, options={"alpha": _ALPHA, "stages": _STAGES}),
}


def apply(
    key: jax.Array, images_BxHxWxC: jax.Array, maps_BxHxW: jax.Array | None, spec: Spec, *, views: int, first_group: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mix this device's images as configured, group by group.

    Partners are drawn within groups of `spec.group_size` images, and every group has a key made from its number in
    the global batch. The result is the same however the batch is spread over devices, and no image has to travel.
    (Batches are shuffled, so a random partner of the group is a random partner of the batch.)

    Args:
      key: the key of this step, the same on every device.
      images_BxHxWxC: this device's images in [0, 1], view-major.
      maps_BxHxW: their maps; None where `spec.uses_map` is false.
      spec: the mix section; keep range, mask and fill concern the methods that take them.
      views: number of views V in B.
      first_group: number of this device's first group in the global batch.

    Returns:
      mixed images, weight_B, partner_B (rows of this device). With `spec.mixed_views == "first"` only the rows of
      view 0 are returned, B / V of them.

    Raises:
      ValueError: a method that does not mix, or the images of a view do not fill whole groups.
    """
    return apply_in_full(key, images_BxHxWxC, maps_BxHxW, spec, views=views, first_group=first_group)[:3]


def apply_in_full(
    key: jax.Array, images_BxHxWxC: jax.Array, maps_BxHxW: jax.Array | None, spec: Spec, *, views: int, first_group: int
) -> tuple[jax.Array, jax.Array, jax.Array, dict[str, jax.Array]]:
    """`apply`, plus {name: array of B rows} with the additional results of methods, see `Method`."""
    batch = images_BxHxWxC.shape[0]
    size = spec.group_size
    method = METHODS[spec.method]
    if method.function is None:
        raise ValueError(f"mix.method {spec.method!r} mixes nothing; choose another.")
    if batch % (views * size):
        raise ValueError(f"mix.group_size must divide the {batch / views:g} images of one device, got {size}.")
    groups = batch // views // size
    group_key, keep_key = jax.random.split(key)
    keys_G = jax.vmap(lambda index: jax.random.fold_in(group_key, index))(first_group + jnp.arange(groups))
    keep_Gxg = None
    if spec.keep_draw == "batch":
        keep_Gxg = jnp.broadcast_to(draw_keep(keep_key, (), spec.keep_range), (groups, views * size))

    def one_group(key, images, maps, keep):
        common = {name: getattr(spec, name) for name in ("keep_range", "mask", "fill", "border", "patch_size")}
        taken = {name: value for name, value in (common | {"keep_B": keep}).items() if name in method.takes}
        result = method.function(key, images, maps, views=views, **taken, **spec.options.get(spec.method, {}))
        return result if len(result) == 4 else (*result, {})

    mixed, weight, partner, extra = jax.vmap(one_group)(
        keys_G, _to_groups(images_BxHxWxC, views, size), _to_groups(maps_BxHxW, views, size), keep_Gxg
    )
    # A row of group k is v * size + i; its place on the device is v * (groups * size) + k * size + i.
    view, image = partner // size, partner % size
    partner = view * (groups * size) + jnp.arange(groups, dtype=jnp.int32)[:, None] * size + image
    result = jax.tree.map(lambda x: _from_groups(x, views, size), (mixed, weight, partner, extra))
    return result if spec.mixed_views == "all" else jax.tree.map(lambda x: x[: batch // views], result)


def _to_groups(array, views, size):
    if array is None:
        return None
    rest = array.shape[1:]
    return jnp.moveaxis(array.reshape(views, -1, size, *rest), 0, 1).reshape(-1, views * size, *rest)


def _from_groups(array, views, size):
    rest = array.shape[2:]
    return jnp.moveaxis(array.reshape(-1, views, size, *rest), 1, 0).reshape(-1, *rest)
