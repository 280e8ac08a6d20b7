"""The exploratory parts of the page, without tests: longer training, mechanism, factorial sweep."""

import statistics
from collections.abc import Sequence

from . import differences, text
from .plan import DATA, LEADING, METHODS, OBJECTIVES, cells, equal_cost, label, leaders, split_means, twice
from .raw import Row

MECHANISM = {
    "effective_rank": "effective rank",
    "intrinsic_dimension": "intrinsic dimension",
    "deleted": "deleted by the map",
    "deleted_at_random": "deleted at random",
}


def longer(rows: Sequence[Row]) -> str:
    lines = []
    for dataset in DATA:
        for objective in OBJECTIVES:
            lines += _longer(rows, dataset, objective)
    if not lines:
        return "## Longer training\n\nNot run yet: the leaders are chosen once all methods have splits 0 to 19."
    heads = ("data", "variant", "epochs", "AUROC ↑", "difference from the plan's epochs", "splits")
    splits = " and ".join(f"{data.longer - 1} ({data.title})" for data in DATA.values())
    note = (
        f"The two best methods of each objective by the mean of splits {LEADING[0]} to {LEADING[-1]}, on splits 0 to "
        f"{splits}. Rows with a minus sign in the variant: the first minus the second, at the epochs of each; the "
        "last of `input - none` are runs of equal FLOPs."
    )
    return f"## Longer training\n\n{text.table(heads, lines)}\n\n{note}"


def _longer(rows: Sequence[Row], dataset: str, objective: str) -> list[list[str]]:
    """The lines of a dataset and an objective: variants, then the gaps between them."""
    data, lines = DATA[dataset], []
    epochs = {row.key.variant: row.epochs for row in rows if row.key.dataset == dataset}
    best = leaders(rows, dataset, objective)[:2]
    short = {method: label(method, objective) for method in METHODS}
    long = {method: twice(method, objective) for method in best}
    equal = equal_cost(objective)
    for name, method in [*((long[method], method) for method in best), (equal, "none")]:
        if found := split_means(rows, dataset, name):
            gained = text.difference(differences.between(rows, dataset, name, short[method]))
            lines.append([data.title, name, str(epochs[name]), text.mean(found), gained, str(len(found))])
    # Does the gap between the leaders, or that of a method to no mixing, grow with training?
    gaps: dict[tuple[str, str], list[tuple[str, str]]] = {}
    if len(best) == 2:
        first, second = sorted(best, key=lambda method: method == "none")
        gaps[first, second] = [(long[first], long[second])]
    for method in best:
        if method != "none":
            gaps.setdefault((method, "none"), []).append((long[method], equal))
    gaps.setdefault(("input", "none"), []).append((short["input"], equal))
    for (first, second), pairs in gaps.items():
        if not all(split_means(rows, dataset, variant) for pair in pairs for variant in pair):
            continue
        name = f"{first} - {second}"
        usual = (short[first], short[second])
        before = differences.between(rows, dataset, *usual, splits=range(data.longer))
        # Without mixing, twice the epochs can be those of equal FLOPs: then both are the same runs.
        different = {tuple(epochs[variant] for variant in pair): pair for pair in [usual, *pairs]}
        for pair in different.values():
            gap = differences.between(rows, dataset, *pair, splits=range(data.longer))
            growth = differences.paired(name, name, gap.by_split, before.by_split)
            grown = "" if pair == usual else text.difference(growth)
            both = ", ".join(dict.fromkeys(str(epochs[variant]) for variant in pair))
            shown = (text.difference(gap), grown, str(len(gap.by_split)))
            lines.append([data.title, f"{name}, {objective}", both, *shown])
    return lines


def mechanism(rows: Sequence[Row]) -> str:
    lines, related = [], []
    for dataset in DATA:
        for objective in OBJECTIVES:
            for method in METHODS:
                name = label(method, objective)
                by_split = [split_means(rows, dataset, name, measure) for measure in MECHANISM]
                if not any(by_split):
                    continue
                digits = (1, 2, 3, 3)
                shown = [text.mean(found, places) for found, places in zip(by_split, digits)]
                lines.append([DATA[dataset].title, objective, method, *shown, str(len(by_split[0]))])
            for measure, name in MECHANISM.items():
                found = differences.correlations(rows, dataset, objective, measure)
                if found:
                    positive = f"{sum(each > 0 for each in found)} of {len(found)}"
                    related.append([DATA[dataset].title, objective, name, f"{statistics.fmean(found):+.2f}", positive])
    heads = ("data", "objective", "method", *MECHANISM.values(), "splits")
    note = (
        "Effective rank and intrinsic dimension: of the encoder's features of the training images. Deleted: the mean "
        "share of a test image that must be deleted, in the order of the run's map or in random order, before the "
        "class evidence halves. Exploratory, without tests."
    )
    parts = ["## Mechanism", text.table(heads, lines), note]
    if related:
        heads = ("data", "objective", "measure", "rank correlation with AUROC", "positive splits")
        parts += [
            text.table(heads, related),
            "Spearman's rank correlation over all runs of a split, with those of longer training and of the factorial "
            "sweep; mean over splits.",
        ]
    return "\n\n".join(parts)


def factorial(rows: Sequence[Row]) -> str:
    parts = []
    for dataset in DATA:
        for method in leaders(rows, dataset, "contrastive", ("input", "layer"))[:1]:
            of = label(method, "contrastive")
            found = {name: split_means(rows, dataset, f"{of}, {name}") for name in cells(method)}
            if not any(found.values()):
                continue
            lines = []
            for name, by_split in found.items():
                gain = text.difference(differences.between(rows, dataset, f"{of}, {name}", of))
                lines.append([name, text.mean(by_split), gain, str(len(by_split))])
            heads = ("cell", "AUROC ↑", "difference from the recipe", "splits")
            effects = _effects(found, method)
            parts.append(f"{DATA[dataset].title}, `{method}`:\n\n{text.table(heads, lines)}\n\n{effects}")
    if not parts:
        return "## Factorial sweep\n\nNot run yet: the better of `input` and `layer` is chosen on splits 0 to 19."
    return "## Factorial sweep\n\n" + "\n\n".join(parts)


def _effects(found: dict[str, dict[int, float]], method: str) -> str:
    """Mean AUROC at each level of each factor, over all cells and the splits that all cells have."""
    common = sorted(set.intersection(*(set(by_split) for by_split in found.values())))
    if not common:
        return "The means by level need a split with all cells."
    names: dict[str, dict[object, list[str]]] = {}  # of the cells, by factor and level
    for name, keys in cells(method).items():
        for key, level in keys.items():
            names.setdefault(key, {}).setdefault(level, []).append(name)
    lines = []
    for key, levels in names.items():
        means = {
            level: {trial: statistics.fmean(found[name][trial] for name in of_level) for trial in common}
            for level, of_level in levels.items()
        }
        first = next(iter(levels))
        for level, by_split in means.items():
            effect = differences.paired(str(level), str(first), by_split, means[first])
            shown = "" if level == first else text.difference(effect)
            lines.append([f"`{key}`", str(level), text.mean(by_split), shown, str(len(common))])
    heads = ("factor", "level", "AUROC ↑", "difference from the first level", "splits")
    return text.table(heads, lines)
