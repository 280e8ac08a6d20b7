"""The variants that `gradmix_jax.sweep` runs: named sets of a recipe and config keys."""

from typing import NamedTuple


class Variant(NamedTuple):
    """A row of a sweep: recipe, further config keys, and the method's paper ("": this project's own).

    A key of "phases[*]" is set in every phase. `epochs` are those of each phase if the budget sets them.
    """

    recipe: str
    keys: dict[str, object]
    paper: str
    epochs: tuple[int, ...] = ()


GRADMIX = "2505.12803"
# Set in every phase, because a phase with other weights would train another method.
SUPCON_ONLY = {"phases[*].supcon": 1.0, "phases[*].ssl": 0.0}
SSL_ONLY = {"phases[*].supcon": 0.0}
CROSS_ENTROPY = {
    "model.classifier": "linear",
    "phases[*].cross_entropy": 1.0,
    "phases[*].supcon": 0.0,
    "phases[*].ssl": 0.0,
}
MOCO = {"objective.ssl": "moco", "objective.options.moco.queue_size": 2048, "objective.options.moco.momentum": 0.99}
BARLOW = {"objective.ssl": "barlow_twins"}
SGD = {"optimizer.name": "sgd", "optimizer.learning_rate": 0.05, "optimizer.warmup_epochs": 5.0}
LARS = {"optimizer.name": "lars", "optimizer.learning_rate": 0.5, "optimizer.warmup_epochs": 5.0}
FULL_COSINE = {"optimizer.final_fraction": 0.0, "optimizer.weight_decay": 1e-4}

# Every objective, mixing method, view policy, optimizer and published rival. Costs are relative to the first row.
OVERVIEW = {
    "none": Variant("none", {}, "SupCon 2004.11362 + SimCLR 2002.05709"),
    "SupCon": Variant("none", SUPCON_ONLY, "2004.11362"),
    "SimCLR": Variant("none", SSL_ONLY, "2002.05709"),
    "cross-entropy": Variant("none", CROSS_ENTROPY, ""),
    "cross-entropy, smoothed": Variant("none", CROSS_ENTROPY | {"objective.label_smoothing": 0.1}, "1512.00567"),
    "SupCon + MoCo": Variant("none", MOCO, "2003.04297"),
    "SupCon + Barlow Twins": Variant("none", BARLOW, "2103.03230"),
    "mixup": Variant("mixup", {}, "1710.09412"),
    "CutMix": Variant("cutmix", {}, "1905.04899"),
    "Cutout": Variant("cutout", {}, "1708.04552"),
    "SaliencyMix": Variant("saliencymix", {}, "2006.01791"),
    "FMix": Variant("fmix", {}, "2002.12047"),
    "ResizeMix": Variant("resizemix", {}, "2012.11101"),
    "manifold mixup": Variant("manifold_mixup", {}, "1806.05236"),
    "Attentive CutMix": Variant("attentive_cutmix", {}, "2003.13048"),
    "PuzzleMix, batched": Variant("puzzlemix", {}, "2009.06962"),
    "KeepAugment, Cutout": Variant("keep_cutout", {}, "2011.11778"),
    "BackMix": Variant("backmix", {}, "2503.17717"),
    "RandAugment": Variant("none", {"augment.policy": "randaugment"}, "1909.13719"),
    "AugMix": Variant("none", {"augment.policy": "augmix"}, "1912.02781"),
    "random map": Variant("random", {}, "control"),
    "Grad-CAM mixing": Variant("grad_cam", {}, "1610.02391"),
    "GradMix, layer": Variant("layer", {}, GRADMIX),
    "GradMix, released": Variant("released", {}, GRADMIX),
    "GradMix, input": Variant("input", {}, ""),
    "GradMix, mixed SupCon": Variant("input", {"objective.mixed_supcon": True}, GRADMIX),
    "GradMix, micro batches": Variant("input", {"train.micro_batch_size": 16}, "2101.06983"),
    "GradMix, smooth borders": Variant("smooth", {}, ""),
    "GradMix, integrated gradients": Variant("integrated_gradients", {}, "1703.01365"),
    "GradMix, SmoothGrad": Variant("smoothgrad", {}, "1706.03825"),
    "GradMix, Eigen-CAM": Variant("eigen_cam", {}, "2008.00299"),
    "ViT": Variant("vit_none", {}, "2010.11929"),
    "ViT, CutMix": Variant("vit_cutmix", {}, "1905.04899"),
    "ViT, TransMix": Variant("transmix", {}, "2111.09833"),
    "ViT, TokenMix": Variant("tokenmix", {}, "2207.08409"),
    "ViT, GradMix on tokens": Variant("tokens", {}, ""),
    "ViT, attention rollout": Variant("rollout", {}, "2005.00928"),
    "SimCLR, GradMix": Variant("input", SSL_ONLY, ""),
    "MoCo, GradMix": Variant("input", MOCO, ""),
    "Barlow Twins, GradMix": Variant("input", BARLOW, ""),
    "cross-entropy, GradMix": Variant("input", CROSS_ENTROPY | {"attribution.loss": "training"}, ""),
    "SGD": Variant("input", SGD | FULL_COSINE, ""),
    "LARS": Variant("input", LARS | FULL_COSINE, "1708.03888"),
    "averaged weights": Variant("input", {"optimizer.ema": 0.99}, ""),
    "cross-entropy, one view": Variant("cross_entropy", {}, ""),
    "maximum logit, tuned": Variant("mls", {}, "2110.06207"),
    "ARPL": Variant("arpl", {}, "2103.00953"),
    "GCPL": Variant("gcpl", {}, "1805.03438"),
    "ConOSR": Variant("conosr", {}, "AAAI 2023"),
    "NegCosSch": Variant("negcossch", {}, "2505.18137"),
    "NegCosSch, cross-entropy": Variant("negcossch_ce", {}, "2505.18137"),
    "SpHOR": Variant("sphor", {}, "2503.08049"),
    "OpenAUC": Variant("openauc", {}, "2210.13458"),
    "outlier exposure": Variant("outlier_exposure", {}, "1812.04606"),
    "LogitNorm": Variant("logitnorm", {}, "2205.09310"),
}
# Each choice of GradMix, varied one at a time around both recipes.
ABLATION = {
    "input": Variant("input", {}, ""),
    "layer": Variant("layer", {}, GRADMIX),
    "layer, sign -1": Variant("layer", {"attribution.sign": -1}, GRADMIX),
    "layer, stage 3": Variant("layer", {"attribution.stages": ("stage3",)}, GRADMIX),
    "layer, stage 4": Variant("layer", {"attribution.stages": ("stage4",)}, GRADMIX),
    "layer, all stages": Variant("layer", {"attribution.stages": ("stage1", "stage2", "stage3", "stage4")}, ""),
    "layer, threshold": Variant("layer", {"mix.mask": "threshold"}, ""),
    "layer, partner's own pixels": Variant("layer", {"mix.fill": "partner"}, ""),
    "layer, noise": Variant("layer", {"mix.fill": "noise"}, GRADMIX),
    "layer, zeros": Variant("layer", {"mix.fill": "zeros"}, ""),
    "layer, maps normalized per batch": Variant("layer", {"attribution.norm": "batch"}, ""),
    "input, box": Variant("input", {"mix.mask": "box"}, ""),
    "input, mean color": Variant("input", {"mix.fill": "mean"}, ""),
    "input, one draw a batch": Variant("input", {"mix.keep_draw": "batch"}, ""),
    "input, keep 0.3 to 0.7": Variant("input", {"mix.keep_range": (0.3, 0.7)}, ""),
    "input, keep 0.7 to 0.95": Variant("input", {"mix.keep_range": (0.7, 0.95)}, ""),
    "input, first view only": Variant("input", {"mix.mixed_views": "first"}, ""),
    "input, no smoothing": Variant("input", {"attribution.smoothing": 1}, ""),
    "input, times image": Variant("input", {"attribution.method": "gradient_x_input"}, ""),
    "input, map of SupCon": Variant("input", {"attribution.loss": "supcon"}, ""),
    "input, map of the training loss": Variant("input", {"attribution.loss": "training"}, ""),
    "input, map every 4th step": Variant("input", {"attribution.every": 4}, ""),
    "input, detached anchors": Variant("input", {"attribution.loss": "training", "objective.detach_anchors": True}, ""),
    "input, mixed SupCon": Variant("input", {"objective.mixed_supcon": True}, ""),
}
# Does the map matter? The methods of results/plan.md under both of its objectives.
MAXIMUM_LOGIT = {"evaluate.feature": "logits", "evaluate.score": "max_logit", "attribution.loss": "training"}
MAP = {
    f"{recipe}, {objective}": Variant(recipe, keys, "")
    for objective, keys in {"contrastive": {}, "cross-entropy": CROSS_ENTROPY | MAXIMUM_LOGIT}.items()
    for recipe in ("none", "cutmix", "random", "input", "layer")
}
# The rows of the overview for data on which all of them take too long.
_MAIN = ("none", "CutMix", "random map", "GradMix, layer", "GradMix, input", "cross-entropy", "cross-entropy, GradMix")
MAIN = {label: OVERVIEW[label] for label in _MAIN}
SWEEPS = {"overview": OVERVIEW, "main": MAIN, "ablation": ABLATION, "map": MAP}
# The variant whose FLOPs set the budget of all others.
REFERENCES = {"overview": "GradMix, input", "main": "GradMix, input", "ablation": "input", "map": "input, contrastive"}
