"""Run all benchmarks one after the other, at the sizes that benchmarks/README.md uses for this device.

python benchmarks/everything.py FOLDER [--minutes=120] [--each=20] [--only=trial,loop] [--dataset=folder:PATH] [--list]

The most important ones come first. FOLDER/NAME.md holds what a script printed, below its command, the date and the
commit. Scripts with such a file are skipped, so rerunning the command resumes where time ran out. A script that fails,
or is stopped after `--each` minutes or at the end of `--minutes`, leaves NAME.part and runs last the next time.
NAME.log holds its stderr. Everything is printed as well. On a GPU the scripts share XLA's autotuning results in
FOLDER/autotune.
"""

import argparse
import datetime
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from typing import NamedTuple

from gradmix_jax import workdir as workdir_lib

ROOT = pathlib.Path(__file__).parents[1]


class Benchmark(NamedTuple):
    """A script with its arguments, XLA flags to try, and whether it times compilation and so needs an empty cache."""

    script: str
    arguments: str = ""
    xla_flags: str = ""
    cold: bool = False


ANYWHERE = {
    "evaluation": Benchmark("evaluation", "--repeats=3"),
    "startup": Benchmark("startup", cold=True),
    "streaming": Benchmark("streaming", "--seconds=4"),
    "scoring": Benchmark("scoring"),
}
CPU = {
    "step_cost": Benchmark("step_cost"),
    "communication": Benchmark("communication"),
    "large_batch": Benchmark("large_batch"),
    "trial": Benchmark("trial", "--config=configs/digits_osr.py:layer", cold=True),
    "against_torch": Benchmark("against_torch", "--repeats=10"),
    "roofline": Benchmark("roofline", "--width=16 --batches=64 --repeats=5 --skip=scan"),
    "loop": Benchmark("loop", "--width=8 --batch=64 --steps=20 --repeats=5 --images=2400"),
    "weight_gradient": Benchmark("weight_gradient"),
    **ANYWHERE,
}
STEP = "--width=64 --batch=256 --dtype=bfloat16"
LARGE = "--dtype=bfloat16 --repeats=10 --steps=10"
TRIAL = Benchmark("trial", "--config.model.dtype=bfloat16", cold=True)
TPU = {
    "trial": TRIAL,
    "step_cost": Benchmark("step_cost", f"{STEP} --repeats=20 --steps=10"),
    "loop": Benchmark("loop", f"{STEP} --steps=300"),
    "roofline": Benchmark("roofline", f"--batches=256 {LARGE}"),
    **ANYWHERE,
    "roofline_1024": Benchmark("roofline", f"--batches=1024 {LARGE}"),
    "trial_input": TRIAL._replace(arguments=f"--config=configs/cifar_osr.py:input {TRIAL.arguments}"),
    "trial_float32": Benchmark("trial", cold=True),
}
TORCH = "--width=64 --batch=256 --channels_last --repeats=10 --steps=10"
FLAGS = {
    "no_autotuning": "--xla_gpu_autotune_level=0",
    "no_command_buffers": "--xla_gpu_enable_command_buffer=",
    "convolutions_in_command_buffers": (
        "--xla_gpu_enable_command_buffer=FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,CONVOLUTION"
    ),
    "short_command_buffers": "--xla_gpu_graph_min_graph_size=1",
    "latency_hiding": "--xla_gpu_enable_latency_hiding_scheduler=true",
    "no_triton": "--xla_gpu_enable_triton_gemm=false",
    "exhaustive_tiling": "--xla_gpu_exhaustive_tiling_search=true",
}
ONE_STEP = f"--batches=256 {LARGE} --only='as it is'"
GPU = {
    "trial": TRIAL,
    "against_torch": Benchmark("against_torch", f"{TORCH} --dtype=bfloat16 --modes=reduce-overhead"),
    **TPU,
    "against_torch_float32": Benchmark("against_torch", f"{TORCH} --modes="),
    **{f"flag_{name}": Benchmark("roofline", ONE_STEP, flags, cold=True) for name, flags in FLAGS.items()},
    "against_torch_tuned": Benchmark("against_torch", f"{TORCH} --dtype=bfloat16 --modes=max-autotune"),
    "roofline_float32": Benchmark("roofline", "--repeats=10 --steps=10"),
}
BENCHMARKS = {"cpu": CPU, "gpu": GPU, "tpu": TPU}


def command_of(benchmark: Benchmark, dataset: str | None) -> list[str]:
    """The command, to be run in the project's root."""
    words = [sys.executable, f"benchmarks/{benchmark.script}.py", *shlex.split(benchmark.arguments)]
    if dataset and benchmark.script == "trial":
        words.append(f"--config.dataset.name={dataset}")
    return words


def environment_of(benchmark: Benchmark, folder: pathlib.Path, platform: str) -> dict[str, str]:
    """Our environment with the benchmark's XLA flags; the last value of a repeated flag wins."""
    flags = [os.environ.get("XLA_FLAGS", ""), benchmark.xla_flags]
    if platform == "gpu" and not benchmark.cold:
        flags.append(f"--xla_gpu_per_fusion_autotune_cache_dir={folder / 'autotune'}")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"XLA_FLAGS": " ".join(filter(None, flags)), "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def run(name: str, command: list[str], environment: dict[str, str], folder: pathlib.Path, seconds: float) -> str:
    """Run one until it ends or its time is up; returns "done", "failed (...)" or "stopped"."""
    part, log = folder / f"{name}.part", folder / f"{name}.log"
    shown = " ".join(filter(None, [environment["XLA_FLAGS"] and f"XLA_FLAGS={environment['XLA_FLAGS']!r}", "python"]))
    with open(part, "w") as output, open(log, "w") as errors:
        now = datetime.datetime.now().astimezone().isoformat(" ", "minutes")
        commit, changed = workdir_lib.commit()
        commit = (commit or "unknown") + ", with changes" * changed
        output.write(f"{shown} {shlex.join(command[1:])}\n{now}, commit {commit}\n\n")
        output.flush()
        # A separate session, so that its children end with it.
        process = subprocess.Popen(
            command, stdout=output, stderr=errors, cwd=ROOT, env=environment, start_new_session=True
        )
        try:
            status = process.wait(timeout=seconds)
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as interruption:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(interruption, KeyboardInterrupt):
                raise
            return "stopped"
    if status:
        lines = log.read_text().strip().splitlines() or [f"status {status}"]
        return f"failed ({lines[-1]})"
    if not log.stat().st_size:
        log.unlink()
    part.rename(folder / f"{name}.md")
    return "done"


def default_platform() -> str:
    """JAX's platform, found by another process, because this one should not hold a device."""
    question = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    # Show its warnings, for example about a GPU that cannot be used.
    return subprocess.run(question, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1]


def show(folder: pathlib.Path, name: str) -> None:
    """Print a benchmark's table so far and the end of its stderr."""
    for suffix, lines in (("md", None), ("part", None), ("log", 5)):
        path = folder / f"{name}.{suffix}"
        if path.exists():
            text = path.read_text().rstrip("\n").splitlines()
            print("\n".join(text[-lines:] if lines else text), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="folder for the tables; created if missing")
    parser.add_argument("--minutes", type=float, default=120.0, help="when to stop")
    parser.add_argument("--each", type=float, default=20.0, help="minutes after which a script is stopped")
    parser.add_argument("--only", default="", help="names, separated by commas")
    parser.add_argument(
        "--platform", choices=BENCHMARKS, help="platform whose list to run; default: that of this machine"
    )
    parser.add_argument("--dataset", help="dataset of the trials, as dataset.name in a config")
    parser.add_argument("--list", action="store_true", help="print the commands and run nothing")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    platform = arguments.platform or default_platform()
    benchmarks = BENCHMARKS[platform]
    names = [name.strip() for name in arguments.only.split(",") if name.strip()] or list(benchmarks)
    for name in names:
        if name not in benchmarks:
            parser.error(f"--only must be from {', '.join(benchmarks)} on a {platform}, got {name!r}.")
    folder = arguments.folder.resolve()
    # Scripts that were stopped or failed before come last.
    names = sorted(names, key=lambda name: (folder / f"{name}.part").exists())
    print(f"benchmarks for a {platform}", flush=True)
    outcomes = []
    for name in names:
        command = command_of(benchmarks[name], arguments.dataset)
        environment = environment_of(benchmarks[name], folder, platform)
        if arguments.list:
            print(f"{name}: {shlex.join(command[1:])} {benchmarks[name].xla_flags}".rstrip())
            continue
        folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        if (folder / f"{name}.md").exists():
            outcome = "done before"
        elif started >= end:
            outcome = "not started, time is over"
        else:
            print(f"{name} ...", flush=True)
            outcome = run(name, command, environment, folder, min(60 * arguments.each, end - started))
            show(folder, name)
        outcomes.append(outcome)
        print(f"{name}: {outcome}, {time.monotonic() - started:.0f} s", flush=True)
    return int(not all(outcome.startswith("done") for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
