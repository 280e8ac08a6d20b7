"""The exploratory parts of the page, without tests: longer training, mechanism, factorial sweep."""

import statistics
from collections.abc import Sequence

from . import differences, text
from .plan import DATA, LEADING, METHODS, OBJECTIVES, cells, label, leaders, split_means
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
            best = leaders(rows, dataset, objective)[:2]
            names = {f"{label(method, objective)}, twice the epochs": method for method in best}
            names |= {f"{label('none', objective)}, FLOPs of input": "none"} if best else {}
            longest = {name: split_means(rows, dataset, name) for name in names}
            for name, method in names.items():
                short, found = split_means(rows, dataset, label(method, objective)), longest[name]
                if not found:
                    continue
                epochs = next(row.epochs for row in rows if row.key.dataset == dataset and row.key.variant == name)
                of = {trial: found[trial] - short[trial] for trial in found if trial in short}
                gain = differences.of_splits((name, method), of)
                gained = f"{text.signed(gain.mean)} ({text.interval(gain)})"
                lines.append([DATA[dataset].title, name, str(epochs), text.mean(found), gained, str(len(found))])
            # Does the gap between the leaders grow with training, and is one to no mixing left at equal FLOPs?
            gap = f"{' - '.join(best)}, {objective}"
            if len(best) == 2 and all(longest[name] for name in [*names][:2]):
                for times, ending in ((1, ""), (2, ", twice the epochs")):
                    pair = [label(method, objective) + ending for method in best]
                    lines.append(_gap(rows, dataset, gap, str(times * DATA[dataset].epochs), *pair))
            equal = f"{label('none', objective)}, FLOPs of input"
            if longest.get(equal):  # the last of the names, so `epochs` are its own
                both, name = f"{DATA[dataset].epochs}, {epochs}", f"input - none, {objective}, FLOPs of input"
                lines.append(_gap(rows, dataset, name, both, label("input", objective), equal))
    if not lines:
        return "## Longer training\n\nNot run yet: the leaders are chosen once all methods have splits 0 to 19."
    heads = ("data", "variant", "epochs", "AUROC ↑", "difference from the plan's epochs", "splits")
    splits = " and ".join(f"{data.longer - 1} ({data.title})" for data in DATA.values())
    note = (
        f"The two best methods of each objective by the mean of splits {LEADING[0]} to {LEADING[-1]}, on splits 0 to "
        f"{splits}. Rows with a minus sign in the variant: the first minus the second, of the leaders at the plan's "
        "epochs and at twice as many, and of `input` and no mixing at equal FLOPs."
    )
    return f"## Longer training\n\n{text.table(heads, lines)}\n\n{note}"


def _gap(rows: Sequence[Row], dataset: str, name: str, epochs: str, first: str, second: str) -> list[str]:
    """The row of one variant minus another, on the splits of longer training that both have."""
    ours, others = split_means(rows, dataset, first), split_means(rows, dataset, second)
    splits = [trial for trial in range(DATA[dataset].longer) if trial in ours and trial in others]
    by_split = {trial: ours[trial] - others[trial] for trial in splits}
    gap = differences.of_splits((first, second), by_split)
    shown = f"{text.signed(gap.mean)} ({text.interval(gap)})"
    return [DATA[dataset].title, name, epochs, shown, "", str(len(by_split))]


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
            "Spearman's rank correlation over the runs of a split; mean over splits.",
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
            splits = range(DATA[dataset].factorial)
            usual = {trial: value for trial, value in split_means(rows, dataset, of).items() if trial in splits}
            lines = []
            for name, by_split in found.items():
                gain = {trial: by_split[trial] - usual[trial] for trial in by_split if trial in usual}
                one = differences.of_splits((name, method), gain)
                shown = f"{text.signed(one.mean)} ({text.interval(one)})"
                lines.append([name, text.mean(by_split), shown, str(len(by_split))])
            heads = ("cell", "AUROC ↑", "difference from the recipe", "splits")
            effects = _effects(found, method)
            parts.append(f"{DATA[dataset].title}, `{method}`:\n\n{text.table(heads, lines)}\n\n{effects}")
    if not parts:
        return "## Factorial sweep\n\nNot run yet: the better of `input` and `layer` is chosen on splits 0 to 19."
    return "## Factorial sweep\n\n" + "\n\n".join(parts)


def _effects(found: dict[str, dict[int, float]], method: str) -> str:
    """Mean AUROC at each level of each factor, over all cells and the splits that all cells have."""
    common = set.intersection(*(set(by_split) for by_split in found.values()))
    if not common:
        return "The means by level need a split with all cells."
    levels: dict[tuple[str, object], list[float]] = {}
    for name, keys in cells(method).items():
        for key, level in keys.items():
            values = [found[name][trial] for trial in sorted(common)]
            levels.setdefault((key, level), []).extend(values)
    factors = [*dict.fromkeys(key for key, _ in levels)]
    ordered = sorted(levels.items(), key=lambda each: factors.index(each[0][0]))
    lines = [[f"`{key}`", str(level), f"{statistics.fmean(values):.4f}"] for (key, level), values in ordered]
    return text.table(("factor", "level", "mean AUROC"), lines)
