"""Encoders with named stages and taps, and their heads.

    module = create(spec, num_classes=6)
    variables = module.init(key, images_1xHxWxC, train=False)            # {"params": ..., "batch_stats": ...}
    z_BxD, out = module.apply(variables, images_BxHxWxC, train=False)
    (z_BxD, out), updates = module.apply(variables, images_BxHxWxC, train=True, mutable=["batch_stats"])

A transformer has no batch norm, so its variables have no "batch_stats".

The gradient with respect to the activations of a stage, dL/dA, is that with respect to a zero added to them:

    zeros = {"stage3": jnp.zeros((B,) + stage_shapes(spec, image_size)["stage3"])}
    module.apply({**variables, "perturbations": zeros}, images_BxHxWxC, ...)

`attentions(updates["intermediates"])` returns a transformer's attention, if "intermediates" is among the mutable
collections.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradmix_jax.fields import Section, check_choice, key
from gradmix_jax.models.classifier32 import Classifier32
from gradmix_jax.models.heads import CosineClassifier, LinearClassifier
from gradmix_jax.models.layers import Encoder
from gradmix_jax.models.network import Network
from gradmix_jax.models.parts import HEADS, expanded
from gradmix_jax.models.preact_resnet import PreActResNet
from gradmix_jax.models.prototypes import Prototypes, ReciprocalPoints, SphericalPrototypes
from gradmix_jax.models.resnet import BasicBlock, Bottleneck, ResNet
from gradmix_jax.models.small_cnn import SmallCNN
from gradmix_jax.models.vit import PATCHES, ClassTokenViT, ViT


class Choice(NamedTuple):
    """One entry of ENCODERS: constructor, published width (channels of stage 1), number of stages, possible stems.

    A transformer also has its patch size in pixels by stem, and whether its features are those of a class token, which
    is then the first of its tokens.
    """

    build: Callable[..., Encoder]
    width: int
    num_stages: int
    stems: tuple[str, ...]
    patches: Mapping[str, int] | None = None
    class_token: bool = False


SMALL = ("cifar",)
BOTH = ("cifar", "imagenet")
LARGE = ("imagenet",)
PATCHES_OF_14 = {"imagenet": 14}
PUBLISHED_VIT = partial(ClassTokenViT, blocks_per_stage=3, patches=PATCHES)
DINOV2 = partial(ClassTokenViT, blocks_per_stage=3, patches=PATCHES_OF_14, layer_scale=1e-5)
ENCODERS = {
    "small_cnn": Choice(SmallCNN, 32, 4, SMALL),
    "resnet18": Choice(partial(ResNet, block=BasicBlock, blocks=(2, 2, 2, 2)), 64, 4, BOTH),
    "resnet34": Choice(partial(ResNet, block=BasicBlock, blocks=(3, 4, 6, 3)), 64, 4, BOTH),
    "resnet50": Choice(partial(ResNet, block=Bottleneck, blocks=(3, 4, 6, 3)), 64, 4, BOTH),
    "preact_resnet18": Choice(partial(PreActResNet, blocks=(2, 2, 2, 2), stem_channels=None), 64, 4, SMALL),
    # WRN-28-10 and WRN-40-2: the widening factor is width / 16.
    "wide_resnet28": Choice(partial(PreActResNet, blocks=(4, 4, 4), stem_channels=16), 160, 3, SMALL),
    "wide_resnet40": Choice(partial(PreActResNet, blocks=(6, 6, 6), stem_channels=16), 32, 3, SMALL),
    "classifier32": Choice(Classifier32, 64, 3, SMALL),
    # ViT-Ti: 12 blocks of 3 heads; stem "cifar" has patches of 4 pixels, "imagenet" of 16.
    "vit_tiny": Choice(partial(ViT, blocks_per_stage=3), 192, 4, BOTH, PATCHES),
    # With class token and learned positions, as published; the same patches.
    "vit_tiny_token": Choice(PUBLISHED_VIT, 192, 4, BOTH, PATCHES, True),
    "vit_small": Choice(PUBLISHED_VIT, 384, 4, BOTH, PATCHES, True),
    "vit_base": Choice(PUBLISHED_VIT, 768, 4, BOTH, PATCHES, True),
    # Patches of 14 pixels.
    "dinov2_small": Choice(DINOV2, 384, 4, LARGE, PATCHES_OF_14, True),
    "dinov2_base": Choice(DINOV2, 768, 4, LARGE, PATCHES_OF_14, True),
    "dinov2_small_registers": Choice(partial(DINOV2, registers=4), 384, 4, LARGE, PATCHES_OF_14, True),
    "dinov2_base_registers": Choice(partial(DINOV2, registers=4), 768, 4, LARGE, PATCHES_OF_14, True),
}
CLASSIFIERS = {
    "none": None,
    "linear": LinearClassifier,
    "cosine": CosineClassifier,
    "linear_without_bias": partial(LinearClassifier, bias=False),
    "prototypes": Prototypes,
    "reciprocal_points": ReciprocalPoints,
    "spherical": SphericalPrototypes,
}
LINEAR = ("linear", "linear_without_bias")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclass(frozen=True)
class Spec(Section, section="model"):
    """The encoder and its heads: the `model` section."""

    name: str = key("small_cnn", "encoder", choices=lambda: ENCODERS)
    stem: str = key(
        "cifar",
        '"cifar": 3x3, stride 1, no pool (patches of 4 pixels); "imagenet": 7x7, stride 2, max pool (of 16)',
    )
    width: int = key(0, "channels of the first stage; 0: the published width", least=0)
    hidden: int = key(512, "hidden units of the projection head", least=1)
    projection: int = key(128, "D, size of the projection", least=1)
    classifier: str = key(
        "none",
        'head for the classes: "none", "linear", "cosine", "linear_without_bias", "prototypes" (of gcpl), '
        '"reciprocal_points" (of arpl), "spherical" (of sphor; gives no logits)',
        choices=lambda: CLASSIFIERS,
    )
    dtype: str = key(
        "float32",
        'type of the encoder\'s compute, or "bfloat16"; parameters and losses stay float32',
        choices=lambda: DTYPES,
    )
    init_from: str = key(
        "",
        "initial weights: a .pth, .pt or .safetensors file, a workdir or an export; {trial} is replaced; empty: random",
    )
    freeze: tuple[str, ...] = key((), 'parts that keep their weights: "encoder", "stem", stages, heads')
    loaded_learning_rate_factor: float = key(
        1.0, "factor of the encoder's learning rate relative to the heads, if its weights were loaded", least=0
    )

    def check(self):
        check_choice(f"model.stem of {self.name}", self.stem, ENCODERS[self.name].stems)
        for name in self.freeze:
            check_choice("each element of model.freeze", name, ("encoder", "stem", *available_stages(self), *HEADS))
        if self.loaded_learning_rate_factor != 1 and not self.init_from:
            raise ValueError(
                "model.loaded_learning_rate_factor must be 1 without model.init_from, got "
                f"{self.loaded_learning_rate_factor}."
            )

    @property
    def has_logits(self) -> bool:
        """Whether the head gives logits; if not, an evaluation uses those of a linear probe."""
        return self.classifier not in ("none", "spherical")

    @property
    def frozen(self) -> tuple[str, ...]:
        """The parts that keep their weights, with the encoder expanded into its parts."""
        return expanded(self.freeze, available_stages(self))


def create(spec: Spec, *, num_classes: int, axis_name: str | None = None) -> Network:
    """The network of `spec`.

    Args:
      spec: the model section of a config.
      num_classes: number K of classes of the logits; unused with `spec.classifier == "none"`.
      axis_name: the mapped axis (pmap, vmap, shard_map) over which batch-norm statistics are averaged in
        training. `init`, and `apply` with train=False, need no such axis.
    """
    choice = ENCODERS[spec.name]
    encoder = partial(
        choice.build,
        width=spec.width or choice.width,
        stem=spec.stem,
        dtype=DTYPES[spec.dtype],
        axis_name=axis_name,
        frozen=spec.frozen,
    )
    classifier = CLASSIFIERS[spec.classifier]
    return Network(
        encoder=encoder,
        stages=available_stages(spec),
        hidden=spec.hidden,
        projection=spec.projection,
        classifier=None if classifier is None else partial(classifier, num_classes=num_classes),
    )


def available_stages(spec: Spec) -> tuple[str, ...]:
    """The names of the stages, in order: ("stage1", "stage2", ...)."""
    return tuple(f"stage{index}" for index in range(1, ENCODERS[spec.name].num_stages + 1))


def patch_size(spec: Spec) -> int:
    """The side of a transformer's patches in pixels; 0 for an encoder without patches."""
    return (ENCODERS[spec.name].patches or {}).get(spec.stem, 0)


def attentions(intermediates: Mapping[str, Any]) -> tuple[jax.Array, ...]:
    """The attention of a transformer's blocks in order, each [B, N, T, T]: N heads, from a token to a token, rows sum
    to 1. () for other encoders."""
    blocks = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(intermediates):
        names = [str(getattr(entry, "key", "")) for entry in path]
        if "attention_weights" in names:
            stage, _, block = next(name for name in names if "_block" in name).partition("_block")
            blocks[int(stage.removeprefix("stage")), int(block)] = leaf
    return tuple(blocks[place] for place in sorted(blocks))


def stage_shapes(spec: Spec, image_size: int) -> dict[str, tuple[int, int, int]]:
    """(h, w, F) of the activations of each stage for square images of `image_size` pixels (shapes only)."""
    module = create(spec, num_classes=2)
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    init = partial(module.init_with_output, train=False)
    (_, out), _ = jax.eval_shape(init, jax.random.key(0), image)
    return {name: out[name].shape[1:] for name in available_stages(spec)}
