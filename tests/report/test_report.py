"""Aggregating runs: grouping, means, intervals and ties; tables in three formats."""

import json
import re

import numpy as np
import pytest
from evaluated_runs import FEATURES, SCORES, write_run
from scipy import stats

from gradmix_jax import config as config_lib
from gradmix_jax import report
from gradmix_jax.report import comparison, contents, formats, runs


def metrics_dict(auroc, **others):
    return dict.fromkeys([*report.ROWS, "oscr_compat", "ccr_at_fpr_01", "ccr_at_fpr_10"], 0.5) | {
        "auroc": auroc,
        **others,
    }


def simple(auroc, **others):
    """Entries of results.json with numbers that are easy to follow."""
    by_feature = {"projection": metrics_dict(auroc, **others), "features": metrics_dict(auroc - 0.1)}
    return {**metrics_dict(auroc, **others), "by_feature": by_feature}


def test_mean_and_deviation_over_splits_of_the_means_over_seeds(tmp_path):
    paths = [
        write_run(tmp_path / "a", "input", trial=0, results=simple(0.8)),
        write_run(tmp_path / "b", "input", trial=1, results=simple(0.9)),
        write_run(tmp_path / "c", "input", trial=1, seed=1, results=simple(1.0)),
        write_run(tmp_path / "d", "layer", results=simple(0.7)),
        write_run(tmp_path / "e", "input", step=0, results=simple(0.55)),
    ]
    lines = report.summary(paths).splitlines()
    # Split 0 has .8, split 1 the mean .95 of its two seeds: mean .875, and numpy.std([.8, .95], ddof=1) is .1061.
    assert lines[2].startswith("| input | projection | 0.5000 ± 0.0000 | 0.8750 ± 0.1061 |")
    assert lines[3].startswith("| input | features | 0.5000 ± 0.0000 | 0.7750 ± 0.1061 |")
    assert lines[0].endswith("| splits | runs |") and lines[2].endswith("| 2 | 3 |")
    assert "| layer | projection | 0.5000 | 0.7000 |" in lines[4] and lines[4].endswith("| 1 | 1 |")
    assert lines[6].startswith("| untrained | projection | 0.5000 | 0.5500 |")
    text = "\n".join(lines)
    assert "trials 0, 1" in text and "seeds 0, 1" in text and "abcdef012345" in text and "jax 0.10.2" in text


def test_recipes_are_told_apart(tmp_path):
    paths = [write_run(tmp_path / name, name, results=simple(0.9)) for name in config_lib.RECIPES]
    labels = [line.split("|")[1].strip() for line in report.summary(paths).splitlines()[2 : 2 + 2 * len(paths) : 2]]
    assert labels == list(config_lib.RECIPES)


def test_runs_that_cannot_be_averaged_are_refused(tmp_path):
    first = write_run(tmp_path / "a", "input")
    with pytest.raises(ValueError, match="same trial and seed"):
        report.summary([first, write_run(tmp_path / "b", "input")])
    with pytest.raises(ValueError, match=r"differ in model\.width \(4 and 8\); set --config\.name of each"):
        report.summary([first, write_run(tmp_path / "c", "input", trial=1, **{"model.width": 8})])
    with pytest.raises(ValueError, match=r"differ in dataset\.name \('digits' and 'mnist'\); use gradmix compare\."):
        runs.load([first, write_run(tmp_path / "d", "layer", **{"dataset.name": "mnist"})])
    with pytest.raises(ValueError, match="no config.json in"):
        report.summary([str(tmp_path / "nothing")])
    (tmp_path / "c" / "results.json").unlink()
    with pytest.raises(ValueError, match="no results.json in"):
        report.write([str(tmp_path / "c")], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="got no directories"):
        report.write([], str(tmp_path / "out"))


def test_methods_tested_on_other_classes_are_not_compared(tmp_path):
    write = lambda name, **keys: write_run(tmp_path / name, name.partition("_")[0], **keys)
    labels = lambda *paths: [group.label for group in runs.load_groups(paths)]
    plain, known = write("input"), {"dataset.benchmark": "random", "dataset.num_known": 4}
    assert labels(plain, write("layer")) == ["digits"]
    # Two of the unknown classes are trained on, so they are not in its test.
    negative = write("none", **{"dataset.num_negative": 2})
    assert labels(plain, negative) == ["digits, num_negative 0", "digits, num_negative 2"]
    # Those of the benchmark, or of the dataset of the known classes alone, are in no test anyway.
    p1 = {"dataset.name": "imagenet:x", "dataset.benchmark": "imagenet_p1"}
    assert len(labels(write("layer_p1", **p1), write("none_p1", **p1, **{"dataset.negative": ("published",)}))) == 1
    across = {"dataset.name": "cifar10", "dataset.benchmark": "cifar+10"}
    assert len(labels(write("layer_10", **across), write("none_10", **across, **{"dataset.num_negative": 2}))) == 1
    other = write("none_random", **known | {"dataset.num_known": 5})
    assert labels(write("layer_random", **known), other) == ["digits, num_known 4", "digits, num_known 5"]


def test_interval_of_the_mean_is_students_t():
    values = {(trial, 0): value for trial, value in enumerate([0.91, 0.94, 0.90, 0.97, 0.93])}
    # Replacing a split's run by two seeds around the same mean changes nothing.
    seeds = {(trial, seed): value + (0.01, -0.01)[seed] for (trial, _), value in values.items() for seed in (0, 1)}
    assert comparison.value(seeds).interval == pytest.approx(comparison.value(values).interval)
    assert (comparison.value(seeds).splits, comparison.value(seeds).runs) == (5, 10)
    made = comparison.value(values)
    low, high = stats.t.interval(0.95, 4, np.mean([*values.values()]), stats.sem([*values.values()]))
    assert made.interval == pytest.approx((low, high)) and made.splits == made.runs == 5
    assert made.std == pytest.approx(np.std([*values.values()], ddof=1))
    alone = comparison.value({(0, 0): 0.9}, (0.8, 0.95))
    assert (alone.std, alone.interval) == (None, (0.8, 0.95))
    one_split = comparison.value({(0, 0): 0.9, (0, 1): 0.8})
    assert (one_split.splits, one_split.runs, one_split.interval) == (1, 2, None)
    assert one_split.std == pytest.approx(np.std([0.9, 0.8], ddof=1))
    assert comparison.value({}) is None


def keyed(values):
    return {(trial, 0): value for trial, value in enumerate(values)}


def test_ties_are_those_that_the_sign_flip_test_cannot_tell_apart():
    best = keyed([0.90, 0.91, 0.92, 0.93, 0.94, 0.95])
    worse = keyed([0.80, 0.82, 0.83, 0.81, 0.85, 0.84])  # always below: p = 2 / 2^6 = .03
    mixed = keyed([0.91, 0.90, 0.93, 0.92, 0.93, 0.94])
    single = {(0, 0): 0.5}
    ranking = comparison.rank([mixed, worse, best, single, {}], higher_is_better=True)
    assert ranking.best == [False, False, True, False, False]
    assert ranking.tied == [True, False, False, False, False]
    assert ranking.splits == [6, 6, None, 1, None]
    assert ranking.tests == {"exact sign-flip permutation"}
    notes = " ".join(comparison.notes([ranking]))
    assert "exact sign-flip permutation" in notes and "n = 6 splits" in notes and "0.03125" in notes
    assert "Rows with fewer than 6 splits in common with the best are not tested and have no dagger." in notes
    # Where lower is better, the lowest is the best.
    assert comparison.rank([worse, best], higher_is_better=False).best == [True, False]
    # A single method is not marked as the best.
    assert comparison.rank([best, {}], higher_is_better=True).best == [False, False]


def test_seeds_of_a_split_are_not_independent():
    """Thirty runs of five splits cannot show more than five splits can."""
    best = {(trial, seed): 0.9 + 0.01 * trial + 0.001 * seed for trial in range(5) for seed in range(6)}
    worse = {key: number - 0.2 for key, number in best.items()}
    ranking = comparison.rank([best, worse], higher_is_better=True)
    assert (ranking.tied, ranking.tests, ranking.splits) == ([False, False], set(), [None, 5])
    notes = " ".join(comparison.notes([ranking]))
    assert "5 splits cannot show significance at 5 %" in notes and "0.0625" in notes and "Dagger" not in notes
    one = [{key: number for key, number in row.items() if key[0] == 0} for row in (best, worse)]
    assert "One split: nothing is tested" in " ".join(comparison.notes([comparison.rank(one, higher_is_better=True)]))
    # A sixth split can, with the p-value of the six means: seeds of opposite sign within a split cancel.
    for row, drop in ((best, 0), (worse, 0.2)):
        row |= {(5, seed): 0.95 - drop + (0.3 if seed % 2 else -0.3) * (drop > 0) for seed in range(6)}
    ranking = comparison.rank([best, worse], higher_is_better=True)
    assert (ranking.tied, ranking.splits) == ([False, False], [None, 6])
    assert ranking.tests == {"exact sign-flip permutation"}


def test_only_runs_that_both_have_are_paired():
    first = {(trial, seed): 0.9 for trial in range(6) for seed in range(2)}
    # Over all runs the second is worse on every split; over the runs that both have, it is not.
    second = {(trial, 0): 0.85 + 0.06 * (trial % 2) for trial in range(6)} | {(trial, 7): 0.1 for trial in range(6)}
    assert comparison.rank([first, second], higher_is_better=True).tied == [False, True]


@pytest.mark.parametrize("sign", [1, -1])
def test_fewer_trials_do_not_make_a_mean_the_best(sign):
    fewer = {(trial, 0): sign * 0.90 for trial in range(6)}
    better_with_hard_ones = {(trial, 0): sign * (0.91 if trial < 6 else 0.7) for trial in range(8)}
    ranking = comparison.rank([fewer, better_with_hard_ones], higher_is_better=sign > 0)
    assert (ranking.best, ranking.tied) == ([True, False], [False, True])
    said = "Not all rows have the same trials and seeds"
    assert any(said in note for note in comparison.notes([ranking]))
    same = comparison.rank([fewer, {key: 2 * sign for key in fewer}, {}], higher_is_better=True)
    assert not any(said in note for note in comparison.notes([same]))


def test_pairs_are_matched_by_trial_and_seed():
    first = {(0, 0): 0.9, (1, 0): 0.5, (2, 0): 0.9, (3, 0): 0.5, (4, 0): 0.9, (5, 0): 0.5}
    second = {key: first[key] - 0.01 for key in reversed(first)}  # keys in the same order would hide the difference
    assert comparison.rank([first, second], higher_is_better=True).tied == [False, False]


@pytest.fixture(scope="module")
def six_trials(tmp_path_factory):
    """Two methods over six trials, and one with a single run."""
    folder = tmp_path_factory.mktemp("six")
    paths = []
    for trial in range(6):
        up = 0.001 * trial
        strong = simple(0.95 + up, fpr95_known_positive=0.1 + up) | {"macro_f1": 0.81 + up}
        weak = simple(0.90 + up, fpr95_known_positive=0.1 + 0.01 * (-1) ** trial) | {"macro_f1": None}
        paths.append(write_run(folder / f"input{trial}", "input", trial=trial, results=strong))
        paths.append(write_run(folder / f"none{trial}", "none", trial=trial, results=weak))
    paths.append(write_run(folder / "alone", "mixup", results=simple(0.7)))
    return paths


def test_the_same_numbers_in_three_formats(six_trials):
    table = contents.overall(runs.load(six_trials))
    strong = 0.95 + 0.001 * np.arange(6)
    low, high = stats.t.interval(0.95, 5, strong.mean(), stats.sem(strong))
    number, brackets = f"{strong.mean():.4f} ± {strong.std(ddof=1):.4f}", f"[{low:.4f}, {high:.4f}]"
    markdown, latex, html = formats.markdown(table), formats.latex(table), formats.html(table)
    assert f"| **{number}** {brackets} |" in markdown
    assert rf"& \textbf{{{number}}} &".replace("±", r"$\pm$") in latex
    assert brackets in latex
    assert f"><b>{number}</b><br><small>{brackets}</small></td>" in html
    # Lower is better, and the sign-flip test cannot distinguish the two.
    index = [metric.key for metric in table.metrics].index("fpr95_known_positive")
    first, second, alone = (row[index] for row in table.values)
    assert (first.best, first.tied, second.best, second.tied) == (False, True, True, False)
    assert (alone.best, alone.tied) == (False, False)
    assert f"{first.mean:.4f} ± {first.std:.4f}† " in markdown
    assert rf"{first.mean:.4f} $\pm$ {first.std:.4f}$^{{\dagger}}$" in latex
    assert f'data-v="{first.mean!r}">{first.mean:.4f} ± {first.std:.4f}<sup>†</sup>' in html
    # Without validation images there is no macro-F1, and a single run has a bootstrap interval.
    index = [metric.key for metric in table.metrics].index("macro_f1")
    assert table.values[1][index] is None and "| – |" in markdown
    with open(f"{six_trials[-1]}/results.json") as file:
        interval = json.load(file)["intervals"]["auroc"]
    assert f"[{interval[0]:.4f}, {interval[1]:.4f}]" in markdown.splitlines()[6]
    for text in (markdown, html, latex.replace(r"\%", "%")):
        assert "percentile bootstrap over test images (1000 resamples)" in text
        assert "lower is better; unknown accepted when at least 95 % of known are accepted (standard)" in text
        assert "n = 6 splits" in text and "0.03125" in text and "fewer than 6 splits in common" in text


def test_notes_explain_only_what_a_table_shows(six_trials):
    explained = lambda paths: formats.markdown(contents.overall(runs.load(paths)))
    several, single = explained(six_trials[:-1]), explained(six_trials[-1:])
    assert "sample standard deviation over class splits" in several and "one seed each" in several
    assert "Student's t over the splits" in several and "bootstrap" not in several
    assert "sample standard deviation" not in single and "Student's t" not in single and "bootstrap" in single


def test_every_table_is_present_and_matches_the_results(tmp_path):
    path = write_run(tmp_path / "a", "input")
    with open(f"{path}/results.json") as file:
        results = json.load(file)
    tables = {table.name: table for table in contents.all_tables(runs.load([path]))}
    assert list(tables) == [
        *("overall", "by-feature", "by-score", "ood", "corruptions", "each-corruption", "closed-set", "probes"),
        "diversity",
    ]
    mean = lambda name, row, key: tables[name].values[row][[m.key for m in tables[name].metrics].index(key)].mean
    assert mean("overall", 0, "knn") == results["closed_set"]["knn"]["accuracy"]
    assert tables["by-score"].labels[: len(SCORES)] == tuple(("input", score) for score in SCORES)
    assert mean("by-score", 1, "stage3") == results["by_score"]["stage3"][SCORES[1]]["auroc"]
    assert mean("by-feature", 3, "ccr_at_fpr_10") == results["by_feature"][FEATURES[3]]["ccr_at_fpr_10"]
    near = [each["by_score"]["features"]["topk_cosine"]["auroc"] for each in results["ood"]["near"].values()]
    assert [labels[1] for labels in tables["ood"].labels] == ["letters", "a_b", "mean of the 2", "noise<i>/$x|"]
    assert mean("ood", 2, "auroc") == pytest.approx(np.mean(near))
    fog = [each["accuracy"] for each in results["corruptions"]["results"]["fog"].values()]
    assert mean("each-corruption", 0, "accuracy") == pytest.approx(np.mean(fog))
    assert mean("corruptions", 0, "mce") == pytest.approx(results["corruptions"]["mce"])
    assert "Reference of mCE: none (plain mean error)." in tables["corruptions"].notes
    assert mean("closed-set", 0, "linear_probe ece") == 0.02
    assert not any(metric.key.startswith("head") for metric in tables["closed-set"].metrics)
    assert mean("probes", 0, "linear_probe") == 0.6
    assert mean("diversity", 1, "rank") == 7.5


def test_parts_that_were_not_evaluated_have_no_table(tmp_path):
    nothing = {"corruptions": None, "probes": {}, "ood": {"near": {}, "far": {}}}
    tables = contents.all_tables(runs.load([write_run(tmp_path / "a", results=nothing)]))
    assert [table.name for table in tables] == ["overall", "by-feature", "by-score", "closed-set", "diversity"]


def test_escaping():
    text = "a<b>&$x$ c_d|e 50 % ~ ^ \\ {y} #1 `z`\n*"
    assert formats.escape_html(text).startswith("a&lt;b&gt;&amp;$x$")
    assert formats.escape_latex(text) == (
        r"a\textless{}b\textgreater{}\&\$x\$ c\_d\textbar{}e 50 \% \textasciitilde{} \textasciicircum{} "
        r"\textbackslash{} \{y\} \#1 `z` *"
    )
    assert formats.escape_markdown(text) == r"a&lt;b>&amp;$x$ c_d\|e 50 % ~ ^ \\ {y} #1 \`z\` \*"


def test_names_are_escaped_in_tables(tmp_path):
    table = contents.out_of_distribution(runs.load([write_run(tmp_path / "a")]))
    assert r"noise\textless{}i\textgreater{}/\$x\textbar{}" in formats.latex(table) and r"a\_b" in formats.latex(table)
    assert r"noise&lt;i>/$x\|" in formats.markdown(table)
    assert "noise&lt;i&gt;" in formats.html(table) and "<i>" not in formats.html(table)
    # Every row of the LaTeX table has as many cells as the header.
    body = formats.latex(table).split(r"\toprule")[1].split(r"\bottomrule")[0]
    counts = {len(re.findall(r"(?<!\\)&", line)) for line in body.splitlines() if line.endswith(r"\\")}
    assert len(counts) == 1


def test_the_text_of_one_run(tmp_path):
    path = write_run(tmp_path / "a")
    with open(f"{path}/results.json") as file:
        results = json.load(file)
    text = report.table(results, path)
    assert re.search(rf"AUROC +{results['auroc']:.4f} ↑\n", text) and re.search(r"FPR95, .* ↓\n", text)
    lower = {line.split("  ")[0] for line in text.splitlines() if line.endswith(" ↓")}
    assert lower == {"FPR95, unknown positive", "FPR95, known positive", "mCE"}
    for line in ("macro-F1", "CCR at 1 % FPR", "kNN accuracy +0.9300", "linear probe accuracy +0.9500", "mCE"):
        assert re.search(line, text)
    assert "AUROC, near OOD: letters" in text and "AUROC, far OOD: noise<i>/$x|" in text
    assert "classifier head" not in text
    for name in ("macro_f1", "corruptions", "closed_set"):
        results[name] = None
    text = report.table(results | {"ood": {"near": {}, "far": {}}}, path)
    assert "macro-F1" not in text and "mCE" not in text and "OOD" not in text and "AUROC" in text
