"""Evaluate a checkpoint: features -> scores -> metrics."""

import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import jax

from gradmix_jax import data as data_lib
from gradmix_jax import metrics, scores
from gradmix_jax.evaluation import (
    closed_set,
    corrupted,
    fitting,
    gallery,
    guards,
    headline,
    images,
    leaderboard,
    out_of_distribution,
    shifted,
)
from gradmix_jax.evaluation.features import Features
from gradmix_jax.evaluation.fitting import Evaluator
from gradmix_jax.evaluation.processes import Team
from gradmix_jax.evaluation.spec import Setup
from gradmix_jax.scores.fitted import LOGITS
from gradmix_jax.training import mapping

Results = dict[str, Any]
_SIDES = ("known", "unknown")


def evaluate(
    setup: Setup,
    workdir: str,
    *,
    data: data_lib.OpenSet | None = None,
    save: Callable[[Results], None] = lambda results: None,
) -> Results | None:
    """Evaluate the newest checkpoint of a run; see `run.evaluate`, which takes a config.

    The headline comes first. Each optional part after it (out-of-distribution datasets, corruptions, probes,
    closed-set accuracies, diversity, gallery) that fails is named in results["failed"] and leaves the others alone.

    Args:
      setup: sections of the run's config.
      workdir: the run's directory.
      data: the run's data, if already open.
      save: called with the results so far after the headline and after each part; "pending" names the missing parts.

    Returns:
      The results; None on all processes but the main one, which extract features for it.

    Raises:
      ValueError: there is no headline.
    """
    data = data_lib.open_set(setup.dataset) if data is None else data
    team, problem = Team(), "the evaluation failed on the main process"
    if not team.is_main:
        return fitting.serve(setup, data)
    try:
        results = _evaluate(setup, workdir, data, save)
        problem = ""
        return results
    except ValueError as error:
        problem = str(error)
        raise
    finally:
        team.send("stop", problem=problem)


def _evaluate(setup: Setup, workdir: str, data: data_lib.OpenSet, save: Callable[[Results], None]) -> Results:
    started = time.perf_counter()
    model = fitting.restore(setup, workdir, data=data)
    parts = fitting.compute_parts(model, workdir)
    parts, dropped = _guarded(parts, model.spec.duplicates)
    dropped["validation"] = len(model.data.validation) - len(parts.get("validation", ()))
    few = headline.fewer_images_than(model.spec.k, parts["train"].labels, model.data.class_names)
    if few:
        print(f"warning: {few}", file=sys.stderr)
    evaluator = fitting.fit(model, {name: parts[name] for name in guards.SELECTION if name in parts})
    scored, results = _headline(evaluator, parts)
    results |= {
        "step": model.step,
        "checkpoint": model.checkpoint,
        "trial": model.data_spec.trial,
        "seed": setup.seed,
        "known_classes": list(model.data.class_names),
        "openness": metrics.openness(*_openness_of(model.data)),
        "num_train": len(parts["train"]),
        **({"num_negative": len(parts[guards.NEGATIVE])} if guards.NEGATIVE in parts else {}),
        "num_known": len(parts["test_known"]),
        "num_unknown": len(parts["test_unknown"]),
        "duplicates": dropped,
        "logits_from": "linear probe" if LOGITS not in parts["train"].outputs else "classifier head",
        **{"closed_set": {}, "diversity": {}, "ood": {"near": {}, "far": {}}, "corruptions": None, "probes": {}},
        "failed": {"linear probe": evaluator.problem} if evaluator.problem else {},
    }
    tasks = _optional_parts(evaluator, parts, scored, results)
    pending = list(tasks)
    for name in (None, *tasks):
        if name is not None:
            _attempt(results, name, tasks[name])
            pending.remove(name)
        results["seconds"] = round(time.perf_counter() - started, 3)
        save({**results, **({"pending": pending} if pending else {})})
    return results


def _attempt(results: Results, name: str, compute: Callable[[], None]) -> None:
    """Compute a part; if it fails, record and print why."""
    try:
        compute()
    except Exception as error:  # the failure of one part, of whatever kind, must not affect the others
        said = str(error).strip().splitlines()
        reason = (
            said[0] if isinstance(error, ValueError) and said else f"{type(error).__name__}: {' '.join(said)[:300]}"
        )
        results["failed"][name] = reason
        if not isinstance(error, (ValueError, OSError)):
            traceback.print_exc()
        print(f"evaluation, {name} failed: {reason}", file=sys.stderr)


def _optional_parts(
    evaluator: Evaluator, parts: Mapping[str, Features], scored: headline.Scored, results: Results
) -> dict[str, Callable[[], None]]:
    """{name of a part: function that adds it to the results}."""
    spec, known = evaluator.model.spec, parts["test_known"]
    selection = guards.of_training(parts)

    correct_N = scored.predicted[headline.KNOWN][spec.feature] == known.labels
    spectrum = shifted.Spectrum(spec.shifted, [scored.scores[headline.KNOWN]], [correct_N])
    of = dict(selection=selection, known=known)

    def shift(name):
        results.setdefault("shifted", {})[name] = shifted.measure(evaluator, name, spectrum, **of)

    def detect(kind, name):
        results["ood"][kind][name] = out_of_distribution.detect(evaluator, name, spectrum=spectrum, **of)
        accuracy = {leaderboard.OOD: results["accuracy"]}
        accuracy |= {leaderboard.FULL_SPECTRUM: spectrum.accuracy} if spectrum.is_whole else {}
        wanted = {"near": spec.near, "far": spec.far}
        results["leaderboard"] = leaderboard.table(results["ood"], accuracy, wanted)

    def corruptions():
        places = tuple(parts[f"test_{side}"].places for side in _SIDES)
        results["corruptions"] = corrupted.measure(evaluator, results, places, known.labels)

    nearest_N = scored.predicted[headline.KNOWN].get("features")
    put = lambda key, compute: lambda: results.__setitem__(key, compute())
    on_request = {
        "gallery": ("gallery", lambda: gallery.gallery(evaluator, parts, scored)),
        "closed_set": ("closed-set accuracies", lambda: closed_set.accuracies(evaluator, parts, nearest_N)),
        "diversity": ("diversity", lambda: closed_set.spread(evaluator, parts["train"])),
    }
    tasks = {name: put(key, compute) for key, (name, compute) in on_request.items() if key in spec.parts}
    # Before the unknown datasets, which are compared with them.
    for name in spec.shifted:
        tasks[f"shifted dataset {name}"] = lambda name=name: shift(name)
    for kind in ("near", "far"):
        for name in getattr(spec, kind):
            tasks[f"{kind} dataset {name}"] = lambda kind=kind, name=name: detect(kind, name)
    if spec.corruptions != "none":
        tasks["corruptions"] = corruptions
    for name in spec.probes:
        tasks[f"probe on {name}"] = lambda name=name: results["probes"].update(
            {name: closed_set.transfer(evaluator, name)}
        )
    return tasks


def check_data(setup: Setup, data: data_lib.OpenSet, *, reference: bool = True, decode: bool = False) -> None:
    """Open everything that an evaluation needs besides the run's own data, so that gaps are found before training.

    Args:
      setup: sections of the run's config.
      data: the run's data.
      reference: whether to look for the run of `evaluate.corruption_reference` as well.
      decode: whether to decode this process's share of all images to evaluate, except published corruptions.

    Raises:
      ValueError: a dataset, or the results of the reference, is missing or does not fit, or an image cannot be read.
    """
    spec, opener = setup.evaluate, images.Opener(setup, data)
    for name in (*spec.near, *spec.far):
        source = opener.other(name)
        known = data.for_training.dataset, data.for_training.classes
        guards.disjoint_names("train", known, name, (source.dataset, source.classes))
    for name in spec.shifted:
        opener.shifted(name)
    for name in spec.probes:
        opener.probe(name)
    corrupted.check(spec, setup.dataset, data)
    if reference and spec.corruptions != "none":
        corrupted.reference_errors(spec, setup.dataset)
    if decode and setup.dataset.bad_images != "skip":  # which has decoded them
        for name in images.names(setup, data):
            share, _ = opener.share(name, jax.process_index(), jax.process_count())
            data_lib.check_readable(share, progress=mapping.is_main_process())


def _openness_of(data: data_lib.OpenSet) -> tuple[int, int, int]:
    """Numbers of classes: in training, in the test, and to be recognized."""
    return data.num_classes, data.num_classes + len(data.split.unknown), data.num_classes


def _guarded(parts: dict[str, Features], policy: str) -> tuple[dict[str, Features], dict[str, int]]:
    """The parts without test images that are in training, in validation or on both sides, and the number removed.

    Negative images count as training images.
    """
    guards.same_checkpoint(*parts.values())
    for part in guards.of_training(parts):
        guards.disjoint_classes(part, parts["test_unknown"])
    others, parts, dropped = guards.of_training(parts), dict(parts), {}
    for side in _SIDES:
        name = f"test_{side}"
        parts[name], dropped[side] = guards.without_duplicates(others, parts[name], policy)
        others = *others, parts[name]
    return parts, dropped


def _headline(evaluator: Evaluator, parts: Mapping[str, Features]) -> tuple[headline.Scored, Results]:
    """Scores of the validation and test images, and the results of the headline."""
    spec, known, unknown = evaluator.model.spec, parts["test_known"], parts["test_unknown"]
    names = [name for name in (headline.VALIDATION, headline.KNOWN, headline.UNKNOWN) if name in parts]
    scored = headline.score_parts(evaluator.fitted, {name: evaluator.complete(parts[name].outputs) for name in names})
    data = evaluator.model.data
    groups = {name: [data.test_unknown.names[c] for c in ids] for name, ids in data.split.groups}
    truth = headline.Truth(known.labels, known.classes, unknown.classes, data.class_names, groups)
    chosen = dict(feature=spec.feature, score=spec.score)
    said = scores.describe(spec.score, spec.options.get(spec.score, {}), k=spec.k)
    results = {
        **headline.results(scored, truth, **chosen),
        "score": f"{said} ({spec.feature}); higher means known",
        "left_out": evaluator.fitted.left_out,
        "arrays": headline.arrays(scored, truth, **chosen),
    }
    return scored, results
