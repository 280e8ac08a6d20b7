"""Several experiments, one after the other: planning, checking, running, and their failures."""

import contextlib
import copy
import ctypes
import gc
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from gradmix_jax import assembly, data, stored
from gradmix_jax import config as config_lib
from gradmix_jax import run as run_lib
from gradmix_jax import workdir as workdir_lib
from gradmix_jax.config import derive, from_config
from gradmix_jax.data import order
from gradmix_jax.training import initial
from gradmix_jax.training import phases as phases_lib
from gradmix_jax.training.checkpoint import Checkpoints
from gradmix_jax.workdir import lock, storage

# Seeds after which their shared programs are freed all the same, because each leaves 7 MB of others in memory.
MOST_SHARING = 10


def is_finished(config: ConfigDict, workdir: str) -> bool:
    """Whether there are results of the last step, evaluated as configured, with no part missing or failed.

    Raises ValueError if the results are damaged, those of another run, or of a newer version.
    """
    path = workdir_lib.path(workdir, workdir_lib.RESULTS)
    if not storage.exists(path):
        return False
    try:
        results, recorded = stored.results(workdir), config_lib.read(workdir)
        stored.check_same_run(results, recorded, workdir)
    except storage.UnavailableError:
        raise
    except ValueError as error:  # it stays as it is, in case a person can mend it
        raise ValueError(f"{str(error).rstrip('.')}; delete {path} to evaluate the run again.") from error
    if results["num_train"] is None:  # of an older version
        return False
    size = results["num_train"] + (results.get("num_negative") or 0)
    steps_per_epoch = order.steps_per_epoch(size, config.train.batch_size)
    whole = results["step"] == phases_lib.total_steps(config.phases, steps_per_epoch)
    whole = whole and not results.get("pending") and not results.get("failed")
    return whole and recorded["evaluate"] == config_lib.to_plain(config)["evaluate"]


def runs(config: ConfigDict, workdir: str, trials: list[int], seeds: list[int]) -> Iterator[tuple[ConfigDict, str]]:
    """(config, workdir) of every trial and seed: `<workdir>/trial<trial>_seed<seed>`."""
    for trial in trials:
        for seed in seeds:
            one = copy.deepcopy(config)
            one.dataset.trial, one.seed = trial, seed
            yield one, os.path.join(workdir, f"trial{trial}_seed{seed}")


def check_runs(
    config: ConfigDict, workdir: str, trials: list[int], seeds: list[int], *, num_devices: int, from_data: bool = True
) -> list[tuple[ConfigDict, str]]:
    """The result of `runs`, checked and completed; raises ValueError unless every run works on this many devices.

    The data is opened only if keys are left to it, and not at all if `from_data` is False.
    """
    planned = list(runs(config, workdir, trials, seeds))
    for one, directory in planned:
        workdir_lib.check_directory(directory, "--workdir")
        plain = run_lib.finished(one, directory, num_devices=num_devices, from_data=from_data)
        for key in derive.missing(config_lib.to_plain(one)):
            section, name = key.split(".")
            value = plain[section][name]
            one[section][name] = tuple(value) if isinstance(value, list) else value
        model = from_config(plain, num_devices=num_devices).model
        run_lib.check_same_run(plain, directory)
        if model.init_from and not Checkpoints.exist(directory):
            initial.source(model.init_from, one.dataset.trial)
    return planned


def epochs_of_equal_flops(configs: dict[str, ConfigDict], workdir: str, reference: str) -> dict[str, tuple[int, ...]]:
    """Epochs of every phase so that each experiment's training takes as many FLOPs as the reference's.

    Phases keep their proportions and are rounded to whole epochs, at least one. This opens the data, for its sizes, and
    compiles the step of each experiment, but runs nothing.

    Args:
      configs: the experiments by name.
      workdir: directory in which keys left to the data are looked up, see `run.finished`.
      reference: name of the experiment whose epochs stay unchanged.
    """
    sizes: dict[str, dict[str, int]] = {}

    def flops_of_epoch(config: ConfigDict) -> float:
        experiment = from_config(run_lib.finished(config, workdir, num_devices=1), num_devices=1)
        if repr(experiment.dataset) not in sizes:
            opened = data.open_set(experiment.dataset)
            known = dict(num_classes=opened.num_classes, num_images=len(opened.for_training))
            sizes[repr(experiment.dataset)] = known
        size = sizes[repr(experiment.dataset)]
        steps = order.steps_per_epoch(size["num_images"], experiment.train.batch_size)
        return steps * step_flops(experiment, **size)

    epochs = {}
    of_reference = flops_of_epoch(configs[reference])
    for name, config in configs.items():
        factor = 1.0 if name == reference else of_reference / flops_of_epoch(config)
        epochs[name] = tuple(max(1, round(factor * each.epochs)) for each in config.phases)
    return epochs


def step_flops(experiment: config_lib.Experiment, *, num_classes: int, num_images: int) -> float:
    """FLOPs of a train step, see `assembly.step_cost`, whose compiled program is not kept."""
    flops = assembly.step_cost(experiment, num_classes=num_classes, num_images=num_images).flops
    forget_programs()
    return flops


class Failure(NamedTuple):
    """Why a run failed, in one line, and whether that was storage which cannot be used now."""

    reason: str
    may_pass: bool = False


def run_all(planned: list[tuple[ConfigDict, str]]) -> dict[str, Failure]:
    """Train and evaluate every (config, workdir) that has no results yet, one after the other in this process.

    A run that fails leaves the others alone; its workdir keeps the reason, see `workdir.FAILED`, until it succeeds.

    Returns:
      {workdir: why it failed} for runs without results and runs whose evaluation failed in part.
    """
    failed: dict[str, Failure] = {}
    last, sharing = assembly.LastProgram(), []
    for one, directory in planned:
        try:
            if not is_finished(one, directory):
                print(f"trial {one.dataset.trial}, seed {one.seed}: {directory}", file=sys.stderr)
                if sharing and (len(sharing) == MOST_SHARING or _but_seed(one) != _but_seed(sharing[-1])):
                    forget_programs()
                    sharing.clear()
                sharing.append(one)
                results = run_lib.run(one, directory, last=last)
                if results and results["failed"]:
                    failed[directory] = Failure("; ".join(results["failed"].values()))
            storage.remove(workdir_lib.path(directory, workdir_lib.FAILED))
        except Exception as error:  # of whatever kind, because it does not concern the other runs
            failed[directory] = Failure(_note_failure(error, directory), storage.may_pass(error))
    if sharing:
        forget_programs()
    return failed


def _but_seed(config: ConfigDict) -> dict[str, Any]:
    return config_lib.to_plain(config) | {"seed": 0}


def forget_programs() -> None:
    """Free compiled programs, which only runs of other seeds can use again: some 60 MB for each of the smallest runs.

    Measured over 8 runs of 2 steps with their evaluations (JAX 0.10.2, one CPU device, 340 MB after the first run):
    385 MB after the fifth and 388 MB after the eighth; without this, 60 MB more after every run, up to 966 MB.
    """
    jax.clear_caches()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc keeps freed memory; other libraries may lack this call
        ctypes.CDLL(None).malloc_trim(0)


def check_some(failed: dict[str, Failure], directories: list[str]) -> None:
    """Raises ValueError, with the reason of the first run, if none of the runs has results.

    It is storage.UnavailableError where storage failed one of them: a scheduler should then try again.
    """
    if not any(map(has_results, directories)):
        kind = storage.UnavailableError if any(each.may_pass for each in failed.values()) else ValueError
        first = directories[0]
        raise kind(f"none of the {len(directories)} runs has results; {first}: {failed[first].reason}")


def complete(workdir: str) -> bool:
    """Whether a run has results, with no part of its evaluation failed."""
    return has_results(workdir) and not stored.results(workdir)["failed"]


def has_results(workdir: str) -> bool:
    """Whether a run has been evaluated and has not failed since."""
    exists = lambda name: storage.exists(workdir_lib.path(workdir, name))
    return exists(workdir_lib.RESULTS) and not exists(workdir_lib.FAILED)


def _note_failure(error: Exception, workdir: str) -> str:
    """The reason in one line, printed and recorded in the workdir unless another process works there."""
    said = " ".join(str(error).split())[:500]
    if isinstance(error, OSError) and error.strerror:
        reason = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    else:
        reason = said if isinstance(error, ValueError) and said else f"{type(error).__name__}: {said}"
    if not isinstance(error, (ValueError, OSError)):
        traceback.print_exception(error)
    print(f"{workdir} failed: {reason}", file=sys.stderr)
    if not isinstance(error, lock.LockedError):
        with contextlib.suppress(OSError):  # no room: printing must suffice
            storage.make_directory(workdir)
            content = {"error": reason, "environment": workdir_lib.environment()}
            workdir_lib.write_json(workdir, workdir_lib.FAILED, content)
    return reason
