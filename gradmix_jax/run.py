"""One experiment from config to results: specs, training, evaluation, and the files of the run."""

import contextlib
import hashlib
import io
import sys
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

from gradmix_jax import assembly, pod, stored
from gradmix_jax import config as config_lib
from gradmix_jax import data as data_lib
from gradmix_jax import workdir as workdir_lib
from gradmix_jax.config import Experiment, checks, derive, from_config
from gradmix_jax.evaluation import evaluate as evaluation
from gradmix_jax.training import initial as initial_lib
from gradmix_jax.training import mapping, tracking
from gradmix_jax.training import state as state_lib
from gradmix_jax.training import train as train_lib
from gradmix_jax.training.checkpoint import Checkpoints
from gradmix_jax.training.identity import identity
from gradmix_jax.workdir import lock, storage

MODES = ("train", "eval", "train_and_eval")
# Keys that may differ between the hosts of a pod.
_OF_A_HOST = ("dataset.data_dir", "dataset.root", "dataset.download", "train.workers", "train.cache_gigabytes")
# Entries of the results with a separate file.
ARRAYS = {"arrays": workdir_lib.SCORES, "gallery": workdir_lib.GALLERY}


def run(
    config: ConfigDict, workdir: str, mode: str = "train_and_eval", *, last: assembly.LastProgram | None = None
) -> dict[str, Any] | None:
    """Train in `workdir`, or resume the run in it, and evaluate.

    Args:
      config: the experiment.
      workdir: directory of the run; created if missing.
      mode: one of MODES.
      last: shared by consecutive runs, so that those of several seeds compile once.

    Returns:
      The results, also written to the workdir; None without an evaluation, and on all processes except the main one.
      results["failed"] names optional parts of the evaluation that failed, with the reason.

    Raises:
      ValueError: a user's mistake, or another process in the workdir, in one line.
      SystemExit: status 143 after SIGTERM, with the state saved.
    """
    workdir = workdir_lib.resolve(workdir)
    plain = finished(config, workdir, num_devices=jax.device_count())
    experiment = from_config(plain, num_devices=jax.device_count())
    if jax.process_count() > 1:
        pod.agree(_facts(plain, mode))
    # The other processes of a pod may have no disk in common with the main one, or the same one.
    with lock.hold(workdir) if mapping.is_main_process() else contextlib.nullcontext():
        return _run(experiment, plain, workdir, mode, last)


def _run(
    experiment: Experiment, plain: dict[str, Any], workdir: str, mode: str, last: assembly.LastProgram | None
) -> dict[str, Any] | None:
    """`run` in a workdir that this process has locked."""
    check_same_run(plain, workdir)
    data = data_lib.open_set(experiment.dataset)
    if jax.process_count() > 1:
        pod.agree(data_lib.facts(data))
    if mode == "train_and_eval":
        fresh = not Checkpoints.exist(workdir)
        evaluation.check_data(experiment.setup, data, reference=mapping.is_main_process(), decode=fresh)
    if mode != "eval":
        train(experiment, plain, workdir, data=data, last=last)
    results = None
    if mode != "train":
        results = _evaluate(experiment, plain, workdir, data)
    mapping.barrier("results are written")
    return results


def _facts(plain: dict[str, Any], mode: str) -> dict[str, Any]:
    """Facts that the processes of a pod must share before any data is opened: command, code, packages, devices.

    Paths and other host-specific settings may differ.
    """
    keys = config_lib.flatten({name: value for name, value in plain.items() if name != "phases"})
    for index, entry in enumerate(plain["phases"]):
        keys |= {f"phases[{index}].{name}": value for name, value in entry.items()}
    shared = {name: value for name, value in keys.items() if name not in _OF_A_HOST}
    environment = workdir_lib.environment()
    devices = [device.device_kind for device in jax.local_devices()]
    return {
        **shared,
        "--mode": mode,
        "the number of local devices": len(devices),
        "the kind of devices": sorted(set(devices)),
        "the hash of the code": workdir_lib.code_hash(),
        "Python": environment["python"].rpartition(".")[0],
        **environment["packages"],
    }


def finished(
    config: ConfigDict | dict[str, Any], workdir: str, *, num_devices: int, from_data: bool = True
) -> dict[str, Any]:
    """The plain config with a value for every key left to the data, taken from the run in `workdir`, if any.

    Otherwise the values are derived and printed, see `derive.from_data`.

    Args:
      config: the experiment; checked here.
      workdir: directory of the run.
      num_devices: number of devices of all processes.
      from_data: whether to derive values; False: keys stay open if there is no run yet.

    Raises:
      ValueError: an invalid config, or data that is missing or leaves a key without a value.
    """
    plain = config_lib.to_plain(config) if isinstance(config, ConfigDict) else config
    from_config(plain, num_devices=num_devices)
    if not derive.missing(plain):
        return plain
    if _holds_run(workdir) and storage.exists(workdir_lib.path(workdir, workdir_lib.CONFIG)):
        return derive.from_recorded(plain, config_lib.read(workdir))
    if not from_data:
        return plain
    found = derive.from_data(plain, num_devices=num_devices)
    if mapping.is_main_process():
        for key, (value, reason) in found.items():
            shown = tuple(value) if isinstance(value, list) else value
            print(f"derived: {key} = {shown!r} ({reason})", file=sys.stderr)
    return derive.with_values(plain, {key: value for key, (value, _) in found.items()})


def _evaluate(
    experiment: Experiment, config: dict[str, Any], workdir: str, data: data_lib.OpenSet
) -> dict[str, Any] | None:
    """Evaluate and write the results, the headline as soon as it is available."""
    if not mapping.is_main_process():
        return evaluation.evaluate(experiment.setup, workdir, data=data)
    if experiment.model.init_from:  # may be evaluated without training
        storage.make_directory(workdir)
    # Arrays do not change once they exist; rewriting them for every part would take longer than the part.
    saved: set[str] = set()
    written: dict[str, Any] = {}

    def save(results):
        nonlocal written
        new = {name: value for name, value in results.items() if name not in saved}
        saved.update(ARRAYS.keys() & new.keys())
        written = save_results(new | {"sha256": written.get("sha256", {})}, config, workdir)

    evaluation.evaluate(experiment.setup, workdir, data=data, save=save)
    tracking.track_results(experiment.train.trackers, workdir, written)
    return written


def train(
    experiment: Experiment,
    config: dict[str, Any],
    workdir: str,
    *,
    data: data_lib.OpenSet | None = None,
    last: assembly.LastProgram | None = None,
) -> tuple[int, int]:
    """Train until the last phase is over, from the newest checkpoint in `workdir` if there is one.

    Args:
      experiment: the specs.
      config: the config they were made from, recorded in the workdir.
      workdir: directory of the run; created if missing.
      data: the run's data, if already open.
      last: see `run`.

    Returns:
      The number of steps done and planned.

    Raises:
      KeyboardInterrupt, ValueError: see `training.train.train`; ValueError also if the workdir holds another run.
    """
    check_same_run(config, workdir)
    data = data_lib.open_set(experiment.dataset) if data is None else data
    sizes = dict(num_classes=data.num_classes, num_images=len(data.for_training))
    mapped, program = (last or assembly.LastProgram()).of(experiment, **sizes)
    init = lambda: assembly.initial_state(experiment, program)
    train_lib.check_memory(jax.eval_shape(init), data.for_training, experiment.dataset.storage)
    of = identity(experiment.dataset, experiment.seed, data.class_names, data.negative_names)
    options = dict(storage=experiment.dataset.storage, workdir=workdir, of=of)
    if mapping.is_main_process():
        if experiment.model.init_from and not Checkpoints.exist(workdir):
            options["first"] = _loaded(experiment, data, init())
        _record(config, workdir, jax.eval_shape(init).params)
    return train_lib.train(program, init, data.for_training, experiment.train, mapped, **options)


def _loaded(experiment: Experiment, data: data_lib.OpenSet, initial: state_lib.TrainState) -> state_lib.TrainState:
    """The initial state with the weights of `model.init_from`; prints what was loaded."""
    template = {"params": initial.params, "batch_stats": initial.batch_stats}
    variables, report = initial_lib.load(experiment.model.init_from, experiment.dataset.trial, template)
    print(report, file=sys.stderr)
    initial_lib.warn_of_unknown(report, experiment.dataset, data)
    if experiment.model.has_logits and not checks.trains_head(experiment.phases):
        initial_lib.check_head(report, experiment.model.classifier)
    return state_lib.with_weights(initial, variables)


def check_same_run(config: dict[str, Any], workdir: str) -> None:
    """Raises ValueError if the workdir holds a run of another config, ignoring keys that do not change the model.

    A directory with neither a checkpoint nor results counts as empty. Also raised for checkpoints without a config.
    """
    if not _holds_run(workdir):
        return
    if not storage.exists(workdir_lib.path(workdir, workdir_lib.CONFIG)):
        raise ValueError(
            f"{workdir} holds a run without its {workdir_lib.CONFIG}; restore it or use another --workdir."
        )
    before = config_lib.fixed(config_lib.read(workdir))
    for name, value in config_lib.fixed(config).items():
        if before.get(name) != value:
            raise ValueError(
                f"{workdir} holds a run with {name}={before.get(name)!r}, not {value!r}; use the same config to resume "
                "it, or another --workdir."
            )


def _holds_run(workdir: str) -> bool:
    """Whether a directory has a checkpoint or results."""
    return Checkpoints.exist(workdir) or storage.exists(workdir_lib.path(workdir, workdir_lib.RESULTS))


def _record(config: dict[str, Any], workdir: str, params: Any) -> None:
    """Write config.json, env.json and the table of parameters."""
    storage.make_directory(workdir)
    workdir_lib.write_json(workdir, workdir_lib.CONFIG, config)
    workdir_lib.write_json(workdir, workdir_lib.ENVIRONMENT, workdir_lib.environment())
    with workdir_lib.replacing(workdir_lib.path(workdir, workdir_lib.PARAMETERS)) as file:
        file.write(parameter_overview.get_parameter_overview(params, include_stats=False) + "\n")


def evaluate(config: ConfigDict | dict[str, Any], workdir: str) -> dict[str, Any]:
    """Evaluate the newest checkpoint of a run; writes only the cache of features to its workdir.

    Args:
      config: the run's config: a ConfigDict, or the dict of its config.json.
      workdir: the run's directory.

    Returns:
      The metrics of the headline feature and score, everything that the report shows, and two entries that JSON cannot
      hold: "arrays" (scores, predictions and labels) and "gallery" (images).

    Raises:
      ValueError: no checkpoint, a config that does not fit the data or the checkpoint, or a leak guard's reason.
    """
    plain = finished(config, workdir, num_devices=1)
    return evaluation.evaluate(from_config(plain, num_devices=1).setup, workdir)


def save_results(results: dict[str, Any], config: dict[str, Any], workdir: str) -> dict[str, Any]:
    """Write results.json, scores.npz, gallery.npz and the evaluated config.json; return the content of results.json.

    Files whose entry, "arrays" or "gallery", is missing are left alone. results["sha256"] has the digests of both.
    """
    sha256 = dict(results.get("sha256", {}))
    for entry, name in ARRAYS.items():
        if entry in results:
            content = io.BytesIO()
            np.savez_compressed(content, **results[entry])
            sha256[name] = hashlib.sha256(content.getbuffer()).hexdigest()
            with workdir_lib.replacing(workdir_lib.path(workdir, name), "wb") as file:
                file.write(content.getbuffer())
    # Keys that may change between evaluations of a run belong to its results.
    workdir_lib.write_json(workdir, workdir_lib.CONFIG, config)
    results = {key: value for key, value in results.items() if key not in ARRAYS}
    results |= {"sha256": sha256, "version": stored.VERSION, "environment": workdir_lib.environment()}
    workdir_lib.write_json(workdir, workdir_lib.RESULTS, results)
    return results
