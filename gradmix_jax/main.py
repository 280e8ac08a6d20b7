"""Train and evaluate one experiment.

python -m gradmix_jax.main --config=configs/cifar_osr.py --workdir=runs/cifar10_0
"""

import sys

from absl import flags

from gradmix_jax import cli, report, run
from gradmix_jax.training import mapping


def main(argv: list[str]) -> None:
    cli.no_words(argv)
    if flags.FLAGS.multihost:
        mapping.initialize()
    results = run.run(flags.FLAGS.config, flags.FLAGS.workdir, flags.FLAGS.mode)
    if results:
        print(report.table(results, flags.FLAGS.workdir))
        if results["failed"]:
            sys.exit(cli.PARTS_FAILED)


if __name__ == "__main__":
    cli.define_experiment_flags()
    flags.DEFINE_enum("mode", "train_and_eval", run.MODES, "What to do.")
    flags.DEFINE_bool("multihost", False, "Join the other processes of a pod or cluster.")
    cli.run(main, required=("config", "workdir"))
