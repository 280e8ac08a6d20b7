"""Run every trial of an experiment with every seed, and print one table.

python -m gradmix_jax.protocol --config=configs/digits_osr.py --workdir=runs/digits --trials=0,1,2,3,4 --seeds=0,1,2
python -m gradmix_jax.protocol ... --print_commands        print one command per run, for a scheduler; run nothing

A run with results is skipped and an interrupted one is resumed, so rerunning the command completes it.
A directory that holds a run of another config is refused.
"""

import os
import sys

import jax
from absl import flags
from ml_collections import ConfigDict

from gradmix_jax import cli, report, run_many
from gradmix_jax import workdir as workdir_lib


def run_protocol(config: ConfigDict, workdir: str, trials: list[int], seeds: list[int]) -> str:
    """Run everything without results, one run after the other in this process.

    Args:
      config: the experiment; its own trial and seed are ignored.
      workdir: parent directory of the runs' workdirs.
      trials: class splits to run.
      seeds: seeds to run each of them with.

    Returns:
      The Markdown table over all runs, which is also written to `<workdir>/summary.md`, with a line for each failed
      run; a failure does not stop the others.

    Raises:
      ValueError: an invalid config, or a directory that holds another run, finished or not; found before anything is
        run. Also if every run failed.
    """
    planned = run_many.check_runs(config, workdir, trials, seeds, num_devices=jax.device_count())
    failed = run_many.run_all(planned)
    directories = [directory for _, directory in planned]
    run_many.check_some(failed, directories)
    if failed:
        print(f"{len(failed)} of {len(planned)} runs failed; rerun the command to repeat them", file=sys.stderr)
    notes = [f"failed: {os.path.basename(directory)}: {failure.reason}" for directory, failure in failed.items()]
    return report.write_summary(list(filter(run_many.has_results, directories)), workdir, notes=notes)


def main(argv: list[str]) -> None:
    cli.no_words(argv)
    trials, seeds, workdir = cli.numbers("trials"), cli.numbers("seeds"), flags.FLAGS.workdir
    if flags.FLAGS.print_commands:
        # The commands run on devices elsewhere.
        run_many.check_runs(flags.FLAGS.config, workdir, trials, seeds, num_devices=1, from_data=False)
        cli.print_commands(cli.config_words(), workdir, trials, seeds)
    else:
        workdir = workdir_lib.resolve(workdir)
        print(run_protocol(flags.FLAGS.config, workdir, trials, seeds))
        directories = [directory for _, directory in run_many.runs(flags.FLAGS.config, workdir, trials, seeds)]
        if not all(map(run_many.complete, directories)):
            sys.exit(cli.PARTS_FAILED)


if __name__ == "__main__":
    cli.define_experiment_flags()
    cli.define_protocol_flags()
    cli.run(main, required=("config", "workdir"))
