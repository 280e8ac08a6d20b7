"""Run many variants of one experiment, each over trials and seeds, and print one table with the FLOPs of a step.

python -m gradmix_jax.sweep overview --config=configs/digits_osr.py --workdir=runs/overview --trials=0 --seeds=0,1,2
python -m gradmix_jax.sweep ablation ... --print_commands       print one command per run, for a scheduler; run nothing
python -m gradmix_jax.sweep overview ... --budget=flops         choose epochs so that every variant takes the same FLOPs

overview: every objective, mixing method, view policy and optimizer, and published rivals. main: seven of its rows.
ablation: each choice of GradMix, one at a time. map: whether the map matters (results/plan.md).

A run with results is skipped and an interrupted one is resumed, so rerunning the command completes it.
A directory that holds a run of another config is refused.
"""

import copy
import os
import sys
from collections.abc import Iterable

import jax
from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from gradmix_jax import cli, objectives, report, run_many
from gradmix_jax import config as config_lib
from gradmix_jax.config.variants import MAP, OVERVIEW, REFERENCES, SWEEPS, Variant
from gradmix_jax.report import contents, formats, raw, runs
from gradmix_jax.report.conditions import conditions
from gradmix_jax.report.tables import Row, build
from gradmix_jax.workdir import replacing, resolve

__all__ = ["MAP", "OVERVIEW", "SWEEPS", "Variant", "check", "config_of", "folder_of", "run_sweep", "within"]

# What all variants share: the epochs of the experiment, or the FLOPs of the sweep's reference.
BUDGETS = ("epochs", "flops")


def folder_of(label: str) -> str:
    """Folder name of a label."""
    return "".join(letter if letter.isalnum() else "_" for letter in label)


def keys_of(config: ConfigDict, variant: Variant) -> dict[str, object]:
    """The keys of a variant, with "phases[*]" expanded to every phase of the experiment."""
    keys = {}
    for key, value in variant.keys.items():
        every = range(len(config.phases)) if "[*]" in key else range(1)
        keys |= {key.replace("[*]", f"[{phase}]"): value for phase in every}
    return keys | {f"phases[{phase}].epochs": epochs for phase, epochs in enumerate(variant.epochs)}


def config_of(config: ConfigDict, label: str, variant: Variant) -> ConfigDict:
    """The experiment with a variant's recipe, keys and label."""
    one = config_lib.apply_recipe(copy.deepcopy(config), variant.recipe)
    for key, value in keys_of(config, variant).items():
        config_path.set_value(key, one, value)
    one.name = label
    return one


def within(budget: str, name: str, config: ConfigDict, workdir: str, trial: int) -> dict[str, Variant]:
    """The variants of a sweep within one of BUDGETS; FLOPs are counted for one class split, before anything runs."""
    variants = SWEEPS[name]
    if budget == "epochs":
        return variants
    configs = {label: config_of(config, label, variant) for label, variant in variants.items()}
    for one in configs.values():
        one.dataset.trial = trial
    epochs = run_many.epochs_of_equal_flops(configs, workdir, REFERENCES[name])
    return {label: variant._replace(epochs=epochs[label]) for label, variant in variants.items()}


def run_sweep(
    name: str, config: ConfigDict, workdir: str, trials: list[int], seeds: list[int], budget: str = "epochs"
) -> str:
    """Run every variant that has no results yet, one after the other in this process.

    Args:
      name: a key of SWEEPS.
      config: the experiment to vary, without a recipe; its trial, seed and name are ignored.
      workdir: parent directory of the variants' directories.
      trials: class splits.
      seeds: seeds to run each of them with.
      budget: one of BUDGETS.

    Returns:
      The Markdown table, also written to `<workdir>/<name>.md`; `<workdir>/<name>.csv` has a row for every run.

    Raises:
      ValueError: as `run_many.check_runs`, for any variant, before anything is run.
    """
    failed: dict[str, run_many.Failure] = {}
    variants = within(budget, name, config, workdir, trials[0])
    for folder, planned in check(variants, config, workdir, trials, seeds, num_devices=jax.device_count()):
        failed |= run_many.run_all(planned)
        done = [directory for _, directory in planned if run_many.has_results(directory)]
        if done:
            report.write_summary(done, folder)
    directories = directories_of(variants, config, workdir, trials, seeds)
    run_many.check_some(failed, directories)
    if failed:
        print(f"{len(failed)} of {len(directories)} runs failed; rerun the command to repeat them", file=sys.stderr)
    notes = [f"failed: {os.path.relpath(folder, workdir)}: {failure.reason}" for folder, failure in failed.items()]
    # By their folders, because a copied run may bear the name that it has in another sweep.
    labels = {folder_of(label): label for label in variants}
    names = {each: labels[os.path.basename(os.path.dirname(each))] for each in directories}
    methods = runs.load(list(filter(run_many.has_results, directories)), names)
    text = "\n".join([table(name, variants, methods), *(f"- {formats.escape_markdown(n)}" for n in notes)])
    for ending, content in ((".md", text + "\n"), (".csv", raw.rows([(config.dataset.name, methods)]))):
        with replacing(os.path.join(workdir, name + ending)) as file:
            file.write(content)
    return text


def check_experiment(config: ConfigDict) -> None:
    """Raises ValueError for an experiment with other objectives than the variants set: its rows would train both."""
    names = {name for entry in config.phases for name in objectives.OBJECTIVES if entry.get(name, 0.0)}
    if names - {"supcon"}:
        raise ValueError(
            "a sweep varies SupCon and the objective of objective.ssl, got phases with "
            f"{', '.join(sorted(names - {'supcon'}))}; use a config without them, such as configs/cifar_osr.py."
        )


def check(
    variants: dict[str, Variant],
    config: ConfigDict,
    workdir: str,
    trials: list[int],
    seeds: list[int],
    *,
    num_devices: int,
    from_data: bool = True,
) -> list[tuple[str, list[tuple[ConfigDict, str]]]]:
    """(directory, its runs) of every variant; raises ValueError unless all of them can run on this many devices."""
    check_experiment(config)
    checked, options = [], dict(num_devices=num_devices, from_data=from_data)
    for label, variant in variants.items():
        folder = os.path.join(workdir, folder_of(label))
        one = config_of(config, label, variant)
        checked.append((folder, run_many.check_runs(one, folder, trials, seeds, **options)))
    return checked


def directories_of(
    labels: Iterable[str], config: ConfigDict, workdir: str, trials: list[int], seeds: list[int]
) -> list[str]:
    """The workdirs of all runs of a sweep's variants."""
    folders = [os.path.join(workdir, folder_of(label)) for label in labels]
    return [directory for folder in folders for _, directory in run_many.runs(config, folder, trials, seeds)]


def table(name: str, variants: dict[str, Variant], methods: list[runs.Method]) -> str:
    """Markdown: every variant that has results, with its keys, source, cost and results, and their conditions.

    Within a budget of FLOPs, also its epochs and the FLOPs of all its steps.
    """
    costs = {method.label: _flops(method.example) for method in methods}
    totals = {method.label: costs[method.label] * method.example.results["step"] for method in methods}
    scores = {method.label: _score(method.example) for method in methods}
    several = len(set(scores.values())) > 1
    with_negatives = [method.label for method in methods if method.example.config["dataset"]["num_negative"]]
    first, scaled = next(iter(costs)), any(variant.epochs for variant in variants.values())
    reference = REFERENCES[name] if scaled and REFERENCES[name] in totals else first

    def row(method):
        label, variant = method.label, variants[method.label]
        words = [label, _words(variant), variant.paper, f"{costs[label] / costs[first]:.3f} x"]
        if several:
            words.append(scores[label])
        if scaled:
            words += [" + ".join(map(str, variant.epochs)), f"{totals[label] / totals[reference]:.3f} x"]
        return Row(tuple(words), method, dict, block=None if label in with_negatives else "")

    heads = (
        *("method", "config", "source", "FLOPs"),
        *(("score",) if several else ()),
        *(("epochs", "FLOPs of all steps") if scaled else ()),
    )
    metrics = [contents.ACCURACY, contents.AUROC, contents.OSCR]
    section = formats.markdown(build(name, f"Sweep: {name}", heads, metrics, [row(method) for method in methods]))
    negatives = "some of the unknown classes train as negatives and are not tested, so it is compared with nothing."
    notes = [
        f"FLOPs of a train step by XLA's count, including every iteration of a loop, relative to {first}.",
        *([f"Epochs: those whose FLOPs are closest to those of {reference}."] if scaled else []),
        *[f"{label}: {negatives}" for label in with_negatives],
        *conditions(methods),
    ]
    return "\n".join([section, *(f"- {line}" for line in notes)])


def _score(one: runs.Run) -> str:
    return f"{one.config['evaluate']['score']}, {one.config['evaluate']['feature']}"


def _words(variant: Variant) -> str:
    return ", ".join([variant.recipe, *(f"{key}={value}" for key, value in variant.keys.items())])


def _flops(one: runs.Run) -> float:
    """FLOPs of a step of a finished run, on one device."""
    experiment = config_lib.from_config(one.config, num_devices=1)
    sizes = dict(
        num_classes=len(one.results["known_classes"]),
        num_images=one.results["num_train"] + one.results.get("num_negative", 0),
    )
    return run_many.step_flops(experiment, **sizes)


def print_commands(
    variants: dict[str, Variant],
    config: ConfigDict,
    config_flags: list[str],
    workdir: str,
    trials: list[int],
    seeds: list[int],
) -> None:
    """Print the commands that would run the variants of a config given by these flags."""
    check(variants, config, workdir, trials, seeds, num_devices=1, from_data=False)  # the commands run elsewhere
    path = next(word for word in config_flags if word.startswith("--config="))
    others = [word for word in config_flags if word != path]
    for label, variant in variants.items():
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
    name, config, workdir, budget = argv[1], flags.FLAGS.config, flags.FLAGS.workdir, flags.FLAGS.budget
    if flags.FLAGS.print_commands:
        variants = within(budget, name, config, workdir, trials[0])
        print_commands(variants, config, cli.config_words(), workdir, trials, seeds)
    else:
        workdir = resolve(workdir)
        print(run_sweep(name, config, workdir, trials, seeds, budget))
        if not all(map(run_many.complete, directories_of(SWEEPS[name], config, workdir, trials, seeds))):
            sys.exit(cli.PARTS_FAILED)


if __name__ == "__main__":
    cli.define_experiment_flags()
    cli.define_protocol_flags()
    flags.DEFINE_enum(
        "budget",
        "epochs",
        BUDGETS,
        "What all variants share: the experiment's epochs, or the FLOPs of the sweep's reference, with the number of "
        "epochs rounded.",
    )
    cli.run(_main, required=("config", "workdir"))
