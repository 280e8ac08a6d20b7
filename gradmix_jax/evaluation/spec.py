"""The `evaluate` section of a config, and which evaluations fit which data and models."""

import dataclasses
from typing import Any

from gradmix_jax import augment, corruptions, models, scores
from gradmix_jax import data as data_lib
from gradmix_jax.evaluation.features import FEATURES
from gradmix_jax.fields import Section, check_choice, key, options
from gradmix_jax.scores import fitted as fitted_lib
from gradmix_jax.scores.fitted import LOGITS

DUPLICATES = ("error", "drop")
PARTS = ("gallery", "closed_set", "diversity")
CORRUPTIONS = ("none", "regenerated", "cifar10_corrupted")


@dataclasses.dataclass(frozen=True)
class Spec(Section, section="evaluate"):
    """What to evaluate and how: the `evaluate` section."""

    batch_size: int = key(500, "images per batch of the evaluation", least=1)
    feature: str = key("features", 'feature of the headline: "features" (encoder), "projection", "logits", or a stage')
    score: str = key("topk_cosine", "score of the headline, a key of gradmix_jax.scores.SCORES")
    k: int = key(3, "topk_cosine: a class's score is the sum of the k largest cosine similarities", least=1)
    scores: tuple[str, ...] = key(
        ("all",),
        'scores to compare on every feature: names, or "all" (those of one forward pass, so not odin)',
        choices=lambda: ("all", *scores.SCORES),
    )
    options: dict[str, Any] = options(lambda: scores.SCORES, "options of the scores")
    stages: tuple[str, ...] = key(("stage3",), "stages whose activations, averaged over positions, are scored as well")
    parts: tuple[str, ...] = key(
        PARTS,
        "parts besides the scores: pictures, probes of the known classes, diversity of features; without closed_set, "
        "the linear probe is fitted only if a score needs its logits",
        choices=PARTS,
    )
    near: tuple[str, ...] = key(
        (), "near out-of-distribution datasets: TFDS names, folder:PATH, idx:PATH, noise:uniform or noise:gaussian"
    )
    far: tuple[str, ...] = key((), "far out-of-distribution datasets, likewise")
    shifted: tuple[str, ...] = key(
        (), "datasets with covariate-shifted images of the known classes, which full-spectrum results count as known"
    )
    corruptions: str = key("none", 'corrupted images: "regenerated", "cifar10_corrupted", or folder:PATH of a release')
    corruption_reference: str = key("", "workdir of the run whose errors divide ours in the mean corruption error")
    probes: tuple[str, ...] = key((), "other labeled datasets to probe the frozen encoder on")
    duplicates: str = key(
        "error", 'test images that are in training or validation: "error", or "drop" them', choices=DUPLICATES
    )

    def check(self):
        check_choice("evaluate.feature", self.feature, (*self.features, LOGITS))
        check_choice(f"evaluate.score (of evaluate.feature {self.feature!r})", self.score, self.headline_scores)
        for name in (*self.near, *self.far):
            data_lib.check_unknown_name("each element of evaluate.near and evaluate.far", name)
        for name in self.shifted:
            data_lib.check_unknown_name("each element of evaluate.shifted", name)
        for name in self.probes:
            data_lib.check_name("each element of evaluate.probes", name)
        if not self.corruptions.startswith("folder:"):
            check_choice("evaluate.corruptions", self.corruptions, (*CORRUPTIONS, "folder:PATH"))

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features to score images by."""
        return (*FEATURES, *self.stages)

    @property
    def headline_scores(self) -> tuple[str, ...]:
        """Names of the scores that work on the headline's feature."""
        return tuple(name for name in scores.SCORES if fitted_lib.works_on_logits(name) == (self.feature == LOGITS))

    @property
    def all_scores(self) -> tuple[str, ...]:
        """Names of the scores to compare, the headline's among them."""
        named = tuple(name for name in self.scores if name != "all")
        every = tuple(name for name, entry in scores.SCORES.items() if not entry.on_request)
        return tuple(dict.fromkeys((*(every if "all" in self.scores else ()), self.score, *named)))

    @property
    def perturbation(self) -> dict[str, float] | None:
        """Options of ODIN's step, if that score is requested."""
        return scores.options_of("odin", self.options.get("odin", {})) if "odin" in self.all_scores else None


@dataclasses.dataclass(frozen=True)
class Setup:
    """The sections of a config that an evaluation depends on."""

    dataset: data_lib.Spec
    normalization: augment.Normalization
    model: models.Spec
    evaluate: Spec
    seed: int | None = None  # of the training, which checkpoints know; None: any


def check_fits(spec: Spec, data_spec: data_lib.Spec, model_spec: models.Spec) -> None:
    """Reject an evaluation that does not fit the data or the model before training starts.

    Args:
      spec, data_spec, model_spec: the sections `evaluate`, `dataset` and `model` of a config.

    Raises:
      ValueError: one line with the key of `evaluate`, its value and what to do.
    """
    for name in spec.stages:
        check_choice("each element of evaluate.stages", name, models.available_stages(model_spec))
    for part, lacking, why in (
        ("validation", not data_spec.validation_fraction, "dataset.validation_fraction 0 leaves no validation images"),
        (
            "head",
            model_spec.has_logits and model_spec.classifier not in models.LINEAR,
            f"model.classifier {model_spec.classifier!r} is no linear layer",
        ),
        (
            "perturbed_logits",
            not model_spec.has_logits,
            f"model.classifier {model_spec.classifier!r} has no logits to differentiate",
        ),
    ):
        if lacking and part in scores.SCORES[spec.score].needs:
            fitting = [name for name in spec.headline_scores if part not in scores.SCORES[name].needs]
            raise ValueError(f"evaluate.score {spec.score!r} does not work: {why}; use one of {', '.join(fitting)}.")
    for kind in ("near", "far", "shifted"):
        for name in getattr(spec, kind):
            if data_lib.same_data(name, data_spec.name):
                raise ValueError(f"evaluate.{kind} must be other data than the known classes' {data_spec.name!r}.")
    if spec.corruptions == "regenerated" and 0 < data_spec.image_size < corruptions.SMALLEST:
        raise ValueError(
            f"evaluate.corruptions 'regenerated' needs dataset.image_size of at least {corruptions.SMALLEST}, got "
            f"{data_spec.image_size}."
        )
    across = not data_lib.same_data(data_spec.name, data_spec.unknown_data)
    if across and spec.corruptions not in ("none", "regenerated"):
        raise ValueError(
            f"evaluate.corruptions must be none or regenerated where known classes are of {data_spec.name!r} and "
            f"unknown ones of {data_spec.unknown_data!r}, got {spec.corruptions!r}."
        )
