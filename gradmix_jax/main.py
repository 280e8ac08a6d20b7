"""Train and evaluate one experiment.

python -m gradmix_jax.main --config=configs/cifar_osr.py --workdir=runs/cifar10_0
"""

import os
import signal
import sys

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from gradmix_jax import command, evaluate, experiment, files, parallel, report, train
from gradmix_jax import config as config_lib

MODES = ("train", "eval", "train_and_eval")
CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment file; override: --config.KEY=VALUE.")
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run: checkpoints, metrics, results.")
MODE = flags.DEFINE_enum("mode", "train_and_eval", MODES, "What to do.")
MULTIHOST = flags.DEFINE_bool("multihost", False, "Join the other processes of a pod or cluster.")


def main(argv: list[str]) -> None:
    command.no_words(argv)
    if MULTIHOST.value:
        parallel.initialize()
    run(CONFIG.value, WORKDIR.value, MODE.value)


def run(config: ConfigDict, workdir: str, mode: str) -> None:
    """Train in `workdir`, or go on with it, and evaluate; `mode` is one of MODES.

    Raises:
      ValueError: a user's mistake, in one sentence.
      SystemExit: status 143 after SIGTERM, with the state saved.
    """
    _check_workdir(workdir)
    config_lib.validate(config)
    plain = config_lib.to_plain(config)
    specs = experiment.from_config(plain, num_devices=jax.device_count())
    workdir = os.path.abspath(workdir)
    if mode == "train_and_eval" and parallel.is_main_process():
        evaluate.check_data(specs.dataset, specs.evaluate)
    if mode != "eval":
        done, total = train.train(specs, plain, workdir)
        if done < total:
            print(f"stopped at step {done} of {total}, saved; the same command goes on from there", file=sys.stderr)
            sys.exit(128 + signal.SIGTERM)
    if mode != "train" and parallel.is_main_process():
        train.check_same_run(plain, workdir)
        save_results(evaluate.evaluate(plain, workdir), plain, workdir)
    parallel.barrier("results are written")


def _check_workdir(workdir: str) -> None:
    if not workdir or "://" in workdir:
        raise ValueError(f"--workdir is {workdir!r}; allowed: a directory of this machine.")
    if os.path.exists(workdir) and not os.path.isdir(workdir):
        raise ValueError(f"--workdir is {workdir!r}, a file; allowed: a directory, which is made if need be.")


def save_results(results: dict, config: dict, workdir: str) -> None:
    """Write results.json, scores.npz and gallery.npz, and config.json as evaluated; print the table."""
    for name, key in (("scores.npz", "arrays"), ("gallery.npz", "gallery")):
        with files.replacing(os.path.join(workdir, name), "wb") as file:
            np.savez_compressed(file, **results.pop(key))
    # The keys that a run may be evaluated with other values of belong to its results.
    train.write_json(workdir, "config.json", config)
    train.write_json(workdir, "results.json", results | {"environment": train.environment()})
    print(report.table(results, workdir))


if __name__ == "__main__":
    command.run(main, required=("config", "workdir"))
