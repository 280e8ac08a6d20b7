"""Does anything grow in a long-running process? Tiny runs, one after the other, for some minutes.

python benchmarks/soak.py --minutes=3 [--out=soak.json]

Each run trains 4 epochs of the digits with checkpoints, is stopped by SIGTERM in the middle, resumed, and evaluated, as
`protocol` does, with its cache of compiled programs. After each, the process's resident memory, memory mappings, open
files, threads and compiled or cached programs are recorded; `--out` has them even if the process is killed.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time

import jax
from ml_collections import ConfigDict
from study import runs

from gradmix_jax import config as config_lib
from gradmix_jax import run_many
from gradmix_jax.cli import program_cache
from gradmix_jax.config import phase
from gradmix_jax.training import loop


def experiment(seed: int) -> ConfigDict:
    """A run that takes seconds: 8 x 8 digits, a CNN of width 4."""
    config = config_lib.default_config()
    config.seed = seed
    config.dataset.image_size, config.dataset.channels = 8, 1
    config.normalization.mean, config.normalization.std = (0.5,), (0.25,)
    config.augment.jitter_prob = config.augment.gray_prob = 0.0
    config.model.width, config.model.hidden, config.model.projection = 4, 16, 8
    config.mix.group_size, config.train.batch_size = 4, 128
    config.phases = (phase("joint", epochs=4, supcon=1.0, ssl=1.2),)
    config.train.checkpoint_every_epochs = 1
    config.evaluate.scores, config.evaluate.stages = (config.evaluate.score,), ()
    return config_lib.apply_recipe(config, "input")


def measured() -> dict[str, float]:
    """Resident memory in MB, memory mappings, open files, threads of Python and of the system."""
    return {
        "memory_mb": round(runs.memory() / 1e6, 1),
        "mappings": runs.mappings(),
        "open_files": len(os.listdir("/proc/self/fd")),
        "python_threads": threading.active_count(),
        "threads": len(os.listdir("/proc/self/task")),
    }


@contextlib.contextmanager
def stopped_at(step: int):
    """Send SIGTERM once, after this many steps."""
    run, told = loop.run, []

    def stopping(state, *, should_stop, **options):
        def ask(done):
            if done == step and not told:
                told.append(signal.raise_signal(signal.SIGTERM))
            return should_stop(done)

        return run(state, should_stop=ask, **options)

    loop.run = stopping
    try:
        yield
    finally:
        loop.run = run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    program_cache.keep_programs()
    programs, rows, started = [], [], time.monotonic()
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: programs.append(event) if event.endswith("backend_compile_duration") else None
    )
    while time.monotonic() - started < 60 * arguments.minutes:
        folder, before = tempfile.mkdtemp(), len(programs)
        planned = [(experiment(len(rows)), os.path.join(folder, "run"))]
        with contextlib.redirect_stderr(io.StringIO()) as said:
            with stopped_at(4), contextlib.suppress(SystemExit):
                run_many.run_all(planned)
            failed = run_many.run_all(planned)
        if failed or "stopped at step" not in said.getvalue():
            sys.exit(f"a run failed: {failed}\n{said.getvalue()}")
        shutil.rmtree(folder)
        rows.append({"seconds": round(time.monotonic() - started, 1), **measured()})
        rows[-1]["programs"] = len(programs) - before
        if len(rows) == 1:
            print("| run | " + " | ".join(rows[0]) + " |\n|" + "---|" * (1 + len(rows[0])))
        print(f"| {len(rows)} | " + " | ".join(map(str, rows[-1].values())) + " |", flush=True)
        if arguments.out:
            with open(arguments.out, "w", encoding="utf-8") as file:
                json.dump({"summary": summary(rows), "runs": rows}, file, indent=1)
    print("\n" + ", ".join(f"{name} {value}" for name, value in summary(rows).items()))


def summary(rows: list[dict[str, float]]) -> dict[str, float | str]:
    """What it ran on, and how much memory a run adds in the second half."""
    half = rows[len(rows) // 2 :]
    slope = 0.0
    if len(half) > 1:
        slope = statistics.linear_regression([*range(len(half))], [row["memory_mb"] for row in half]).slope
    return {
        "runs": len(rows),
        "minutes": round(rows[-1]["seconds"] / 60, 1),
        "mb_per_run_in_the_second_half": round(slope, 2),
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "jax": jax.__version__,
    }


if __name__ == "__main__":
    main()
