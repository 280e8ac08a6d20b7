"""The page of the study, results/map.md, made only from the rows of the raw file."""

import statistics
from collections import Counter
from collections.abc import Sequence

from gradmix_jax.report import formats

from . import differences, exploratory, text
from .differences import COMPARISONS, LEVEL, MEASURES, PRIMARY, RELEVANT, REPLICATION, Difference
from .figure import svg
from .plan import ALL_SPLITS, DATA, METHODS, OBJECTIVES, all_jobs, label, split_means
from .raw import Row

HEADS = {"auroc": "AUROC", "oscr": "OSCR", "accuracy": "accuracy"}
# {(dataset, objective): its six comparisons}
Families = dict[tuple[str, str], list[Difference]]
READINGS = """\
- Only AUROC is tested, over the splits that both methods have, with seeds averaged first; splits without all seeds are
  left out. The sign-flip test counts the observed pattern as one of 100,000, so p is never 0.
- Hypothesis 1 is judged separately for each objective: by Fashion-MNIST (refuted, supported) and by the sign of the
  mean on digits (supported). A significant difference whose interval lies below .005 counts as refuted.
- Mechanism: the class evidence is the margin, the predicted class's logit minus the largest other logit. Without a
  classifier, cosine similarities to the class means of the training images replace the logits. Every run uses the same
  kind of map, the gradient of the margin with respect to the image in the run's own network, because some methods have
  no map. In random order, single pixels are deleted.
- Factorial sweep: under the contrastive objective. `attribution.sign` does not affect maps of `input`, and
  `attribution.smoothing` does not affect those of `layer`. The factor without effect on the better map is left out,
  which leaves 12 of 24 cells."""


def page(rows: Sequence[Row], history: Sequence[Row], figure: str) -> tuple[str, str]:
    """(the whole page in Markdown, its figure as an SVG file).

    Args:
      rows: the last row of every run.
      history: all rows, including failed ones that were repeated later.
      figure: path of the figure as used in the page.
    """
    families = {(d, o): differences.family(rows, d, o) for d in DATA for o in OBJECTIVES}
    blocks = [
        _introduction(rows),
        _verdicts(rows, families),
        f"![Paired differences in AUROC by class split, with 95 % intervals]({figure})\n\n*Small dots are splits; the "
        "large dot is the mean over splits with its 95 % interval.*",
        *(_tests(rows, dataset, families) for dataset in DATA),
        *(_means(rows, dataset) for dataset in DATA),
        exploratory.longer(rows),
        exploratory.mechanism(rows),
        exploratory.factorial(rows),
        _costs(rows),
        _failures(history),
        f"## Interpretation of the plan\n\n{READINGS}\n\nDeviations are listed in [the plan](plan.md#deviations).",
        _conditions(rows),
    ]
    panels = [(f"{DATA[dataset].title}, {objective}", family) for (dataset, objective), family in families.items()]
    return "\n\n".join(block for block in blocks if block) + "\n", svg(panels)


def _introduction(rows: Sequence[Row]) -> str:
    counts = {dataset: differences.whole_splits(rows, dataset) for dataset in DATA}
    said = "; ".join(f"{DATA[d].title}: {count} of {DATA[d].splits} splits" for d, count in counts.items())
    lines = [
        "# Does the map matter?",
        "",
        "This study compares GradMix (`input`, `layer`) with the same mixing by random maps, with CutMix and with no "
        "mixing, under two objectives, following a [plan](plan.md) written before the first run. All numbers on this "
        "page are computed from the rows of [map.csv](map.csv), one per run, by",
        "",
        "```bash\nPYTHONPATH=. python benchmarks/map_study.py page\n```",
        "",
        f"**State.** {said}.",
    ]
    if any(count < DATA[dataset].splits for dataset, count in counts.items()):
        lines[-1] += " **Tests of an incomplete study are preliminary.**"
    else:
        tried = {row.key for row in rows}
        for part, name in (("longer", "longer training"), ("factorial", "the factorial sweep")):
            keys = {job.key for job in all_jobs(rows, part, ALL_SPLITS)}
            lines[-1] += f" Runs of {name}: {len(keys & tried)} of {len(keys)}."
    return "\n".join(lines)


def _verdicts(rows: Sequence[Row], families: Families) -> str:
    lines = []
    for objective in OBJECTIVES:
        primary = families[PRIMARY, objective][0]
        replication = differences.difference(rows, REPLICATION, objective, COMPARISONS[0], "auroc")
        whole = all(differences.whole_splits(rows, dataset) == DATA[dataset].splits for dataset in DATA)
        word = differences.verdict(primary, replication) + ("" if whole else " (preliminary)")
        shown = (text.difference(primary), text.probability(primary.adjusted), text.difference(replication))
        lines.append([objective, f"**{word}**", *shown])
    rule = (
        "Hypothesis 1, `input` against random maps, is *refuted* in practice if the 95 % interval on Fashion-MNIST "
        f"lies below {RELEVANT:g}, *supported* if Holm's test rejects at {LEVEL * 100:g} % with a positive mean there "
        "and the mean on digits is positive too, and otherwise *undecided*."
    )
    heads = ("objective", "hypothesis 1", "Fashion-MNIST: input - random", "p (Holm)", "Digits: input - random")
    return f"## Hypothesis 1\n\n{text.table(heads, lines)}\n\n{rule}"


def _tests(rows: Sequence[Row], dataset: str, families: Families) -> str:
    heads = (
        "objective",
        "comparison",
        "AUROC",
        "95 % interval",
        "positive splits",
        "p",
        "p (Holm)",
        "OSCR",
        "accuracy",
    )
    lines = []
    for objective in OBJECTIVES:
        for one in families[dataset, objective]:
            if not one.by_split:
                continue
            pair = (one.first, one.second)
            others = [differences.difference(rows, dataset, objective, pair, name) for name in MEASURES[1:]]
            cells_ = [text.difference(each) for each in others]
            positive = f"{one.positive} of {len(one.by_split)}"
            tests = (text.probability(one.p), text.probability(one.adjusted))
            lines.append(
                [objective, " - ".join(pair), text.signed(one.mean), text.interval(one), positive, *tests, *cells_]
            )
    note = (
        "Differences are the first method minus the second. p: two-sided sign-flip test over splits (99,999 random "
        "patterns, seed 0); Holm: over the six comparisons of an objective. OSCR and accuracy are not tested; their "
        "95 % intervals are in parentheses."
    )
    return f"## {DATA[dataset].title}: paired differences\n\n{text.table(heads, lines)}\n\n{note}"


def _means(rows: Sequence[Row], dataset: str) -> str:
    lines = []
    for objective in OBJECTIVES:
        for method in METHODS:
            name = label(method, objective)
            found = {measure: split_means(rows, dataset, name, measure) for measure in MEASURES}
            if not found["auroc"]:
                continue
            means = [text.mean(by_split) for by_split in found.values()]
            lines.append([objective, method, *means, str(len(found["auroc"]))])
    heads = ("objective", "method", *(f"{name} ↑" for name in HEADS.values()), "splits")
    data, seeds = DATA[dataset], len(DATA[dataset].seeds)
    note = (
        f"Mean ± standard deviation over splits, {seeds} seed{'s' * (seeds > 1)} each. Width {data.width}, "
        f"{data.epochs} epochs of batch 128."
    )
    return f"## {data.title}: means\n\n{text.table(heads, lines)}\n\n{note}"


def _costs(rows: Sequence[Row]) -> str:
    lines = []
    for dataset in DATA:
        for objective in OBJECTIVES:
            first: float | None = None
            for method in METHODS:
                of = [row for row in rows if (row.key.dataset, row.key.variant) == (dataset, label(method, objective))]
                of = [row for row in of if row.ok and row.flops and row.seconds]
                if not of:
                    continue
                flops = of[0].flops
                first = first or flops
                seconds = statistics.fmean(row.seconds for row in of)
                shown = (f"{flops / 1e9:.2f}", f"{flops / first:.2f} x", f"{seconds:.0f}")
                lines.append([DATA[dataset].title, objective, method, *shown, str(len(of))])
    total = sum(row.seconds or 0 for row in rows) / 3600
    heads = ("data", "objective", "method", "GFLOP per step", "relative to the first", "seconds per run", "runs")
    note = f"Seconds of training and evaluation on one core; {total:.1f} hours in total. FLOPs by XLA's count."
    return f"## Costs\n\n{text.table(heads, lines)}\n\n{note}" if lines else ""


def _failures(history: Sequence[Row]) -> str:
    lines = []
    for row in history:
        if row.status != "ok":
            of = (DATA[row.key.dataset].title, row.key.variant, str(row.key.trial), str(row.key.seed))
            lines.append([*of, "yes" if row.ok else "no", formats.escape_markdown(row.status)])
    if not lines:
        return "## Failures\n\nNo run has failed so far, and every run has all of its results."
    return f"## Failures\n\n{text.table(('data', 'variant', 'split', 'seed', 'has results', 'reason'), lines)}"


def _conditions(rows: Sequence[Row]) -> str:
    if not rows:
        return "## Conditions\n\nNo runs yet."
    lines = []
    for dataset, data in DATA.items():
        of = [row for row in rows if row.key.dataset == dataset and row.train]
        if of:
            sizes = [_range([getattr(row, part) for row in of]) for part in ("train", "known", "unknown")]
            images = "{} training, {} known test, {} unknown test images".format(*sizes)
            lines.append(f"- {data.title}: {len(of)} runs, {images}; configs/{data.config}.py, width {data.width}")
    for what, name in (("jax", "jax"), ("hardware", "hardware"), ("commit", "commit (+: with changes)")):
        counts = Counter(getattr(row, what) for row in rows)
        lines.append(f"- {name}: " + ", ".join(f"{value} ({count} runs)" for value, count in sorted(counts.items())))
    return "## Conditions\n\n" + "\n".join(lines)


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
