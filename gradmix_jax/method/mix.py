"""Mixing: each image loses a region and gets another's pixels in its place (or a blend, for mixup).

One signature for all methods: `(mixed, weight_B, partner_B)`, where `weight_B` is the share of the image that is still
its own and `partner_B` the index of the image that the rest came from (its own index where the fill has no partner,
so that area-weighted labels come out right without a special case). Images are float in [0, 1], not normalized.

With V views the B rows are view-major (all of view 0, then all of view 1), and the partner of view v of image i is
view V-1-v of image pi(i), with pi a random permutation without fixed points.

Letters: B batch (views included), H W image, C image channels, G groups, g images of a group.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gradmix_jax import fields
from gradmix_jax.fields import Key, Section, check_choice, key
from gradmix_jax.method import attribution, masks
from gradmix_jax.method.fills import FILLS, fill_masked

KEEP_DRAWS = ("image", "batch")
MIXED_VIEWS = ("all", "first")


@dataclasses.dataclass(frozen=True)
class Spec(Section, section="mix"):
    """How images are mixed: the `mix` section."""

    method: str = key("gradmix", "mixing method", choices=lambda: METHODS)
    mask: str = key("threshold", '"threshold" or "box"', choices=lambda: masks.MASKS)
    fill: str = key("partner", "what fills the masked part", choices=lambda: FILLS)
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

    @property
    def mixes(self) -> bool:
        return METHODS[self.method].function is not None

    @property
    def uses_map(self) -> bool:
        return METHODS[self.method].needs_map

    @property
    def has_mask(self) -> bool:
        return METHODS[self.method].has_mask


@dataclasses.dataclass(frozen=True)
class Method:
    """An entry of METHODS.

    Attributes:
      function: (key, images_BxHxWxC, maps_BxHxW or None, *, views, and what it takes) -> (mixed, weight_B, partner_B);
        None: nothing is mixed.
      needs_map: whether it looks at the attribution maps.
      takes: which of `keep_range`, `keep_B`, `mask` and `fill` it has arguments for.
      options: {option: Key}, arguments of the function and config keys `mix.options.NAME.OPTION`.
    """

    function: Callable[..., tuple[jax.Array, jax.Array, jax.Array]] | None
    needs_map: bool = False
    takes: tuple[str, ...] = ("keep_range", "keep_B", "fill")
    options: Mapping[str, Key] = dataclasses.field(default_factory=dict)

    @property
    def has_mask(self) -> bool:
        """Whether it has a hole to fill."""
        return "fill" in self.takes


def partners(key: jax.Array, batch: int, *, views: int = 1) -> jax.Array:
    """Partner of every row: a uniformly random cycle through the images, crossed over views; partner_B int32."""
    images = batch // views
    cycle = jax.random.permutation(key, images)
    # i -> the image after i in a random cycle: a permutation in which nobody is its own partner.
    partner_g = jnp.zeros(images, jnp.int32).at[cycle].set(jnp.roll(cycle, -1).astype(jnp.int32))
    crossed_V = jnp.arange(views - 1, -1, -1, dtype=jnp.int32) * images
    return (crossed_V[:, None] + partner_g[None, :]).reshape(batch)


def draw_keep(key: jax.Array, shape: tuple[int, ...], keep_range: tuple[float, float]) -> jax.Array:
    """Keep shares low + (high - low) * u with u ~ Beta(1, 1), which is the uniform distribution."""
    low, high = keep_range
    return jax.random.uniform(key, shape, minval=low, maxval=high)


def gradmix(
    key: jax.Array,
    images_BxHxWxC: jax.Array,
    maps_BxHxW: jax.Array,
    *,
    keep_range: tuple[float, float] = (0.5, 0.9),
    mask: str = "threshold",
    fill: str = "partner",
    views: int = 1,
    keep_B: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mask out where the map is largest and fill the hole.

    Source: Xu, Kao, Keuper 2025, "Informed Mixing", arXiv 2505.12803 (`box` with `partner_resized` is the paper's;
    `threshold` with `partner` goes with input-gradient maps).

    Args:
      key: randomness of partners, keep shares and noise.
      images_BxHxWxC: images in [0, 1]; B = views * images, view-major. A single image is its own partner.
      maps_BxHxW: attribution maps.
      keep_range: lowest and highest share of pixels to keep, each in [0, 1]; drawn once per row.
      mask: `threshold` or `box`, see `masks`.
      fill: `partner` (its pixels at the same place), `partner_resized` (the whole partner, resized to the mask's
        bounding box), `noise` (uniform in [0, 1]), `mean` (the image's own mean color), `zeros` or `ones`.
      views: number of views V in B.
      keep_B: keep shares, to use in place of a draw.

    Returns:
      mixed images (shape and dtype of the input), weight_B and partner_B.

    Raises:
      ValueError: B is not a multiple of `views`, or an unknown mask or fill.
    """
    batch = images_BxHxWxC.shape[0]
    if batch % views:
        raise ValueError(f"gradmix needs a multiple of views={views} images, got {batch}.")
    check_choice("mask", mask, masks.MASKS)
    partner_key, keep_key, noise_key = jax.random.split(key, 3)
    mask_BxHxW = masks.MASKS[mask](maps_BxHxW, _given_or_drawn(keep_B, keep_key, batch, keep_range))
    partner_B = partners(partner_key, batch, views=views)
    return fill_masked(noise_key, images_BxHxWxC, mask_BxHxW, fill, partner_B=partner_B)


def _given_or_drawn(keep_B, key, batch, keep_range):
    return draw_keep(key, (batch,), keep_range) if keep_B is None else keep_B


def cutmix(
    key: jax.Array,
    images_BxHxWxC: jax.Array,
    maps_BxHxW: jax.Array | None,
    *,
    keep_range: tuple[float, float],
    fill: str,
    views: int,
    keep_B: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A box at a uniformly random place, filled as in `gradmix`.

    Source: CutMix, Yun et al. 2019, arXiv 1905.04899, section 3.1. With a fill that has no partner it is Cutout
    (DeVries and Taylor 2017, arXiv 1708.04552).

    Args:
      key: randomness of places, partners, keep shares and noise.
      maps_BxHxW: not looked at.
      images_BxHxWxC, keep_range, fill, views, keep_B: as in `gradmix`.

    Returns:
      mixed images (shape and dtype of the input), weight_B and partner_B.

    Raises:
      ValueError: an unknown fill.
    """
    del maps_BxHxW
    batch, height, width, _ = images_BxHxWxC.shape
    partner_key, keep_key, noise_key, row_key, column_key = jax.random.split(key, 5)
    keep_B = _given_or_drawn(keep_B, keep_key, batch, keep_range)
    row_B = jax.random.randint(row_key, (batch,), 0, height)
    column_B = jax.random.randint(column_key, (batch,), 0, width)
    mask_BxHxW = masks.box_at(row_B, column_B, keep_B, image_size=(height, width))
    partner_B = partners(partner_key, batch, views=views)
    return fill_masked(noise_key, images_BxHxWxC, mask_BxHxW, fill, partner_B=partner_B)


def saliencymix(
    key: jax.Array,
    images_BxHxWxC: jax.Array,
    maps_BxHxW: jax.Array | None,
    *,
    keep_range: tuple[float, float],
    fill: str,
    views: int,
    keep_B: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A box around the most salient point of the partner, filled as in `gradmix`.

    Source: SaliencyMix, Uddin et al. 2021, arXiv 2006.01791, section 3.2, with `attribution.spectral_residual` as the
    saliency.

    Args:
      key: randomness of partners, keep shares and noise.
      maps_BxHxW: not looked at.
      images_BxHxWxC, keep_range, fill, views, keep_B: as in `gradmix`.

    Returns:
      mixed images (shape and dtype of the input), weight_B and partner_B.

    Raises:
      ValueError: an unknown fill.
    """
    del maps_BxHxW
    batch = images_BxHxWxC.shape[0]
    partner_key, keep_key, noise_key = jax.random.split(key, 3)
    keep_B = _given_or_drawn(keep_B, keep_key, batch, keep_range)
    saliency_BxHxW = attribution.spectral_residual(images_BxHxWxC)
    partner_B = partners(partner_key, batch, views=views)
    mask_BxHxW = masks.box(saliency_BxHxW[partner_B], keep_B)
    return fill_masked(noise_key, images_BxHxWxC, mask_BxHxW, fill, partner_B=partner_B)


def fmix(
    key: jax.Array,
    images_BxHxWxC: jax.Array,
    maps_BxHxW: jax.Array | None,
    *,
    keep_range: tuple[float, float],
    fill: str,
    views: int,
    decay: float,
    keep_B: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Patches of any shape, where smooth noise is largest, filled as in `gradmix`.

    Source: FMix, Harris et al. 2020, arXiv 2002.12047, section 4.1.

    Args:
      key: randomness of patches, partners, keep shares and noise.
      maps_BxHxW: not looked at.
      images_BxHxWxC, keep_range, fill, views, keep_B: as in `gradmix`.
      decay: of the noise's amplitude with frequency, see `masks.fourier_noise`; 0 or more.

    Returns:
      mixed images (shape and dtype of the input), weight_B and partner_B.

    Raises:
      ValueError: an unknown fill.
    """
    del maps_BxHxW
    batch, height, width, _ = images_BxHxWxC.shape
    partner_key, keep_key, fill_key, mask_key = jax.random.split(key, 4)
    keep_B = _given_or_drawn(keep_B, keep_key, batch, keep_range)
    noise_BxHxW = masks.fourier_noise(mask_key, batch, image_size=(height, width), decay=decay)
    mask_BxHxW = masks.threshold(noise_BxHxW, keep_B)
    partner_B = partners(partner_key, batch, views=views)
    return fill_masked(fill_key, images_BxHxWxC, mask_BxHxW, fill, partner_B=partner_B)


def mixup(
    key: jax.Array,
    images_BxHxWxC: jax.Array,
    maps_BxHxW: jax.Array | None,
    *,
    alpha: float,
    views: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """weight * image + (1 - weight) * partner, weight ~ Beta(alpha, alpha).

    Source: mixup, Zhang et al. 2018, arXiv 1710.09412, section 2.

    Args:
      key: randomness of partners and weights.
      images_BxHxWxC: images in [0, 1]; B = views * images, view-major.
      maps_BxHxW: not looked at.
      alpha: of the Beta distribution, above 0; 1 is uniform.
      views: number of views V in B.

    Returns:
      mixed images (shape and dtype of the input), weight_B and partner_B.
    """
    del maps_BxHxW
    batch = images_BxHxWxC.shape[0]
    partner_key, weight_key = jax.random.split(key)
    partner_B = partners(partner_key, batch, views=views)
    weight_B = jax.random.beta(weight_key, alpha, alpha, (batch,))
    weight_Bx1x1x1 = weight_B[:, None, None, None]
    mixed = weight_Bx1x1x1 * images_BxHxWxC + (1.0 - weight_Bx1x1x1) * images_BxHxWxC[partner_B]
    return mixed.astype(images_BxHxWxC.dtype), weight_B, partner_B


_ALPHA = Key(1.0, "of Beta(alpha, alpha), from which the kept share is drawn", above=0)
_DECAY = Key(3.0, "of the noise's amplitude with frequency; the larger, the larger the patches", least=0, most=10)

METHODS = {
    "none": Method(None, takes=()),
    "gradmix": Method(gradmix, needs_map=True, takes=("keep_range", "keep_B", "mask", "fill")),
    "cutmix": Method(cutmix),
    "saliencymix": Method(saliencymix),
    "fmix": Method(fmix, options={"decay": _DECAY}),
    "mixup": Method(mixup, takes=(), options={"alpha": _ALPHA}),
}


def apply(
    key: jax.Array, images_BxHxWxC: jax.Array, maps_BxHxW: jax.Array | None, spec: Spec, *, views: int, first_group: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mix this device's images as the config says, group by group.

    Partners are drawn inside groups of `spec.group_size` images, and every group has a key made from its number in
    the global batch: the result is the same however the batch is spread over devices, and no image has to travel.
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
        common = dict(keep_B=keep, keep_range=spec.keep_range, mask=spec.mask, fill=spec.fill)
        taken = {name: common[name] for name in method.takes}
        return method.function(key, images, maps, views=views, **taken, **spec.options.get(spec.method, {}))

    mixed, weight, partner = jax.vmap(one_group)(
        keys_G, _to_groups(images_BxHxWxC, views, size), _to_groups(maps_BxHxW, views, size), keep_Gxg
    )
    # A row of group k is v * size + i; its place on the device is v * (groups * size) + k * size + i.
    view, image = partner // size, partner % size
    partner = view * (groups * size) + jnp.arange(groups, dtype=jnp.int32)[:, None] * size + image
    mixed, weight_B, partner_B = (_from_groups(x, views, size) for x in (mixed, weight, partner))
    if spec.mixed_views == "first":
        mixed, weight_B, partner_B = (x[: batch // views] for x in (mixed, weight_B, partner_B))
    return mixed, weight_B, partner_B


def _to_groups(array, views, size):
    if array is None:
        return None
    rest = array.shape[1:]
    return jnp.moveaxis(array.reshape(views, -1, size, *rest), 0, 1).reshape(-1, views * size, *rest)


def _from_groups(array, views, size):
    rest = array.shape[2:]
    return jnp.moveaxis(array.reshape(-1, views, size, *rest), 1, 0).reshape(-1, *rest)
