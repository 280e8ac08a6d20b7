"""Trains, evaluates and measures the runs of the study one after the other; each leaves a row."""

import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable

import jax
from ml_collections import ConfigDict

from gradmix_jax import assembly, run_many, stored
from gradmix_jax import config as config_lib
from gradmix_jax import data as data_lib
from gradmix_jax import run as run_lib
from gradmix_jax import workdir as workdir_lib
from gradmix_jax.data import order
from gradmix_jax.report.conditions import hardware
from gradmix_jax.training import phases
from gradmix_jax.workdir import lock

from . import mechanism
from .plan import ROOT, Job
from .raw import OK, Row, append, read

# Bytes and memory mappings beyond which compiled programs are freed. A train step serves the seeds of a split and takes
# about 60 MB and a thousand mappings, of which Linux allows a process 65,530; the programs of an evaluation are shared
# by all runs of a shape.
MOST_MEMORY = 3e9
MOST_MAPPINGS = 30_000
# Errors that stop the study, because every later run would fail in the same way: no disk space, no memory, a lock.
OF_THE_MACHINE = (OSError, MemoryError, lock.LockedError, jax.errors.JaxRuntimeError)


def run_all(jobs: Iterable[Job], raw: str, workdir: str, *, retry: bool = False) -> int:
    """Carry out the jobs that have no row in the raw file.

    Args:
      jobs: in order.
      raw: the raw file.
      workdir: parent directory of the runs; a complete run found there is only measured.
      retry: whether to repeat runs that have a row without results.

    Returns:
      The number of failed runs.
    """
    rows = read(raw)
    done = {row.key for row in rows if row.ok or not retry}
    flops = {(row.key.dataset, row.key.variant): row.flops for row in rows if row.flops and row.key.part == "main"}
    planned, failed = [job for job in jobs if job.key not in done], 0
    last = assembly.LastProgram()
    for number, job in enumerate(planned, 1):
        started = time.monotonic()
        row = run(job, workdir, flops, last)
        append(raw, row)
        if memory() > MOST_MEMORY or mappings() > MOST_MAPPINGS:
            run_many.forget_programs()
        failed += not row.ok
        said = f"AUROC {row.auroc:.4f}" if row.ok else row.status
        name = f"{job.key.dataset}, {job.key.variant}, split {job.key.trial}, seed {job.key.seed}"
        seconds = f"{time.monotonic() - started:.0f} s, {row.seconds or 0:.0f} of them training and evaluation"
        print(f"{number} of {len(planned)}: {name}: {said} ({seconds})", file=sys.stderr, flush=True)
    return failed


def remeasure(jobs: Iterable[Job], raw: str, workdir: str) -> None:
    """Measure every job whose directory still exists again, and append the new rows."""
    rows = {row.key: row for row in read(raw) if row.ok}
    for job in jobs:
        directory, config = job.directory(workdir), job.config()
        if job.key in rows and is_whole(config, directory):
            row = rows[job.key]
            append(raw, measure(job, directory, row, {(job.key.dataset, job.of): row.flops}))


def run(job: Job, workdir: str, flops: dict[tuple[str, str], float], last: assembly.LastProgram) -> Row:
    """The row of a run, which is carried out unless its directory is complete.

    Args:
      job: the run.
      workdir: parent directory of all runs.
      flops: FLOPs of the train step by (dataset, row of the sweep); a missing entry is added.
      last: program of the run before.
    """
    directory, config = job.directory(workdir), job.config()
    empty = Row(job.key, config.phases[0].epochs, config.model.width, **conditions(workdir_lib.environment()))
    try:
        if not is_whole(config, directory):
            run_lib.run(config, directory, last=last)
        return measure(job, directory, empty, flops)
    except OF_THE_MACHINE:
        raise
    except Exception as error:  # of any kind, because a failed run is a result
        if not isinstance(error, ValueError):
            traceback.print_exc()
        return empty._replace(status=" ".join(f"{type(error).__name__}: {error}".split())[:200])


def is_whole(config: ConfigDict, directory: str) -> bool:
    """Whether a directory has results of the last step of this experiment, whether or not more was evaluated."""
    if not os.path.exists(workdir_lib.path(directory, workdir_lib.RESULTS)):
        return False
    run_lib.check_same_run(config_lib.to_plain(config), directory)
    results = stored.results(directory)
    steps = phases.total_steps(config.phases, order.steps_per_epoch(results["num_train"], config.train.batch_size))
    headline = (results["feature"], results["score_name"]) == (config.evaluate.feature, config.evaluate.score)
    return results["step"] == steps and not results.get("pending") and headline


def measure(job: Job, directory: str, empty: Row, flops: dict[tuple[str, str], float]) -> Row:
    """The row of a run whose directory is complete."""
    results = stored.results(directory)
    experiment = config_lib.from_config(config_lib.read(directory), num_devices=1)
    missing = dict(results["failed"])
    diversity = results["diversity"].get("features", {})
    dimensions = [value for value in diversity.get("intrinsic_dimension", {}).values() if value is not None]
    shares: tuple[float | None, float | None] = (None, None)
    try:
        shares = mechanism.halving_shares(directory, data_lib.open_set(experiment.dataset))
    except ValueError as error:
        missing["deletion"] = str(error)
    of = (job.key.dataset, job.of)  # the further keys do not affect the FLOPs
    if of not in flops:
        sizes = dict(num_classes=len(results["known_classes"]), num_images=results["num_train"])
        flops[of] = assembly.step_cost(experiment, **sizes).flops
    return empty._replace(
        auroc=results["auroc"],
        oscr=results["oscr"],
        accuracy=results["accuracy"],
        train=results["num_train"],
        known=results["num_known"],
        unknown=results["num_unknown"],
        seconds=training_seconds(directory) + results["seconds"],
        flops=flops[of],
        effective_rank=diversity.get("effective_rank"),
        intrinsic_dimension=statistics.fmean(dimensions) if dimensions else None,
        deleted=shares[0],
        deleted_at_random=shares[1],
        status="; ".join(f"{part}: {reason}" for part, reason in missing.items()) or OK,
        **conditions(results["environment"]),
    )


def memory() -> int:
    """Resident memory of this process in bytes; 0 if unknown."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def mappings() -> int:
    """Number of memory mappings of this process; 0 if unknown."""
    try:
        with open("/proc/self/maps", "rb") as file:
            return sum(1 for _ in file)
    except OSError:
        return 0


def training_seconds(directory: str) -> float:
    """Seconds of all logged steps, including compilation and, for a resumed run, the steps before it stopped."""
    seconds, before = 0.0, 0
    for line in stored.metrics(directory):
        if line.get("steps_per_second"):
            seconds += (line["step"] - before) / line["steps_per_second"]
        before = line["step"]
    return seconds


def commit() -> str:
    """The commit of this code, followed by a + if files outside results/, where the raw file grows, have changed."""
    head, changed = workdir_lib.commit()
    words = ["git", "-C", ROOT, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!results"]
    changed = changed and bool(subprocess.run(words, capture_output=True, text=True).stdout.strip())
    return head + "+" * changed


def conditions(environment: dict) -> dict[str, str]:
    """Commit, version of JAX and hardware of a run's environment."""
    commit = (environment["commit"] or "unknown")[:12] + "+" * environment["uncommitted_changes"]
    return {"commit": commit, "jax": environment["packages"]["jax"], "hardware": hardware(environment)}
