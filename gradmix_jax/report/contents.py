"""The tables of a report: which entries of results.json each shows, and its title and notes."""

import statistics
from typing import Any

from gradmix_jax.report.runs import Group, Method
from gradmix_jax.report.tables import Metric, Row, Table, build

ACCURACY = Metric("accuracy", "accuracy, known classes", "accuracy")
AUROC = Metric("auroc", "AUROC", "auroc")
OSCR = Metric("oscr", "OSCR", "oscr")
DETECTION = [
    Metric("fpr95_unknown_positive", "FPR95, unknown positive", "fpr95_unknown_positive"),
    Metric("fpr95_known_positive", "FPR95, known positive", "fpr95_known_positive"),
    Metric("average_precision_known", "AUPR, known positive", "average_precision_known"),
    Metric("average_precision_unknown", "AUPR, unknown positive", "average_precision_unknown"),
]
CORRECT_AT = [
    Metric("ccr_at_fpr_01", "CCR at 1 % FPR", "ccr_at_fpr"),
    Metric("ccr_at_fpr_10", "CCR at 10 % FPR", "ccr_at_fpr"),
]
MACRO_F1 = Metric("macro_f1", "macro-F1", "macro_f1")
LINEAR_PROBE = Metric("linear_probe", "linear probe accuracy", "accuracy")
NEIGHBORS = Metric("knn", "kNN accuracy", "accuracy")
HEAD = Metric("head", "classifier head accuracy", "accuracy")
CORRUPTION_ERROR = Metric("mce", "mCE", "mce")
OVERALL = [ACCURACY, AUROC, OSCR, MACRO_F1, *DETECTION, LINEAR_PROBE, NEIGHBORS]
BY_FEATURE = [ACCURACY, AUROC, OSCR, DETECTION[1]]
PICKED_NOTE = "Picking a score from this table is a choice made on test data: a fair comparison fixes it beforehand."


def all_tables(methods: list[Method]) -> list[Table]:
    """Every table for which there are numbers."""
    tables = [
        overall(methods),
        by_feature(methods, [*BY_FEATURE, *CORRECT_AT]),
        by_score(methods),
        unknown_groups(methods),
        out_of_distribution(methods),
        leaderboard(methods, "ood"),
        leaderboard(methods, "fsood"),
        corruptions(methods),
        each_corruption(methods),
        closed_set(methods),
        probes(methods),
        diversity(methods),
    ]
    return [table for table in tables if table is not None]


def overall(methods: list[Method]) -> Table | None:
    """method x headline metrics, with intervals."""
    rows = [Row((method.label,), method, headline) for method in methods]
    distinct = lambda key: dict.fromkeys(run.results[key] for m in methods for run in m.runs if run.results[key])
    notes = [f"Score: {'; '.join(distinct('score'))}."] if distinct("score") else []
    notes += [f"Threshold of macro-F1: {rule}." for rule in distinct("threshold_rule")]
    return build("overall", "Open set recognition", ("method",), OVERALL, rows, intervals=True, notes=tuple(notes))


def across(groups: list[Group]) -> Table | None:
    """(data, method) x headline metrics, compared within the data."""
    rows = [Row((group.label, m.label), m, dict, group.label) for group in groups for m in group.methods]
    columns = [ACCURACY, AUROC, OSCR, MACRO_F1, DETECTION[1]]
    notes = ("Compared within the same data.",)
    return build("across", "All data", ("data", "method"), columns, rows, notes=notes)


def headline(results: dict[str, Any]) -> dict[str, Any]:
    """Results in which the numbers of OVERALL are entries."""
    return results | _probe_accuracies(results["closed_set"])


def _probe_accuracies(closed_set: dict[str, Any]) -> dict[str, float]:
    return {name: closed_set[name]["accuracy"] for name in ("linear_probe", "knn") if closed_set.get(name)}


def by_feature(methods: list[Method], columns: list[Metric], *, marks: bool = True) -> Table | None:
    """(method, feature) x some metrics of the headline score."""
    rows = [
        Row((method.label, feature), method, lambda results, f=feature: results["by_feature"].get(f, {}), feature)
        for method in methods
        for feature in _union(run.results["by_feature"] for run in method.runs)
    ]
    # Compared rows are adjacent.
    rows = sorted(rows, key=lambda row: list(dict.fromkeys(r.block for r in rows)).index(row.block)) if marks else rows
    names = dict.fromkeys(run.results["score_name"] for method in methods for run in method.runs) if marks else ()
    notes = (f"By the score {', '.join(names)} of each feature; compared within a feature.",) if names else ()
    title = "The same score of each feature"
    return build("by-feature", title, ("method", "feature"), columns, rows, marks=marks, notes=notes)


def by_score(methods: list[Method]) -> Table | None:
    """(method, score) x feature: AUROC."""
    everything = [run.results["by_score"] for method in methods for run in method.runs]
    features = _union(everything)
    scores = _union(each for by_score in everything for each in by_score.values())
    pick = lambda results, score: {f: each.get(score, {}).get("auroc") for f, each in results["by_score"].items()}
    rows = [
        Row((method.label, score), method, lambda results, s=score: pick(results, s), method.label)
        for method in methods
        for score in scores
    ]
    columns = [Metric(feature, feature, "auroc") for feature in features]
    title = "AUROC of every score of every feature"
    notes = ("Compared within a method: which score suits the feature.", PICKED_NOTE)
    return build("by-score", title, ("method", "score"), columns, rows, notes=notes)


def unknown_groups(methods: list[Method]) -> Table | None:
    """(group of unknown classes, method) x headline metrics against that group, and against all groups together."""
    everything = [run.results["per_unknown_group"] for method in methods for run in method.runs]
    names = _union(everything)
    pick = lambda results, name: results["per_unknown_group"].get(name, {})
    rows = [
        Row((name, method.label), method, lambda results, n=name: pick(results, n), name)
        for name in names
        for method in methods
    ]
    together = lambda results: results if results["per_unknown_group"] else {}
    rows += [Row(("together", method.label), method, together, "together") for method in methods if names]
    sizes = {name: each for found in everything for name, each in found.items()}
    notes = tuple(
        f"{name}: {each['classes']} classes, {each['n']} images."
        for name, each in sizes.items()
        if {"classes", "n"} <= each.keys()
    )
    title = "Groups of unknown classes"
    return build("unknown-groups", title, ("group", "method"), [AUROC, OSCR, *DETECTION], rows, notes=notes)


# Percent, as OpenOOD's tables are.
LEADERBOARD = [
    Metric("FPR@95", "FPR@95", "fpr95_unknown_positive"),
    Metric("AUROC", "AUROC", "auroc"),
    Metric("AUPR_IN", "AUPR_IN", "average_precision_known"),
    Metric("AUPR_OUT", "AUPR_OUT", "average_precision_unknown"),
    Metric("ACC", "ACC", "accuracy"),
]


def leaderboard(methods: list[Method], spectrum: str) -> Table | None:
    """(dataset or mean of the near or far ones, method) x the columns of OpenOOD's leaderboard, in percent."""

    def pick(results, name):
        found = results["leaderboard"].get(spectrum, {})
        return dict(zip(found.get("columns", ()), found.get("rows", {}).get(name, ())))

    found = [run.results["leaderboard"].get(spectrum, {}).get("rows", {}) for m in methods for run in m.runs]
    rows = [
        Row((name, method.label), method, lambda results, n=name: pick(results, n), name)
        for name in _union(found)
        for method in methods
    ]
    full = spectrum == "fsood"
    title = "OpenOOD's leaderboard, full spectrum" if full else "OpenOOD's leaderboard"
    notes = ("Percent. Covariate-shifted images of the known classes count as known.",) if full else ("Percent.",)
    return build(f"leaderboard-{spectrum}", title, ("dataset", "method"), LEADERBOARD, rows, notes=notes)


def out_of_distribution(methods: list[Method]) -> Table | None:
    """(distance, dataset, method) x detection metrics of the headline score."""
    rows = []
    for distance in ("near", "far", "other"):
        names = _union(run.results["ood"].get(distance, {}) for method in methods for run in method.runs)
        for name in [*names, None] if len(names) > 1 else names:
            for method in methods:
                chosen, label = ((name,), name) if name else (tuple(names), f"mean of the {len(names)}")
                pick = lambda results, distance=distance, chosen=chosen: _detection(results, distance, chosen)
                rows.append(Row((distance, label, method.label), method, pick, f"{distance} {label}"))
    title = "Out-of-distribution detection"
    notes = ("The known test images against images of other datasets, by the headline score.",)
    return build("ood", title, ("distance", "dataset", "method"), [AUROC, *DETECTION], rows, notes=notes)


def _detection(results: dict[str, Any], distance: str, names: tuple[str, ...]) -> dict[str, float]:
    """Mean over datasets of the metrics of the headline score; {} unless all of them are there."""
    present = results["ood"].get(distance, {})
    if any(name not in present for name in names):
        return {}
    each = [present[name]["by_score"].get(results["feature"], {}).get(results["score_name"], {}) for name in names]
    if not all(each):
        return {}
    shared = [key for key in each[0] if all(isinstance(values.get(key), (int, float)) for values in each)]
    return {key: statistics.fmean(values[key] for values in each) for key in shared}


def bare(metric: Metric) -> str:
    """The label, shortened where the classes of an accuracy are clear from the context."""
    return metric.label.removesuffix(", known classes")


def corruptions(methods: list[Method]) -> Table | None:
    """method x clean and mean numbers, and mCE."""
    columns = [
        Metric(f"{part} {metric.key}", f"{part} {bare(metric)}", metric.orientation)
        for part in ("clean", "mean")
        for metric in (ACCURACY, AUROC, OSCR)
    ]
    columns.append(CORRUPTION_ERROR)

    def pick(results):
        found = results["corruptions"]
        parts = {f"{part} {key}": v for part in ("clean", "mean") for key, v in found.get(part, {}).items()}
        return parts | {"mce": found.get("mce")}

    rows = [Row((method.label,), method, pick) for method in methods]
    notes = (
        "clean: the same images as they are; mean: over all corruptions and severities.",
        *_corruption_notes(methods),
    )
    return build("corruptions", "Corrupted images", ("method",), columns, rows, notes=notes)


def each_corruption(methods: list[Method]) -> Table | None:
    """(corruption, method) x means over the severities."""
    found = [run.results["corruptions"].get("results", {}) for method in methods for run in method.runs]

    def pick(results, name):
        severities = results["corruptions"].get("results", {}).get(name, {}).values()
        return {m.key: statistics.fmean(s[m.key] for s in severities) for m in (ACCURACY, AUROC, OSCR) if severities}

    rows = [
        Row((name, method.label), method, lambda results, n=name: pick(results, n), name)
        for name in _union(found)
        for method in methods
    ]
    title = "Each corruption, mean over its severities"
    return build("each-corruption", title, ("corruption", "method"), [ACCURACY, AUROC, OSCR], rows)


def _corruption_notes(methods: list[Method]) -> list[str]:
    found = [run.results["corruptions"] for m in methods for run in m.runs if run.results["corruptions"]]
    unique = lambda key: "; ".join(dict.fromkeys(str(each.get(key, "unknown")) for each in found))
    if not found:
        return []
    return [f"Reference of mCE: {unique('mce_reference')}.", f"Source: {unique('source')}; {unique('n')} images each."]


def closed_set(methods: list[Method]) -> Table | None:
    """method x accuracy and calibration of each classifier on the known classes."""
    names = {"topk_cosine": "top-k cosine", "knn": "kNN", "linear_probe": "linear probe", "head": "classifier head"}
    labels = {"accuracy": "accuracy", "ece": "ECE", "nll": "NLL", "brier": "Brier"}
    columns = [
        Metric(f"{name} {key}", f"{words} {label}", key)
        for name, words in names.items()
        for key, label in labels.items()
    ]

    def pick(results):
        parts = {name: part or {} for name, part in results["closed_set"].items()}
        return {f"{name} {key}": number for name, part in parts.items() for key, number in part.items()}

    rows = [Row((method.label,), method, pick) for method in methods]
    return build("closed-set", "Closed set: the known classes", ("method",), columns, rows)


def probes(methods: list[Method]) -> Table | None:
    """(dataset, method) x accuracy of a linear probe and of kNN on other datasets."""

    def pick(results, name):
        return _probe_accuracies(results["probes"].get(name, {}))

    everything = [run.results["probes"] for method in methods for run in method.runs]
    rows = [
        Row((name, method.label), method, lambda results, n=name: pick(results, n), name)
        for name in _union(everything)
        for method in methods
    ]
    sizes = {name: each for found in everything for name, each in found.items()}
    notes = tuple(
        f"{name}: {each['classes']} classes, {each['n_train']} training and {each['n_test']} test images."
        for name, each in sizes.items()
        if {"classes", "n_train", "n_test"} <= each.keys()
    )
    title = "Other datasets: probes of the frozen features"
    return build("probes", title, ("dataset", "method"), [LINEAR_PROBE, NEIGHBORS], rows, notes=notes)


def diversity(methods: list[Method]) -> Table | None:
    """(feature, method) x effective rank and mean intrinsic dimension."""
    columns = [Metric("rank", "effective rank"), Metric("dimension", "intrinsic dimension")]

    def pick(results, feature):
        found = results["diversity"].get(feature)
        if not found:
            return {}
        dimensions = [d for d in found.get("intrinsic_dimension", {}).values() if d is not None and d == d]
        mean = statistics.fmean(dimensions) if dimensions else None
        return {"rank": found.get("effective_rank"), "dimension": mean}

    rows = [
        Row((feature, method.label), method, lambda results, f=feature: pick(results, f))
        for feature in _union(run.results["diversity"] for method in methods for run in method.runs)
        for method in methods
    ]
    notes = (
        "Effective rank: exponential of the entropy of the singular values (Roy and Vetterli 2007).",
        "Intrinsic dimension: maximum likelihood (Levina and Bickel 2004), mean over the known classes.",
        "Neither is good or bad by itself.",
    )
    return build("diversity", "Diversity of the features", ("feature", "method"), columns, rows, notes=notes)


def _union(dictionaries) -> list[str]:
    """All keys, in order of first appearance."""
    return list(dict.fromkeys(key for each in dictionaries for key in each))
