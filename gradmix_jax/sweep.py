"""Sweeps: many variants of one experiment, each over trials and seeds, in one table with the FLOPs of a step.

python -m gradmix_jax.sweep overview --config=configs/digits_osr.py --workdir=runs/overview --trials=0 --seeds=0,1,2
python -m gradmix_jax.sweep ablation ... --print_commands       print one command per run, for a scheduler; run nothing

overview: every objective, mixing method, view policy and optimizer. ablation: each choice of GradMix, one at a time.
map: whether the map matters (results/plan.md).

A run with results is skipped and an interrupted one is resumed, so rerunning the command completes it.
A directory that holds a run of another config is refused.
"""

import copy
import os
import sys
from typing import NamedTuple

import jax
from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from gradmix_jax import cli, report, run, run_many
from gradmix_jax import config as config_lib
from gradmix_jax.report import contents, formats, runs
from gradmix_jax.report.conditions import conditions
from gradmix_jax.report.tables import Row, build
from gradmix_jax.workdir import replacing, resolve


class Variant(NamedTuple):
    """A row of a sweep: recipe, further config keys, and the method's paper ("": this project's own).

    A key of "phases[*]" is set in every phase.
    """

    recipe: str
    keys: dict[str, object]
    paper: str


GRADMIX = "arXiv 2505.12803"
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

# Every objective, mixing method, view policy and optimizer. Costs are relative to the first row.
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
SWEEPS = {"overview": OVERVIEW, "ablation": ABLATION, "map": MAP}


def folder_of(label: str) -> str:
    """Folder name of a label."""
    return "".join(letter if letter.isalnum() else "_" for letter in label)


def keys_of(config: ConfigDict, variant: Variant) -> dict[str, object]:
    """The keys of a variant, with "phases[*]" expanded to every phase of the experiment."""
    keys = {}
    for key, value in variant.keys.items():
        every = range(len(config.phases)) if "[*]" in key else range(1)
        keys |= {key.replace("[*]", f"[{phase}]"): value for phase in every}
    return keys


def config_of(config: ConfigDict, label: str, variant: Variant) -> ConfigDict:
    """The experiment with a variant's recipe, keys and label."""
    one = config_lib.apply_recipe(copy.deepcopy(config), variant.recipe)
    for key, value in keys_of(config, variant).items():
        config_path.set_value(key, one, value)
    one.name = label
    return one


def run_sweep(name: str, config: ConfigDict, workdir: str, trials: list[int], seeds: list[int]) -> str:
    """Run every variant that has no results yet, one after the other in this process.

    Args:
      name: a key of SWEEPS.
      config: the experiment to vary, without a recipe; its trial, seed and name are ignored.
      workdir: parent directory of the variants' directories.
      trials: class splits.
      seeds: seeds to run each of them with.

    Returns:
      The Markdown table, also written to `<workdir>/<name>.md`.

    Raises:
      ValueError: as `run_many.check_runs`, for any variant, before anything is run.
    """
    failed: dict[str, str] = {}
    for folder, planned in check(name, config, workdir, trials, seeds, num_devices=jax.device_count()):
        failed |= run_many.run_all(planned)
        done = [directory for _, directory in planned if run_many.has_results(directory)]
        if done:
            report.write_summary(done, folder)
    directories = directories_of(name, config, workdir, trials, seeds)
    run_many.check_some(failed, directories)
    if failed:
        print(f"{len(failed)} of {len(directories)} runs failed; rerun the command to repeat them", file=sys.stderr)
    notes = [f"failed: {os.path.relpath(directory, workdir)}: {reason}" for directory, reason in failed.items()]
    text = "\n".join([table(name, config, workdir, trials, seeds), *(f"- {formats.escape_markdown(n)}" for n in notes)])
    with replacing(os.path.join(workdir, f"{name}.md")) as file:
        file.write(text + "\n")
    return text


def check(
    name: str,
    config: ConfigDict,
    workdir: str,
    trials: list[int],
    seeds: list[int],
    *,
    num_devices: int,
    from_data: bool = True,
) -> list[tuple[str, list[tuple[ConfigDict, str]]]]:
    """(directory, its runs) of every variant; raises ValueError unless all of them can run on this many devices."""
    checked, options = [], dict(num_devices=num_devices, from_data=from_data)
    for label, variant in SWEEPS[name].items():
        folder = os.path.join(workdir, folder_of(label))
        one = config_of(config, label, variant)
        checked.append((folder, run_many.check_runs(one, folder, trials, seeds, **options)))
    return checked


def directories_of(name: str, config: ConfigDict, workdir: str, trials: list[int], seeds: list[int]) -> list[str]:
    """The workdirs of all runs of a sweep."""
    folders = [os.path.join(workdir, folder_of(label)) for label in SWEEPS[name]]
    return [directory for folder in folders for _, directory in run_many.runs(config, folder, trials, seeds)]


def table(name: str, config: ConfigDict, workdir: str, trials: list[int], seeds: list[int]) -> str:
    """Markdown: every variant that has results with its keys, source, cost and results, and their conditions."""
    variants = SWEEPS[name]
    methods = runs.load(list(filter(run_many.has_results, directories_of(name, config, workdir, trials, seeds))))
    costs = {method.label: _flops(method.example) for method in methods}
    first = next(iter(costs.values()))

    def row(method):
        variant, relative = variants[method.label], costs[method.label] / first
        return Row((method.label, _words(variant), variant.paper, f"{relative:.3f} x"), method, dict)

    heads, metrics = ("method", "config", "source", "FLOPs"), [contents.ACCURACY, contents.AUROC, contents.OSCR]
    section = formats.markdown(build(name, f"Sweep: {name}", heads, metrics, [row(method) for method in methods]))
    notes = [
        f"FLOPs of a train step by XLA's count, relative to {next(iter(costs))}; the body of a loop (the operations of "
        "RandAugment and AugMix) is counted once.",
        *conditions(methods),
    ]
    return "\n".join([section, *(f"- {line}" for line in notes)])


def _words(variant: Variant) -> str:
    return ", ".join([variant.recipe, *(f"{key}={value}" for key, value in variant.keys.items())])


def _flops(one: runs.Run) -> float:
    """FLOPs of a step of a finished run, on one device."""
    experiment = config_lib.from_config(one.config, num_devices=1)
    sizes = dict(
        num_classes=len(one.results["known_classes"]),
        num_images=one.results["num_train"] + one.results.get("num_negative", 0),
    )
    return run.step_cost(experiment, **sizes).flops


def print_commands(
    name: str, config: ConfigDict, config_flags: list[str], workdir: str, trials: list[int], seeds: list[int]
) -> None:
    """Print the commands that `run_sweep` would run for a config given by these flags."""
    check(name, config, workdir, trials, seeds, num_devices=1, from_data=False)  # they run elsewhere
    path = next(word for word in config_flags if word.startswith("--config="))
    others = [word for word in config_flags if word != path]
    for label, variant in SWEEPS[name].items():
        changes = [f"--config.{key}={value}" for key, value in keys_of(config, variant).items()]
        words = [f"{path}:{variant.recipe}", *others, *changes, f"--config.name={label}"]
        cli.print_commands(words, os.path.join(workdir, folder_of(label)), trials, seeds)


def _main(argv: list[str]) -> None:
    if len(argv) != 2 or argv[1] not in SWEEPS:
        raise ValueError(f"name one sweep, {', '.join(SWEEPS)}; got {' '.join(argv[1:]) or 'none'!r}.")
    trials, seeds = cli.numbers("trials"), cli.numbers("seeds")
    for word in cli.config_words():
        # Keys set by this recipe but not by a row's recipe would remain in that row.
        if word.startswith("--config=") and ":" in word:
            raise ValueError(f"every row has its own recipe; give a config without one, got {word!r}.")
    if flags.FLAGS.print_commands:
        print_commands(argv[1], flags.FLAGS.config, cli.config_words(), flags.FLAGS.workdir, trials, seeds)
    else:
        of = (argv[1], flags.FLAGS.config, resolve(flags.FLAGS.workdir), trials, seeds)
        print(run_sweep(*of))
        if not all(map(run_many.complete, directories_of(*of))):
            sys.exit(cli.PARTS_FAILED)


if __name__ == "__main__":
    cli.define_experiment_flags()
    cli.define_protocol_flags()
    cli.run(_main, required=("config", "workdir"))
