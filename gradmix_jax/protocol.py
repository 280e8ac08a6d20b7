"""Every trial of an experiment with every seed, and the table of all of them.

python -m gradmix_jax.protocol --config=configs/digits_osr.py --workdir=runs/digits --trials=0,1,2,3,4 --seeds=0,1,2
python -m gradmix_jax.protocol ... --print_commands        one command a run, for a scheduler; runs nothing

A run that has results is skipped and one that was interrupted goes on, so the same command finishes what it began.
Directories of runs of another config are refused.
"""

import copy
import os
import shlex
import sys
from collections.abc import Iterator

import jax
from absl import flags
from ml_collections import ConfigDict

from gradmix_jax import command, experiment, main, report, state, train
from gradmix_jax import config as config_lib
from gradmix_jax.datasets import order


def runs(config: ConfigDict, workdir: str, trials: list[int], seeds: list[int]) -> Iterator[tuple[ConfigDict, str]]:
    """(config, workdir) of every run: `<workdir>/trial<trial>_seed<seed>`."""
    for trial in trials:
        for seed in seeds:
            one = copy.deepcopy(config)
            one.dataset.trial, one.seed = trial, seed
            yield one, os.path.join(workdir, f"trial{trial}_seed{seed}")


def run(config: ConfigDict, workdir: str, trials: list[int], seeds: list[int]) -> str:
    """Run what has no results yet, one after the other in this process.

    Args:
      config: the experiment; its own trial and seed do not matter.
      workdir: directory that the runs' workdirs are in.
      trials: class splits to run.
      seeds: seeds to run each of them with.

    Returns:
      The Markdown table over all of them, which is also written to `<workdir>/summary.md`.

    Raises:
      ValueError: a config that cannot work, or a directory that holds a run of another one, finished or not; found
        before anything is run.
    """
    planned = check(config, workdir, trials, seeds, num_devices=jax.device_count())
    workdirs = [directory for _, directory in planned]
    for one, directory in planned:
        if not _finished(one, directory):
            print(f"trial {one.dataset.trial}, seed {one.seed}: {directory}", file=sys.stderr)
            main.run(one, directory, "train_and_eval")
    table = report.summary(workdirs)
    with open(os.path.join(workdir, "summary.md"), "w") as file:
        file.write(table + "\n")
    return table


def check(
    config: ConfigDict, workdir: str, trials: list[int], seeds: list[int], *, num_devices: int
) -> list[tuple[ConfigDict, str]]:
    """What `runs` gives, where all of it can be run on so many devices; raises ValueError as `run`."""
    planned = list(runs(config, workdir, trials, seeds))
    for one, directory in planned:
        config_lib.validate(one)
        plain = config_lib.to_plain(one)
        experiment.from_config(plain, num_devices=num_devices)
        train.check_same_run(plain, directory)
    return planned


def _finished(config: ConfigDict, workdir: str) -> bool:
    """Whether there are results of the last step, evaluated as the config says."""
    if not os.path.exists(os.path.join(workdir, "results.json")):
        return False
    results, wanted = config_lib.read(workdir, "results.json"), config_lib.to_plain(config)
    steps_per_epoch = order.steps_per_epoch(results["num_train"], config.train.batch_size)
    whole = results["step"] == state.total_steps(config.phases, steps_per_epoch)
    return whole and config_lib.read(workdir)["evaluate"] == wanted["evaluate"]


def print_commands(words_of_config: list[str], workdir: str, trials: list[int], seeds: list[int]) -> None:
    """The commands that `run` would carry out, with these --config flags."""
    for trial in trials:
        for seed in seeds:
            words = [
                *("python", "-m", "gradmix_jax.main"),
                *words_of_config,
                f"--config.dataset.trial={trial}",
                f"--config.seed={seed}",
                f"--workdir={workdir}/trial{trial}_seed{seed}",
            ]
            print(shlex.join(words))


def define_flags() -> None:
    """The flags of a command that goes through trials and seeds."""
    flags.DEFINE_list("trials", "0,1,2,3,4", "Class splits.")
    flags.DEFINE_list("seeds", "0", "Seeds for each of them.")
    flags.DEFINE_bool("print_commands", False, "Print one command a run and run nothing.")


def config_flags() -> list[str]:
    """The --config flags of this command line, each in one word."""
    words = iter(sys.argv[1:])
    return [word if "=" in word else f"{word}={next(words, '')}" for word in words if word.startswith("--config")]


def numbers(name: str) -> list[int]:
    """The value of the flag `trials` or `seeds`. Raises ValueError for anything but numbers."""
    words = getattr(flags.FLAGS, name)
    if not words or not all(word.isdigit() for word in words):
        raise ValueError(f"--{name} is {','.join(words)!r}; allowed: numbers with commas between them.")
    if len(set(map(int, words))) < len(words):
        raise ValueError(f"--{name} is {','.join(words)!r}; allowed: every number once.")
    return [int(word) for word in words]


def _main(argv: list[str]) -> None:
    command.no_words(argv)
    trials, seeds, workdir = numbers("trials"), numbers("seeds"), main.WORKDIR.value
    if flags.FLAGS.print_commands:
        check(main.CONFIG.value, workdir, trials, seeds, num_devices=1)  # those that they will run on are elsewhere
        print_commands(config_flags(), workdir, trials, seeds)
    else:
        print(run(main.CONFIG.value, workdir, trials, seeds))


if __name__ == "__main__":
    define_flags()
    command.run(_main, required=("config", "workdir"))
