"""Train and evaluate one experiment.

python -m gradmix_jax.main --config=configs/cifar_osr.py --workdir=runs/cifar10_0                  train, then evaluate
python -m gradmix_jax.main --config=configs/cifar_osr.py --workdir=runs/cifar10_0 --mode=eval      evaluate again

`gradmix eval` is `gradmix train --mode=eval`. The same command resumes an interrupted run.
"""

import sys

from absl import flags

from gradmix_jax import cli, pod, report, run


def main(argv: list[str]) -> None:
    cli.no_words(argv)
    given = {name: getattr(flags.FLAGS, name) for name in ("coordinator", "num_processes", "process_id")}
    # Any of them: otherwise every host would train alone, without a word.
    if flags.FLAGS.multihost or any(value not in (None, "") for value in given.values()):
        pod.initialize(**given)
    results = run.run(flags.FLAGS.config, flags.FLAGS.workdir, flags.FLAGS.mode)
    if results:
        print(report.table(results, flags.FLAGS.workdir))
        if results["failed"]:
            sys.exit(cli.PARTS_FAILED)


if __name__ == "__main__":
    cli.define_experiment_flags()
    flags.DEFINE_enum("mode", "train_and_eval", run.MODES, "Train, evaluate, or both.")
    flags.DEFINE_bool("multihost", False, "Join the other processes of a pod or cluster, found by its environment.")
    flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, if the environment does not provide it.")
    flags.DEFINE_integer("num_processes", None, "Number of processes on all hosts, with --coordinator.")
    flags.DEFINE_integer("process_id", None, "Index of this process, from 0, with --coordinator.")
    cli.run(main, required=("config", "workdir"))
