"""Conditions of the numbers of a report: data, hardware, versions, commits, and what is missing."""

from typing import Any

from gradmix_jax.report.runs import Method, listed


def conditions(methods: list[Method]) -> list[str]:
    """Data, score, steps, hardware, versions and commits that the numbers belong to, a line each."""
    runs = [run for method in methods for run in method.runs]
    unique = lambda values: ", ".join(dict.fromkeys(map(str, values)))
    results = [run.results for run in runs]
    environments = [result["environment"] for result in results]
    trials, seeds = (sorted({run.key[place] for run in runs}) for place in (0, 1))
    return [
        f"data: {unique(run.config['dataset']['name'] for run in runs)}; "
        f"trials {unique(trials)}; seeds {unique(seeds)}",
        f"score: {unique(result['score'] for result in results)}",
        f"steps: {unique(_or_unknown(result['step']) for result in results)}; "
        f"hardware: {unique(map(hardware, environments))}; "
        f"{unique(map(versions, environments))}; commit: {unique(map(commit, environments))}",
    ]


def _or_unknown(value: Any) -> Any:
    return "unknown" if value is None else value


def hardware(environment: dict[str, Any]) -> str:
    """Devices and CPU cores."""
    devices = environment.get("devices") or ["unknown"]
    return f"{len(devices)} x {devices[0]} ({environment.get('cpu_count', 'unknown number of')} CPU cores)"


def versions(environment: dict[str, Any]) -> str:
    """Versions of JAX and Flax."""
    packages = environment.get("packages", {})
    return ", ".join(f"{name} {packages.get(name, 'unknown')}" for name in ("jax", "flax"))


def commit(environment: dict[str, Any]) -> str:
    """Commit of the code, shortened, and whether it was changed."""
    short = environment.get("commit", "")[:12] or "unknown"
    return short + (" with changes" if environment.get("uncommitted_changes") else "")


def details(methods: list[Method]) -> list[str]:
    """More conditions, for a whole report: classes, numbers of images, duplicates, thresholds, what failed."""
    results = [run.results for method in methods for run in method.runs]
    sizes = {"training": "num_train", "known test": "num_known", "unknown test": "num_unknown"}
    if any(result.get("num_negative") for result in results):
        sizes["negative training"] = "num_negative"
    ranges = {name: _range([result.get(key) for result in results]) for name, key in sizes.items()}
    lines = ["images: " + ", ".join(f"{count} {name}" for name, count in ranges.items())]
    duplicates = [result["duplicates"] for result in results if result["duplicates"]]
    if duplicates:
        sides = ("known", "unknown", "validation")
        known, unknown, validation = (_range([each.get(side, 0) for each in duplicates]) for side in sides)
        lines.append(
            f"images left out because training or another part has them too: {known} known, {unknown} unknown, "
            f"{validation} for validation"
        )
    rules = dict.fromkeys(result["threshold_rule"] for result in results if result["threshold_rule"])
    lines += [f"threshold of macro-F1 and of the confusion matrix: {rule}" for rule in rules]
    classes = {run.key[0]: run.results["known_classes"] for method in methods for run in method.runs}
    lines += [f"known classes of trial {trial}: {listed(names)}" for trial, names in sorted(classes.items()) if names]
    every = [(f"{method.label}, {run.name}", run.results) for method in methods for run in method.runs]
    failed = [f"{of}: {part} ({why})" for of, result in every for part, why in result["failed"].items()]
    pending = [f"{of}: {part} (interrupted)" for of, result in every for part in result.get("pending", ())]
    lines += [f"not evaluated: {each}" for each in failed + pending]
    return lines + [f"scores left out, {names}: {why}" for why, names in _left_out(results).items()]


def _left_out(results: list[dict[str, Any]]) -> dict[str, str]:
    """{reason: the scores that were left out for it, by feature}."""
    grouped: dict[str, dict[str, dict[str, None]]] = {}
    for result in results:
        for feature, scores in result["left_out"].items():
            for score, why in scores.items():
                reason = why.removeprefix(f"{score} ").rstrip(".")
                grouped.setdefault(reason, {}).setdefault(feature, {})[score] = None
    return {
        reason: "; ".join(f"{', '.join(scores)} of {feature}" for feature, scores in by_feature.items())
        for reason, by_feature in grouped.items()
    }


def _range(values: list[int | None]) -> str:
    values = [value for value in values if value is not None]
    if not values:
        return "unknown number of"
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
