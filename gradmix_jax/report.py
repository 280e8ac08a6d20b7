"""Tables of results: of one run, and of many.

python -m gradmix_jax.report runs/digits/*/trial* --out=results.md
"""

import statistics
from typing import Any

from absl import flags

from gradmix_jax import command, metrics
from gradmix_jax.config import RECIPES, flatten, read

ROWS = {
    "accuracy": "accuracy, known classes",
    "auroc": "AUROC",
    "oscr": "OSCR",
    "fpr95_unknown_positive": "FPR at 95 % TPR, unknown positive",
    "fpr95_known_positive": "FPR at 95 % TPR, known positive",
    "average_precision_known": "AUPR, known positive",
    "average_precision_unknown": "AUPR, unknown positive",
}
COLUMNS = ("accuracy", "auroc", "oscr", "fpr95_known_positive")
# What may differ between runs that are averaged.
AVERAGED_OVER = ("seed", "dataset.trial")


def table(results: dict[str, Any], workdir: str) -> str:
    """A plain-text table of one evaluation, and where its files lie.

    Args:
      results: as `evaluate.evaluate` returns them.
      workdir: directory of the run.

    Returns:
      Lines to print.
    """
    width = max(map(len, ROWS.values()))
    head = (
        f"open set evaluation at step {results['step']}: {len(results['known_classes'])} known classes "
        f"({results['num_known']} images), {results['num_unknown']} unknown images, trial {results['trial']}"
    )
    lines = [head, "-" * (width + 9)]
    lines += [f"{label:<{width}}  {results[name]:7.4f}" for name, label in ROWS.items()]
    lines += ["-" * (width + 9), f"score: {results['score']}", f"results: {workdir}/results.json, scores.npz"]
    return "\n".join(lines)


def summary(workdirs: list[str]) -> str:
    """A Markdown table of finished runs: mean +- sample standard deviation over trials and seeds, and n.

    Runs are averaged when their configs differ in trial and seed only; each feature has a row of its own. Below the
    table stand the data, the hardware, the versions and the commits that the numbers belong to.

    Args:
      workdirs: directories of runs that have been evaluated.

    Returns:
      The lines.

    Raises:
      ValueError: a directory without results, or the same trial and seed twice in one row.
    """
    groups: dict[str, list[tuple[dict, dict]]] = {}
    for workdir in workdirs:
        config, results = (read(workdir, name) for name in ("config.json", "results.json"))
        groups.setdefault(_method(config, results), []).append((config, results))
    lines = [
        "| method | feature | " + " | ".join(ROWS[name] for name in COLUMNS) + " | n |",
        "|---" * (len(COLUMNS) + 3) + "|",
    ]
    for label, runs in groups.items():
        _check_distinct(label, [config for config, _ in runs])
        for feature in runs[0][1]["by_feature"]:
            values = [results["by_feature"][feature] for _, results in runs]
            cells = [_mean_and_deviation([value[name] for value in values]) for name in COLUMNS]
            lines.append(f"| {label} | {feature} | " + " | ".join(cells) + f" | {len(runs)} |")
    everything = [run for runs in groups.values() for run in runs]
    return "\n".join([*lines, "", *_conditions(everything)])


def _method(config: dict[str, Any], results: dict[str, Any]) -> str:
    """The recipe that a config follows; "untrained" at step 0."""
    if results["step"] == 0:
        return "untrained"
    flat = flatten(config)
    wanted = {name: flatten(recipe) for name, recipe in RECIPES.items()}
    matching = [name for name, keys in wanted.items() if all(flat[key] == value for key, value in keys.items())]
    # The recipe that says most about the config: `released` has all keys of `layer` and more.
    return max(matching, key=lambda name: len(wanted[name]), default=f"{flat['mix.method']}, other keys")


def _check_distinct(label: str, configs: list[dict[str, Any]]) -> None:
    flats = [flatten(config) for config in configs]
    for flat in flats:
        for key, value in flats[0].items():
            if key not in AVERAGED_OVER and flat[key] != value:
                raise ValueError(
                    f"runs of {label!r} differ in {key} ({value!r} and {flat[key]!r}); allowed: one table for each."
                )
    keys = [tuple(flat[key] for key in AVERAGED_OVER) for flat in flats]
    if len(set(keys)) < len(keys):
        raise ValueError(f"two runs of {label!r} have the same trial and seed; allowed: each once.")


def _mean_and_deviation(values: list[float]) -> str:
    mean = statistics.fmean(values)
    return f"{mean:.4f}" if len(values) == 1 else f"{mean:.4f} ± {statistics.stdev(values):.4f}"


def _conditions(runs: list[tuple[dict, dict]]) -> list[str]:
    """Distinct values of everything that a number has to be read with."""
    unique = lambda values: ", ".join(dict.fromkeys(map(str, values)))
    environments = [results["environment"] for _, results in runs]
    devices = [f"{len(e['devices'])} x {e['devices'][0]} ({e['cpu_count']} CPU cores)" for e in environments]
    versions = ["jax " + e["packages"]["jax"] + ", flax " + e["packages"]["flax"] for e in environments]
    commits = [e["commit"][:12] + (" with changes" if e["uncommitted_changes"] else "") for e in environments]
    return [
        f"- data: {unique(config['dataset']['name'] for config, _ in runs)}; "
        f"trials {unique(config['dataset']['trial'] for config, _ in runs)}; "
        f"seeds {unique(config['seed'] for config, _ in runs)}",
        f"- score: {unique(results['score'] for _, results in runs)}; {metrics.SCORE_ORIENTATION}",
        f"- steps: {unique(results['step'] for _, results in runs)}; hardware: {unique(devices)}; {unique(versions)}; "
        f"commit: {unique(commits)}",
    ]


def main(argv: list[str]) -> None:
    if len(argv) < 2:
        raise ValueError("report got no directories; allowed: workdirs of runs that have been evaluated.")
    text = summary(argv[1:])
    print(text)
    if flags.FLAGS.out:
        with open(flags.FLAGS.out, "w") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Markdown file to write besides printing.")
    command.run(main)
