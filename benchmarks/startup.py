"""Time to import, first step and results, with an empty and with a full compilation cache.

python benchmarks/startup.py [--config=configs/digits_osr.py] [--epochs=1] [--repeats=3]

Every number counts from the start of a fresh process. "cold" has an empty cache of compiled programs, "warm" the one
left by the cold process. Programs are counted as JAX reports them: compiled by XLA, or read from the cache.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

# The child: `main` as a user runs it, with marks at every step, at the end of training and after the results.
CHILD = """
import json, runpy, sys, time
started, path = float(sys.argv.pop(1)), sys.argv.pop(1)
marks = {"programs": [], "hits": 0, "steps": []}
mark = lambda name: marks.setdefault(name, time.time() - started)
mark("interpreter")
import jax
from gradmix_jax import run
from gradmix_jax.training import metrics_writer
mark("import")

def on_duration(name, seconds, **_):
    if name == "/jax/core/compile/backend_compile_duration":
        marks["programs"].append(seconds)

def on_event(name, **_):
    marks["hits"] += name == "/jax/compilation_cache/cache_hits"

jax.monitoring.register_event_duration_secs_listener(on_duration)
jax.monitoring.register_event_listener(on_event)
advance = metrics_writer.MetricsWriter.advance
metrics_writer.MetricsWriter.advance = lambda self: (marks["steps"].append(time.time() - started), advance(self))[1]
evaluate = run._evaluate
run._evaluate = lambda *arguments: (mark("trained"), evaluate(*arguments))[1]
save = run.save_results
run.save_results = lambda *arguments: (save(*arguments), mark("results"))[0]
try:
    runpy.run_module("gradmix_jax.main", run_name="__main__")
finally:
    json.dump(marks, open(path, "w"))
"""


def run_main(config: str, overrides: list[str], *, cache: str) -> dict:
    """Train and evaluate in a separate process.

    Args:
      config: an experiment file.
      overrides: more flags of `main`.
      cache: folder of compiled programs.

    Returns:
      Seconds since the start of the process: "import", "steps" (a list: the end of each), "first step", "trained",
      "results". "programs": the seconds each one took to compile or read; "hits": the number of programs read.

    Raises:
      SystemExit: the process failed; with its output.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "marks.json")
        path_of_modules = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "PYTHONPATH": path_of_modules}
        command = [sys.executable, "-c", CHILD, str(time.time()), path]
        command += [f"--config={config}", f"--workdir={folder}/run", *overrides]
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        if result.returncode:
            raise SystemExit(result.stderr)
        with open(path) as file:
            marks = json.load(file)
    return marks | {"first step": marks["steps"][0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/digits_osr.py")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    arguments, rest = parser.parse_known_args()
    overrides = [f"--config.phases[0].epochs={arguments.epochs}", *rest]
    marks: dict[str, list[dict]] = {"cold": [], "warm": []}
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as cache:
            for name in marks:
                marks[name].append(run_main(arguments.config, overrides, cache=cache))
    import jax  # imported late, so that the parent does not slow the children down

    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores"
    print(f"{arguments.config}, {arguments.epochs} epoch; jax {jax.__version__}, {device}")
    print(f"seconds since the process started, median of {arguments.repeats} (extremes)\n")
    names = ("import", "first step", "trained", "results")
    print("| cache |", " | ".join(names), "| programs compiled | read from the cache | seconds compiling or reading |")
    print("|---" * (len(names) + 4), "|", sep="")
    for cache, runs in marks.items():
        spread = lambda values: f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
        cells = [spread([run[name] for run in runs]) for name in names]
        compiled = sorted({len(run["programs"]) - run["hits"] for run in runs})
        hits = sorted({run["hits"] for run in runs})
        seconds = spread([sum(run["programs"]) for run in runs])
        print(f"| {cache} |", " | ".join(cells), f"| {compiled} | {hits} | {seconds} |")


if __name__ == "__main__":
    main()
