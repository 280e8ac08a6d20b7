"""Does the map matter? Carries out results/plan.md and writes results/map.md.

export PYTHONPATH=.
python benchmarks/map_study.py run --workdir=runs/map [--only=fashion_mnist] [--splits=0,1]   the runs, split by split
python benchmarks/map_study.py page                                                           the page and its figure
python benchmarks/map_study.py pilot DIRECTORY...                       validation accuracies, which choose the width

Every run leaves a row in the raw file, results/map.csv, from which the page is made; rerunning the command continues
with the runs that have no row. A failed run leaves a row with the reason and is repeated only with --retry. A complete
directory is only measured, so runs of `python -m gradmix_jax.sweep map` count as well. One process carries out all runs
and keeps compiled programs.
"""

import argparse
import os
import pathlib
import signal
import sys

import jax
from study import page, pilot, plan, raw, runs

from gradmix_jax import cli
from gradmix_jax import data as data_lib
from gradmix_jax.cli import program_cache
from gradmix_jax.config import from_config
from gradmix_jax.workdir import replacing

RESULTS = pathlib.Path(plan.ROOT) / "results"
ONLY = (*plan.DATA, "longer", "factorial")


def run(arguments: argparse.Namespace) -> int:
    for name, value in cli.SWITCHES.items():
        jax.config.update(name, value)
    program_cache.keep_programs()
    os.environ.setdefault("GRADMIX_JAX_COMMIT", runs.commit())
    jobs = plan.all_jobs(raw.read(arguments.raw), arguments.only, arguments.splits)
    if not jobs and arguments.only in ("longer", "factorial"):
        raise ValueError(f"--only={arguments.only} needs the main runs of splits 0 to 19 first.")
    for job in {job.key.dataset: job for job in jobs}.values():  # missing data is an error, not a result
        data_lib.open_set(from_config(job.config(), num_devices=jax.device_count()).dataset)
    if arguments.remeasure:
        runs.remeasure(jobs, arguments.raw, arguments.workdir)
        return 0
    return cli.PARTS_FAILED if runs.run_all(jobs, arguments.raw, arguments.workdir, retry=arguments.retry) else 0


def make_page(arguments: argparse.Namespace) -> int:
    figure = arguments.out.with_suffix(".svg")
    text, drawn = page.page(raw.read(arguments.raw), raw.history(arguments.raw), figure.name)
    for path, content in ((figure, drawn), (arguments.out, text)):
        with replacing(os.fspath(path)) as file:
            file.write(content)
    return 0


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--raw", default=os.fspath(RESULTS / "map.csv"), help="the raw file; default: results/map.csv")
    running = commands.add_parser("run", parents=[shared], help="carry out the runs that have no row")
    running.add_argument("--workdir", default="runs/map", help="parent directory of the runs")
    running.add_argument("--only", choices=ONLY, default="", help="a dataset or a part of the plan")
    numbers = lambda given: [int(word) for word in given.split(",")]
    running.add_argument("--splits", type=numbers, default=plan.ALL_SPLITS, help="class splits, separated by commas")
    running.add_argument("--retry", action="store_true", help="repeat runs that failed")
    running.add_argument("--remeasure", action="store_true", help="train nothing; measure existing runs again")
    paging = commands.add_parser("page", parents=[shared], help="make the page and its figure from the raw file")
    paging.add_argument("--out", type=pathlib.Path, default=RESULTS / "map.md", help="the figure is written beside it")
    table = commands.add_parser("pilot", help="a table of validation accuracies")
    table.add_argument("directories", nargs="+", help="workdirs of finished runs")
    arguments = parser.parse_args(words)
    try:
        if arguments.command == "pilot":
            print(pilot.table(arguments.directories))
            return 0
        return {"run": run, "page": make_page}[arguments.command](arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(interrupt, file=sys.stderr)
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
