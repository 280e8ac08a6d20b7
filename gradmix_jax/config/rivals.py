"""Published open set methods as recipes: what each changes in a config, and its settings at published scale.

`config.apply_recipe` applies them; docs/methods.md lists them. Where a published setting has no counterpart here,
`differs` says so.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from gradmix_jax.config.scale import ADAM, CLASSIFIER32, PLAIN_VIEWS, WIDE, fine_grained, tuned

LOGITS = {"feature": "logits", "score": "max_logit"}
MIXUP = {"method": "mixup", "options": {"mixup": {"alpha": 1.0}}}
RANDAUGMENT = {"policy": "randaugment", "num_ops": 1}
CROPS = "a resized crop of at least 0.77 of the area replaces the crop after 4 pixels of padding"
NESTEROV = "SGD has Nesterov's momentum"
FROM_ZERO = "the schedule counts epochs from 0, not from 1"


@dataclasses.dataclass(frozen=True)
class Rival:
    """A published method.

    Attributes:
      about: a one-line description.
      paper: arXiv number, or venue.
      weights: {objective: weight} of every phase.
      keys: nested keys that make a config this method, at any scale.
      published: {benchmark: flat keys and "epochs"} of the published scale. "epochs" has an entry for each cosine,
        since the published schedules restart; "" holds what all benchmarks share.
      settings: the source of the settings.
      differs: deviations from the publication.
    """

    about: str
    paper: str
    weights: Mapping[str, float]
    keys: Mapping[str, Any]
    published: Mapping[str, Mapping[str, Any]]
    settings: str
    differs: tuple[str, ...] = ()


# Without a head, the evaluation's linear probe is the linear classifier of the frozen encoder.
TWO_VIEWS = {"train": {"num_views": 2}, "model": {"classifier": "none"}}
ONE_VIEW = {"train": {"num_views": 1}, "mix": {"method": "none"}}
LINEAR = {"model": {"classifier": "linear"}, "evaluate": LOGITS}
VAZE = "utils/paper_hyperparameters.csv and the scripts of the code of arXiv 2110.06207"

RIVALS = {
    "cross_entropy": Rival(
        "plain cross-entropy, maximum logit",
        "2110.06207",
        {"cross_entropy": 1.0},
        ONE_VIEW | LINEAR,
        tuned(all=PLAIN_VIEWS),
        "as mls, without RandAugment",
        (CROPS, NESTEROV),
    ),
    "mls": Rival(
        "the tuned maximum-logit baseline: RandAugment, label smoothing, warm-up, cosine with two restarts",
        "2110.06207",
        {"cross_entropy": 1.0},
        ONE_VIEW | LINEAR | {"augment": RANDAUGMENT | {"magnitude": 8}, "optimizer": {"warmup_epochs": 5.0}},
        tuned(ssb_cub=fine_grained(30, 0.3, 100), ssb_aircraft=fine_grained(15, 0.2, 50)),
        VAZE,
        (
            CROPS,
            NESTEROV,
            "classifier32 has no dropout",
            "SGD on TinyImageNet, too, where the scripts leave Adam as the default",
            "on CUB and Aircraft, pretrained weights have to be given",
        ),
    ),
    "arpl": Rival(
        "reciprocal points; the score is the largest logit, which is a distance to them",
        "2103.00953",
        {"arpl": 1.0},
        ONE_VIEW | {"model": {"classifier": "reciprocal_points"}, "evaluate": LOGITS, "augment": RANDAUGMENT},
        tuned(
            cifar10={"augment.magnitude": 15},
            tiny_imagenet=ADAM,
            ssb_cub=fine_grained(30, 0.2, 100),
            ssb_aircraft=fine_grained(18, 0.1, 50),
        ),
        VAZE + ", ARPLoss",
        (
            CROPS,
            NESTEROV,
            "without confusing samples (ARPL+CS), which need a generator and a second set of batch norms",
        ),
    ),
    "gcpl": Rival(
        "prototype learning; the score is the largest softmax probability of minus the distances",
        "1805.03438",
        {"gcpl": 1.0},
        ONE_VIEW | {"model": {"classifier": "prototypes"}, "evaluate": LOGITS | {"score": "msp"}},
        tuned(
            all=PLAIN_VIEWS | {"epochs": (100,), "train.batch_size": 64, "optimizer.warmup_epochs": 0.0},
            tiny_imagenet=ADAM | {"objective.label_smoothing": 0.0},
        ),
        "the comparison of ARPL's code: SGD 0.1 (TinyImageNet: Adam 0.001), batch 64, 100 epochs, weight 0.1",
        (CROPS, NESTEROV, "a cosine in place of steps of 0.1 every 30 epochs", "one prototype a class"),
    ),
    "conosr": Rival(
        "SupCon with soft labels, of clean and mixup images; a linear classifier of the frozen encoder",
        "AAAI 2023",
        {"soft_supcon": 1.0},
        TWO_VIEWS
        | {
            "mix": MIXUP,
            "objective": {"temperature": 0.1, "base_temperature": 0.1},
            "augment": RANDAUGMENT | {"magnitude": 5},
            "evaluate": LOGITS,
        },
        {
            "": CLASSIFIER32
            | {
                "epochs": (10, 20, 40, 80, 160, 290),
                "optimizer.name": "adam",
                "optimizer.learning_rate": 1e-3,
                "optimizer.weight_decay": 0.0,
                "optimizer.warmup_epochs": 0.0,
            },
            "tiny_imagenet": {},
        },
        "tinyimagenet_training_contrastive.py of the released code; other datasets were not released",
        (
            CROPS,
            "mean over the anchors, not their sum",
            "a multilayer projection head",
            "the share of mixup is drawn for each image",
            "the last of its cosines, cut off at 290 of 320 epochs, ends here",
        ),
    ),
    "negcossch": Rival(
        "SupCon whose temperature follows a negative cosine; a linear classifier of the frozen encoder",
        "2505.18137",
        {"supcon": 1.0},
        TWO_VIEWS
        | {
            "mix": {"method": "none"},
            "objective": {
                "temperature": 0.1,
                "base_temperature": 0.1,
                "temperature_schedule": "negative_cosine",
                "mixed_supcon": True,  # if trained with mixing
            },
            "augment": RANDAUGMENT | {"magnitude": 6},
            "evaluate": LOGITS,
        },
        tuned(
            all={"objective.base_temperature": 0.07},
            tiny_imagenet={"optimizer.learning_rate": 0.05, "objective.label_smoothing": 0.0},
        ),
        "bash_scripts/train_osr.sh and set_default_params.py of the released code: 0.1 to 0.4, period 200 of 600",
        (CROPS, NESTEROV, FROM_ZERO),
    ),
    "negcossch_ce": Rival(
        "the tuned maximum-logit baseline whose temperature follows a negative cosine",
        "2505.18137",
        {"cross_entropy": 1.0},
        ONE_VIEW
        | LINEAR
        | {
            "augment": RANDAUGMENT | {"magnitude": 6},
            "objective": {
                "temperature_schedule": "negative_cosine",
                "options": {"cross_entropy": {"temperature": 0.5}},
            },
        },
        tuned(tiny_imagenet={"objective.label_smoothing": 0.0}),
        "temp_schedulers.py and CE_tr.py of the released code: 0.5 to 2, period 200 of 600 epochs",
        (CROPS, NESTEROV, FROM_ZERO),
    ),
    "sphor": Rival(
        "von Mises-Fisher projections with orthogonal label embeddings; a linear classifier of the frozen encoder",
        "2503.08049",
        {"sphor": 1.0},
        TWO_VIEWS
        | {
            "mix": MIXUP,
            "model": {"classifier": "spherical"},
            "augment": RANDAUGMENT | {"magnitude": 5},
            "evaluate": LOGITS,
        },
        {
            # Clean and mixed losses are added here and averaged there, where rate and decay are 0.5 and 1e-4.
            "": CLASSIFIER32
            | {
                "epochs": (15, 20, 40, 80, 160, 285),
                "optimizer.learning_rate": 0.25,
                "optimizer.weight_decay": 2e-4,
                "optimizer.warmup_epochs": 5.0,
                "model.projection": 32,
                # 0.05 is added twice in the fine-grained runs: to the loss of clean and to that of mixed images.
                "objective.options.sphor.orthogonality": 0.1,
            },
            "tiny_imagenet": {},
        },
        "tin_stageone_training.py of the released code; the repulsion is that of its fine-grained runs",
        (
            CROPS,
            "a multilayer projection head",
            "embeddings by the optimizer of the network, not Adam, and not started from class means",
            "the last of its cosines, cut off at 285 of 320 epochs, ends here",
            "without the extra cross-entropy of weight 0.05 of the fine-grained runs",
        ),
    ),
    "openauc": Rival(
        "cross-entropy plus a ranking loss against mixed features of two classes",
        "2210.13458",
        {"cross_entropy": 1.0, "open_auc": 0.1},
        ONE_VIEW | LINEAR | {"augment": RANDAUGMENT | {"magnitude": 8}},
        tuned(svhn={"epochs": (67, 67, 66), "optimizer.warmup_epochs": 0.0}),
        "osr.py and bash_scripts/osr_svhn_train.sh of the released code: alpha 2, weight 0.1",
        (
            CROPS,
            NESTEROV,
            "the released code divides cross-entropy, too, by the number of pairs; the mean of pairs is added here",
            "the largest logit; the released loss takes the smallest, unlike its cross-entropy and its score",
            "the weights of datasets but SVHN (0.0005, of a sum over pairs) and CUB (0.05) were not released",
        ),
    ),
    "outlier_exposure": Rival(
        "cross-entropy, and uniform predictions for negative classes that never are in the test",
        "1812.04606",
        {"cross_entropy": 1.0, "outlier_exposure": 0.5},
        ONE_VIEW | LINEAR | {"dataset": {"num_negative": 2}, "evaluate": LOGITS | {"score": "msp"}},
        {"": WIDE | {"epochs": (100,), "optimizer.per_epoch": False}},
        "CIFAR/oe_scratch.py of the released code: WRN-40-2, weight 0.5",
        (
            CROPS,
            "negative classes of the dataset itself; 80 Million Tiny Images was withdrawn",
            "as many negatives in a batch as in the data, not twice as many as known images",
            "without dropout",
        ),
    ),
    "logitnorm": Rival(
        "cross-entropy of logits of one norm",
        "2205.09310",
        {"logit_norm": 1.0},
        ONE_VIEW | LINEAR | {"evaluate": LOGITS | {"score": "msp"}},
        {"": WIDE},
        "the paper and train.py of the released code: WRN-40-2, temperature 0.04 for CIFAR-10",
        (CROPS, "a cosine in place of steps", "without dropout"),
    ),
}


def published(name: str, benchmark: str) -> dict[str, Any]:
    """Flat keys and "epochs" of a method at the published scale of a benchmark.

    A method without settings for the benchmark gets its shared ones.
    """
    settings = RIVALS[name].published
    return dict(settings[""]) | dict(settings.get(benchmark, {}))
