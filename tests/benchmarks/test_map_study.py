"""The map study: its runs match the plan, none is lost or repeated, and the page follows from the raw file."""

import itertools
import json
import math
import os
import pathlib
import re
import subprocess
import sys

import map_study
import numpy as np
import pytest
import scipy.stats
from evaluated_runs import ENVIRONMENT
from study import differences, figure, mechanism, page, pilot, plan, raw, runs

from gradmix_jax import assembly, sweep
from gradmix_jax import config as config_lib
from gradmix_jax import run as run_lib
from gradmix_jax.evaluation.features import Features

ROOT = pathlib.Path(__file__).parents[2]


def row(variant, trial, auroc, *, dataset="fashion_mnist", seed=0, part="main", **values):
    values = {"oscr": 0.5, "accuracy": 0.9, "flops": 2e9, "seconds": 60.0, "commit": "abc", "jax": "0.10.2"} | values
    if auroc is None:
        values = {"status": "NonFiniteLossError: the loss of step 3 is nan"}
    return raw.Row(raw.Key(dataset, part, variant, trial, seed), 10, 16, auroc, **values)


def study(splits, *, gain=0.02, seed=0, missing=()):
    """Rows of all main runs of the first splits, `input` ahead by `gain`."""
    random, rows = np.random.default_rng(seed), []
    for dataset in plan.DATA:
        for job in itertools.chain.from_iterable(plan.main(dataset, [trial]) for trial in range(splits)):
            base = 0.8 + 0.01 * (job.key.trial % 7) + random.normal(0, 0.005)
            auroc = base + gain * job.key.variant.startswith("input")
            auroc = None if (job.key.variant, job.key.trial) in missing else float(auroc)
            measures = dict(effective_rank=60 + 100 * (auroc or 0), deleted=0.4, train=100, known=50, unknown=40)
            rows.append(row(job.key.variant, job.key.trial, auroc, dataset=dataset, seed=job.key.seed, **measures))
    return rows


def write(path, rows):
    """Append the rows, and return the path."""
    for each in rows:
        raw.append(path, each)
    return path


@pytest.fixture(autouse=True)
def no_commit_is_left(monkeypatch):
    """The study sets the variable for its process; this undoes what a test leaves of it."""
    monkeypatch.setenv("GRADMIX_JAX_COMMIT", "")
    monkeypatch.delenv("GRADMIX_JAX_COMMIT")


@pytest.fixture(scope="module")
def whole():
    return study(20)


# ---- the raw file


def test_rows_come_back_and_the_last_of_a_run_counts(tmp_path):
    path = tmp_path / "map.csv"
    assert raw.read(path) == [] == raw.history(path)
    failed = row("input, contrastive", 3, None)
    repeated = row("input, contrastive", 3, 0.8123456789, effective_rank=71.5, deleted_at_random=None)
    other = row("none, contrastive", 3, 0.7, status='diversity: one, and "two"\nlines')
    write(path, [failed, other, repeated])
    assert raw.read(path) == [repeated._replace(auroc=0.8123457), other]
    assert [each.ok for each in raw.history(path)] == [False, True, True]


def test_a_line_that_was_cut_short_is_dropped(tmp_path):
    path = tmp_path / "map.csv"
    first, second = row("input, contrastive", 0, 0.8), row("input, contrastive", 1, 0.9)
    write(path, [first, second])
    path.write_bytes(path.read_bytes()[:-20])
    assert raw.read(path) == [first]
    write(path, [second])
    assert raw.read(path) == [first, second]


def test_a_line_that_is_no_row_is_named(tmp_path):
    path = write(tmp_path / "map.csv", [row("input, contrastive", 0, 0.8)])
    path.write_text(path.read_text() + "fashion_mnist,main\n")
    with pytest.raises(ValueError, match="line 3 is not a row"):
        raw.read(path)
    path.write_text("a,b\n")
    with pytest.raises(ValueError, match="other columns"):
        raw.read(path)


def test_all_runs_take_less_than_half_a_megabyte():
    one = row("input, contrastive, keep 0.3 to 0.7, smoothing 1, temperature 0.05", 39, 0.81234567, dataset="digits")
    one = one._replace(train=32400, known=6000, unknown=4000, effective_rank=71.23456, intrinsic_dimension=11.23456)
    one = one._replace(deleted=0.4123456, deleted_at_random=0.5123456, commit="4fe3b03a1bc5", hardware="1 x cpu (2)")
    rows = study(20)
    planned = plan.all_jobs(rows, "", range(20))
    assert len(planned) == 600 + 150 + 144 and len(raw.line_of(one)) * len(planned) < 500_000


# ---- the plan


def test_the_runs_are_those_of_the_plan_split_by_split():
    jobs = plan.all_jobs([], "", range(20))
    assert len(jobs) == 20 * 10 + 20 * 10 * 2 and len({job.key for job in jobs}) == len(jobs)
    assert len({job.directory("w") for job in jobs}) == len(jobs)
    assert {job.key.variant for job in jobs[:10]} == set(sweep.MAP)
    order = [(job.key.dataset, job.key.trial) for job in jobs]
    assert [key for key, _ in itertools.groupby(order)] == sorted(set(order), key=order.index)
    assert {job.key.seed for job in jobs if job.key.dataset == "digits"} == {0, 1}
    chosen = plan.all_jobs([], "digits", [3, 1])
    assert {(job.key.dataset, job.key.trial) for job in chosen} == {("digits", 1), ("digits", 3)}


def test_a_run_is_the_row_of_the_sweep_with_the_split_and_the_headline_alone():
    for job in plan.all_jobs([], "", [7]):
        experiment = config_lib.from_config(job.config(), num_devices=1)
        expected = sweep.config_of(plan.base(job.key.dataset), job.key.variant, sweep.MAP[job.key.variant])
        expected.dataset.trial, expected.seed = 7, job.key.seed
        assert config_lib.to_plain(job.config()) == config_lib.to_plain(expected)
        assert experiment.dataset.benchmark == "random" and experiment.train.batch_size == 128
        assert experiment.evaluate.all_scores == (experiment.evaluate.score,) and not experiment.evaluate.stages
    assert job.directory("runs/map") == "runs/map/digits/layer__cross_entropy/trial7_seed1"


def test_longer_runs_are_of_the_two_leaders_and_at_equal_cost():
    rows = study(20)
    rows = [each._replace(flops=5e9 if each.key.variant.startswith("input") else 2e9) for each in rows]
    assert (
        plan.all_jobs(rows[:-1], "longer", range(20)) != [] and plan.leaders(rows[:-1], "digits", "cross-entropy") == []
    )
    jobs = plan.all_jobs(rows, "longer", range(20))
    trials = {(job.key.dataset, job.key.trial) for job in jobs}
    assert trials == {("fashion_mnist", trial) for trial in range(5)} | {("digits", trial) for trial in range(10)}
    assert len(jobs) == 3 * 2 * (5 * 1 + 10 * 2)
    assert plan.leaders(rows, "digits", "contrastive")[0] == "input"
    first = [job for job in jobs if job.key[0] == "fashion_mnist" and job.key.trial == 0]
    epochs = {job.key.variant: job.config().phases[0].epochs for job in first}
    own = plan.DATA["fashion_mnist"].epochs
    assert epochs["input, contrastive, twice the epochs"] == 2 * own
    assert epochs["none, contrastive, FLOPs of input"] == math.floor(2.5 * own + 0.5)
    assert plan.all_jobs(study(19), "longer", range(20)) == []


def test_the_factorial_sweep_has_every_cell_of_the_factors_that_count():
    jobs = plan.all_jobs(study(20), "factorial", range(20))
    assert len(jobs) == 12 * 2 * 1 + 12 * 5 * 2
    changed = set()
    for job in jobs[:12]:
        experiment = config_lib.from_config(job.config(), num_devices=1)
        assert experiment.attribution.method == "input"
        of = experiment.mix.keep_range, experiment.attribution.smoothing, experiment.objective.temperature
        changed.add(of)
    assert changed == set(itertools.product(plan.KEPT, (1, 3), plan.TEMPERATURES))
    recipe = config_lib.from_config(next(plan.main("digits", [0])).config(), num_devices=1)
    assert recipe.mix.keep_range in plan.KEPT and recipe.objective.temperature in plan.TEMPERATURES


# ---- running


@pytest.fixture
def pretended(monkeypatch):
    """Runs that take no time; those of `failing` variants fail. Returns (made, failing)."""
    made, failing = [], {}

    def pretend(config, workdir, *, last):
        made.append((config.name, config.dataset.trial))
        if config.name in failing:
            raise failing[config.name]
        os.makedirs(workdir)
        images = 1280
        values = {"accuracy": 0.9, "oscr": 0.5, "auroc": 0.6, "num_train": images, "num_known": 50, "num_unknown": 40}
        values |= {"feature": config.evaluate.feature, "score_name": config.evaluate.score, "seconds": 1.5}
        values |= {"step": 10 * sum(phase.epochs for phase in config.phases), "environment": ENVIRONMENT}
        values |= {"known_classes": list("abcdef"), "failed": {}}
        values["diversity"] = {
            "features": {"effective_rank": 7.5, "intrinsic_dimension": {"a": 3.0, "b": 5.0, "c": None}}
        }
        (pathlib.Path(workdir) / "results.json").write_text(json.dumps(values))
        (pathlib.Path(workdir) / "config.json").write_text(json.dumps(config_lib.to_plain(config)))
        lines = [{"step": 4, "steps_per_second": 2.0}, {"step": 10, "steps_per_second": 3.0}]
        (pathlib.Path(workdir) / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))

    monkeypatch.setattr(run_lib, "run", pretend)
    monkeypatch.setattr(mechanism, "halving_shares", lambda directory, data: (0.25, 0.5))
    monkeypatch.setattr(runs.data_lib, "open_set", lambda spec: None)
    cost = assembly.cost.Cost(2e9, 1.0, 1)
    monkeypatch.setattr(assembly, "step_cost", lambda experiment, **sizes: cost)
    return made, failing


def run(tmp_path, *words):
    folder = ["--raw", str(tmp_path / "map.csv"), "--workdir", str(tmp_path / "runs")]
    return map_study.main(["run", *folder, *words])


def test_finished_runs_leave_rows_and_are_not_run_again(tmp_path, pretended, capsys):
    made, _ = pretended
    assert run(tmp_path, "--only=fashion_mnist", "--splits=0") == 0
    rows = raw.read(tmp_path / "map.csv")
    assert len(made) == 10 and [each.key.variant for each in rows] == [name for name, _ in made]
    one = rows[0]
    assert (one.auroc, one.oscr, one.accuracy, one.status) == (0.6, 0.5, 0.9, "ok")
    assert (one.train, one.known, one.unknown, one.flops) == (1280, 50, 40, 2e9)
    assert (one.effective_rank, one.intrinsic_dimension, one.deleted, one.deleted_at_random) == (7.5, 4.0, 0.25, 0.5)
    assert one.seconds == 4 / 2 + 6 / 3 + 1.5
    assert (one.commit, one.jax, one.hardware) == ("abcdef012345", "0.10.2", "1 x cpu (2 CPU cores)")
    assert run(tmp_path, "--only=fashion_mnist", "--splits=0,1") == 0
    assert len(made) == 20 and len(raw.history(tmp_path / "map.csv")) == 20
    # A raw file that is lost is made of the directories.
    (tmp_path / "map.csv").unlink()
    assert run(tmp_path, "--only=fashion_mnist", "--splits=0") == 0
    assert len(made) == 20 and raw.read(tmp_path / "map.csv") == rows


def test_a_run_that_fails_is_kept_with_its_reason_and_repeated_when_asked_for(tmp_path, pretended, capsys):
    made, failing = pretended
    failing["layer, contrastive"] = ValueError("the loss of step 3 is nan;\n lower it.")
    assert run(tmp_path, "--only=fashion_mnist", "--splits=0") == 3
    (failed,) = [each for each in raw.read(tmp_path / "map.csv") if not each.ok]
    assert failed.key.variant == "layer, contrastive" and failed.auroc is None
    assert failed.status == "ValueError: the loss of step 3 is nan; lower it."
    assert run(tmp_path, "--only=fashion_mnist", "--splits=0") == 0 and len(made) == 10
    failing.clear()
    assert run(tmp_path, "--only=fashion_mnist", "--splits=0", "--retry") == 0 and len(made) == 11
    assert all(each.ok for each in raw.read(tmp_path / "map.csv"))
    shown, _ = page.page(raw.read(tmp_path / "map.csv"), raw.history(tmp_path / "map.csv"), "map.svg")
    assert "| layer, contrastive | 0 | 0 | no | ValueError: the loss of step 3 is nan; lower it. |" in shown


def test_what_is_the_machines_fault_is_no_result_and_stops_the_study(tmp_path, pretended, capsys):
    made, failing = pretended
    failing["cutmix, contrastive"] = OSError(28, "No space left on device")
    assert run(tmp_path, "--only=fashion_mnist", "--splits=0") == 2
    assert len(made) == 2 and [each.key.variant for each in raw.read(tmp_path / "map.csv")] == ["none, contrastive"]
    assert "No space left on device" in capsys.readouterr().err


def test_a_directory_of_another_config_is_no_result_of_this_study(tmp_path, pretended, monkeypatch, capsys):
    made, _ = pretended
    run(tmp_path, "--only=fashion_mnist", "--splits=0")
    (tmp_path / "map.csv").unlink()
    data = plan.DATA["fashion_mnist"]
    monkeypatch.setitem(plan.DATA, "fashion_mnist", data._replace(width=32))
    assert run(tmp_path, "--only=fashion_mnist", "--splits=0") == 3
    assert all("model.width=8, not 32" in each.status for each in raw.read(tmp_path / "map.csv"))


def test_what_is_there_is_measured_again_and_nothing_is_run(tmp_path, pretended, monkeypatch):
    made, failing = pretended
    failing["layer, contrastive"] = ValueError("no")
    run(tmp_path, "--only=fashion_mnist", "--splits=0")
    before = raw.read(tmp_path / "map.csv")
    monkeypatch.setattr(mechanism, "halving_shares", lambda directory, data: (0.75, 0.875))
    assert run(tmp_path, "--only=fashion_mnist", "--splits=0,1", "--remeasure") == 0 and len(made) == 10
    expected = [each._replace(deleted=0.75, deleted_at_random=0.875) if each.ok else each for each in before]
    assert raw.read(tmp_path / "map.csv") == expected


def test_parts_that_depend_on_results_wait_for_them(tmp_path, pretended, capsys):
    assert run(tmp_path, "--only=longer") == 2
    assert capsys.readouterr().err == "error: --only=longer needs the main runs of splits 0 to 19 first.\n"


# ---- statistics


def test_differences_are_paired_over_splits_with_seeds_averaged_first(whole):
    found = differences.difference(whole, "digits", "contrastive", ("input", "none"), "auroc")
    values = lambda method: np.array(
        [
            np.mean(
                [each.auroc for each in whole if each.key[:4] == ("digits", "main", f"{method}, contrastive", trial)]
            )
            for trial in range(20)
        ]
    )
    expected = values("input") - values("none")
    np.testing.assert_allclose([*found.by_split.values()], expected, atol=1e-15)
    student = scipy.stats.t.interval(0.95, 19, expected.mean(), scipy.stats.sem(expected))
    assert (found.mean, *found.interval) == pytest.approx((expected.mean(), *student), abs=1e-12)
    assert found.positive == np.count_nonzero(expected > 0)


def test_the_six_tests_of_an_objective_are_corrected_together(whole):
    rows = [each for each in whole if each.key.trial < 16]  # few enough for SciPy to enumerate
    found = differences.family(rows, "fashion_mnist", "cross-entropy")
    assert [(each.first, each.second) for each in found] == [*differences.COMPARISONS]
    for each in found:
        values = np.array([*each.by_split.values()])
        exact = scipy.stats.permutation_test(
            (values,), lambda x, axis: x.sum(axis), permutation_type="samples", n_resamples=99_999, vectorized=True
        )
        assert each.p == pytest.approx(exact.pvalue, abs=0.01)
    ascending = sorted(each.p for each in found)
    largest = [max((6 - place) * ascending[place] for place in range(number + 1)) for number in range(6)]
    assert sorted(each.adjusted for each in found) == pytest.approx([min(value, 1) for value in largest])
    # Comparisons that are not there yet belong to the family all the same.
    short = [each for each in rows if not each.key.variant.startswith("layer")]
    assert differences.family(short, "fashion_mnist", "cross-entropy")[0].adjusted == pytest.approx(6 * found[0].p)


def test_a_failed_run_leaves_its_split_out_of_its_comparisons():
    rows = study(5, missing={("input, contrastive", 2)})
    found = differences.difference(rows, "fashion_mnist", "contrastive", ("input", "none"), "auroc")
    assert [*found.by_split] == [0, 1, 3, 4]
    other = differences.difference(rows, "fashion_mnist", "contrastive", ("layer", "none"), "auroc")
    assert [*other.by_split] == [0, 1, 2, 3, 4]
    assert differences.whole_splits(rows, "fashion_mnist") == 5, "a failed run has been made"
    one_seed = [each for each in rows if each.key != ("digits", "main", "input, contrastive", 0, 1)]
    assert differences.whole_splits(one_seed, "digits") == 4


@pytest.mark.parametrize(
    "mean, interval, adjusted, replicated, word",
    [
        (0.01, (0.006, 0.014), 0.01, 0.002, "supported"),
        (0.01, (0.001, 0.019), 0.05, 0.002, "supported"),
        (0.01, (0.001, 0.019), 0.051, 0.002, "undecided"),
        (0.01, (0.001, 0.019), 0.01, -0.002, "undecided"),
        (0.01, (0.001, 0.019), 0.01, None, "undecided"),
        (-0.01, (-0.03, 0.01), 0.01, 0.002, "undecided"),
        (-0.01, (-0.015, -0.005), 0.01, 0.002, "refuted"),
        (0.003, (0.001, 0.0049), 0.01, 0.002, "refuted"),
        (0.003, (0.001, 0.005), 0.2, 0.002, "undecided"),
        (None, None, None, None, "undecided"),
    ],
)
def test_the_verdict_follows_the_rule_of_the_plan(mean, interval, adjusted, replicated, word):
    primary = differences.Difference("input", "random", {}, mean, interval, 0, 0.001, adjusted)
    replication = differences.Difference("input", "random", {}, replicated, None, 0)
    assert differences.verdict(primary, replication) == word


def test_correlations_are_within_a_split_and_an_objective():
    rows = study(3)  # effective rank grows with AUROC
    rows = [r._replace(deleted=-r.auroc if "cross-entropy" in r.key.variant else r.auroc) for r in rows]
    rows.append(row("input, contrastive, twice the epochs", 0, 0.99, part="longer", effective_rank=10.0))
    found = differences.correlations(rows, "fashion_mnist", "contrastive", "effective_rank")
    assert found[1:] == pytest.approx([1, 1]) and 0 <= found[0] < 1
    of_split = [each for each in rows if each.key[0] == "fashion_mnist" and ", contrastive" in each.key.variant]
    of_split = [each for each in of_split if each.key.trial == 0]
    expected = scipy.stats.spearmanr(*zip(*[(each.auroc, each.effective_rank) for each in of_split])).statistic
    assert found[0] == pytest.approx(expected)
    assert differences.correlations(rows, "digits", "cross-entropy", "deleted") == pytest.approx([-1, -1, -1])
    assert differences.correlations(rows, "digits", "cross-entropy", "deleted_at_random") == []


# ---- the page


def test_the_page_is_made_of_the_raw_file_alone_and_is_always_the_same(tmp_path, whole):
    path, out = tmp_path / "map.csv", tmp_path / "map.md"
    path.write_text("".join([",".join(raw.FIELDS) + "\n", *map(raw.line_of, whole)]))
    assert map_study.main(["page", f"--raw={path}", f"--out={out}"]) == 0
    first, drawn = out.read_bytes(), (tmp_path / "map.svg").read_bytes()
    assert map_study.main(["page", f"--raw={path}", f"--out={out}"]) == 0
    assert (out.read_bytes(), (tmp_path / "map.svg").read_bytes()) == (first, drawn)
    text = first.decode()
    assert len(drawn) < 100_000 and "![Paired differences" in text and "(map.svg)" in text
    assert "Fashion-MNIST: 20 of 20 splits; Digits: 20 of 20 splits. Runs of longer training: 0 of 150." in text
    assert "preliminary" not in text
    assert text.count("**supported**") == 2 and "No run has failed so far" in text
    (line,) = re.findall(r"^\| contrastive \| input - random \| \+0\.0[12].*$", text, re.MULTILINE)[:1]
    one = differences.family(whole, "fashion_mnist", "contrastive")[0]
    assert f"| {one.mean:+.4f} | {one.interval[0]:+.4f} to {one.interval[1]:+.4f} | {one.positive} of 20 |" in line


@pytest.mark.parametrize("splits", [0, 1, 3])
def test_an_incomplete_study_says_so(splits):
    rows = study(splits)
    text, drawn = page.page(rows, rows, "map.svg")
    assert f"Fashion-MNIST: {splits} of 20 splits; Digits: {splits} of 20 splits." in text
    assert "**Tests of an incomplete study are preliminary.**" in text and "(preliminary)**" in text
    assert "Not run yet: the leaders" in text and "nan" not in text
    assert drawn.startswith("<svg")


def test_the_figure_shows_every_split_and_interval(whole):
    family = differences.family(whole, "digits", "contrastive")
    drawn = figure.svg([("A <title>", family)])
    assert drawn.count('class="d"') == 6 * 20 and drawn.count('stroke-width="2.5"') == 6
    assert "A &lt;title&gt;" in drawn and "input - random" in drawn


def test_longer_runs_and_cells_have_their_tables():
    rows = study(20)
    for job in plan.all_jobs(rows, "longer", range(20)) + plan.all_jobs(rows, "factorial", range(20)):
        auroc = 0.85 + 0.01 * ("smoothing 3" in job.key.variant)
        rows.append(raw.Row(job.key, job.keys.get("phases[0].epochs", 5), 8, auroc, 0.7, 0.9))
    text, _ = page.page(rows, rows, "map.svg")
    assert "| Fashion-MNIST | input, contrastive, twice the epochs | 10 | 0.8500 ± 0.0000 |" in text
    assert "Runs of longer training: 150 of 150. Runs of the factorial sweep: 144 of 144." in text
    assert "longer training: 149 of 150. Runs of the factorial sweep: 0 of 144." in page.page(rows[:749], rows, "")[0]
    assert "on splits 0 to 4 (Fashion-MNIST) and 9 (Digits)." in text
    # Gaps at the plan's epochs and at equal cost, and how they grew, on splits 0 to 9.
    short = {method: plan.split_means(rows, "digits", f"{method}, contrastive") for method in ("input", "none")}
    usual = np.array([short["input"][trial] - short["none"][trial] for trial in range(10)])
    gap = np.array([short["input"][trial] - 0.85 for trial in range(10)])
    epochs = plan.epochs_of_equal_cost(study(20), "digits", "contrastive")
    for of, mean, grown in (
        ("10", usual.mean(), ""),
        (f"120, {epochs}", 0, f"{-usual.mean():+.4f}"),
        (f"10, {epochs}", gap.mean(), f"{(gap - usual).mean():+.4f}"),
    ):
        row = rf"^\| Digits \| input - none, contrastive \| {of} \| {re.escape(f'{mean:+.4f}')} \(.*\) \| "
        assert re.search(row + re.escape(grown) + r"[^|]*\| 10 \|$", text, re.MULTILINE), of
    assert "| `attribution.smoothing` | 1 | 0.8500 ± 0.0000 |  | 5 |" in text
    assert "| `attribution.smoothing` | 3 | 0.8600 ± 0.0000 | +0.0100 (+0.0100 to +0.0100) | 5 |" in text
    assert len(re.findall(r"^\| keep 0.5 to 0.9, smoothing 3", text, re.MULTILINE)) == 4


def test_a_gap_to_no_mixing_is_given_once_when_no_mixing_leads():
    rows = [each._replace(auroc=each.auroc + 0.1 * each.key.variant.startswith("none")) for each in study(20)]
    assert plan.leaders(rows, "fashion_mnist", "cross-entropy")[0] == "none"
    for job in plan.all_jobs(rows, "longer", range(20)):
        epochs = 20 if job.key.dataset == "fashion_mnist" else job.keys["phases[0].epochs"]
        rows.append(raw.Row(job.key, epochs, 8, 0.85, 0.7, 0.9))
    text, _ = page.page(rows, rows, "map.svg")
    gaps = re.findall(r"^\| (.*?) \| (\w+) - (\w+), (.*?) \| ([\d, ]+) \|", text, re.MULTILINE)
    assert {(first, second) for _, first, second, _, _ in gaps} == {("input", "none")}
    # Twice the epochs and equal FLOPs are the same number of epochs on one dataset, and two numbers on the other.
    assert [gap[0] for gap in gaps] == 2 * (3 * ["Fashion-MNIST"]) + 2 * (4 * ["Digits"])
    assert [gap[4] for gap in gaps[:3]] == ["10", "20", "10, 20"] and len(set(gaps)) == len(gaps)


# ---- mechanism and pilot


def test_the_share_at_which_evidence_halves():
    shares = np.linspace(0, 1, 5)
    curves = np.array([1 - shares, 0.8 - 0.2 * shares, [0.9, 0.9, 0.1, 0.5, 0.2], [0.4, 0.2, 0.9, 0.9, 0.9], [0.0] * 5])
    # Linear; never; between the steps .25 and .5; exactly at a step, whatever comes after; nothing to lose.
    assert mechanism.halving_share(curves) == pytest.approx([0.5, 1.0, 0.25 + 0.25 * 0.45 / 0.8, 0.25, 0.0])


def test_the_margin_is_to_the_largest_other_logit():
    logits = np.array([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [-5.0, -7.0, -4.0]])
    assert mechanism.margin(logits, np.array([0, 1, 2])).tolist() == [1.0, -2.0, 1.0]


def test_means_of_classes_have_unit_length():
    features = np.array([[3.0, 0.0], [5.0, 0.0], [0.0, 2.0]], np.float32)
    labels = np.array([1, 1, 0])
    rows = dict(labels=labels, classes=labels.astype(str), hashes=labels, places=labels)
    means = mechanism.class_means(Features("train", "c", {"features": features}, **rows), 2)
    np.testing.assert_allclose(means, [[0, 1], [1, 0]])


def features(part, values, labels, hashes):
    rows = dict(labels=np.array(labels), classes=np.array(labels).astype(str), places=np.arange(len(labels)))
    return Features(part, "c", {"features": np.float32(values)}, hashes=np.array(hashes), **rows)


def test_validation_accuracy_leaves_out_training_images(monkeypatch):
    train = features("train", [[1, 0], [1, 0.1], [0, 1], [0.1, 1]], [0, 0, 1, 1], [1, 2, 3, 4])
    monkeypatch.setattr(pilot.config_lib, "read", lambda workdir: {"evaluate": {"k": 1}})

    def accuracy(hashes):
        validation = features("validation", [[1, 0], [0, 1], [1, 0.2], [1, 0]], [0, 1, 0, 1], hashes)
        monkeypatch.setattr(pilot.cache, "load", lambda workdir: {"train": train, "validation": validation})
        return pilot.validation_accuracy("run")

    assert accuracy([5, 6, 7, 8]) == (0.75, 4)
    assert accuracy([1, 6, 7, 8]) == (pytest.approx(2 / 3), 3)
    with pytest.raises(ValueError, match=r"^All validation images of run are also training images[^\n]*$"):
        accuracy([1, 2, 3, 4])


@pytest.mark.slow
def test_real_runs_leave_rows_with_every_measure(tmp_path, monkeypatch):
    data = plan.DATA["digits"]
    monkeypatch.setitem(plan.DATA, "digits", data._replace(epochs=1, width=4, seeds=(0,)))
    assert run(tmp_path, "--only=digits", "--splits=0") == 0
    rows = raw.read(tmp_path / "map.csv")
    assert len(rows) == 10 and all(each.status == "ok" for each in rows)
    assert all(None not in each for each in rows)
    assert all(0 < share <= 1 for each in rows for share in (each.deleted, each.deleted_at_random))
    directories = [job.directory(str(tmp_path / "runs")) for job in plan.main("digits", [0])]
    table = pilot.table(directories)
    assert len(table.splitlines()) == 12 and "| digits | none, contrastive | 4 | 1 | 0 | 0 | 0." in table
    results = json.loads(pathlib.Path(directories[0], "results.json").read_text())
    accuracy = pilot.validation_accuracy(directories[0])[0]
    assert abs(accuracy - results["accuracy"]) < 0.15


def test_the_command_says_what_is_wrong_in_one_line(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "benchmarks/map_study.py", "pilot", str(tmp_path)]
    result = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 2 and re.fullmatch(r"error: .*config\.json.*\n", result.stderr), result.stderr
