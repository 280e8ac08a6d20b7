"""Every published protocol end to end, on a miniature tree in its official layout."""

import dataclasses
import json

import numpy as np
import pytest
from marks import slow_but
from miniature import Noise, config
from sklearn import metrics as reference
from untrained_runs import animals, untrained

from gradmix_jax import data as data_lib
from gradmix_jax import report, run, run_many
from gradmix_jax import workdir as workdir_lib
from gradmix_jax.data import order
from gradmix_jax.data.protocols import PROTOCOLS
from gradmix_jax.evaluation import leaderboard, probes, shifted
from gradmix_jax.report import contents

# One of each kind; all of them take minutes on two cores.
QUICK = ("ssb_aircraft", "imagenet_p2", "openood_cifar10")
EVERY = slow_but(QUICK, PROTOCOLS)


@pytest.fixture(autouse=True)
def few_penalties(monkeypatch):
    """Leave out the linear probe, which says nothing about a protocol and takes longer than everything else."""
    monkeypatch.setitem(probes.linear.__kwdefaults__, "l2_values", probes.L2[:1])


@pytest.mark.parametrize("name", EVERY)
def test_a_protocol_runs_from_its_tree_to_its_report(name, tmp_path):
    protocol = PROTOCOLS[name]
    plain, workdir = untrained(config(tmp_path / "data", name), tmp_path / "run")
    data = data_lib.open_set(run.from_config(plain, num_devices=1).dataset)
    found = run.evaluate(plain, workdir)
    assert found["failed"] == {} and len(found["known_classes"]) == protocol.classes == data.num_classes
    assert found["num_known"] == len(data.test_known) and found["num_unknown"] == len(data.test_unknown)
    assert {len(np.unique(data.train.labels)), len(np.unique(data.test_known.labels))} == {protocol.classes}
    _check_groups(found, data)
    if protocol.near:
        _check_leaderboard(found, protocol)
    run.save_results(found, plain, workdir)
    tables = {table.name for table in contents.all_tables(report.runs.load([workdir]))}
    assert ("unknown-groups" in tables) == bool(data.split.groups)
    assert ("leaderboard-ood" in tables) == bool(protocol.near)
    assert ("leaderboard-fsood" in tables) == bool(protocol.shifted)
    text = report.table(found, workdir)
    assert all(f"AUROC, {group} unknown classes" in text for group, _ in data.split.groups)


def _check_groups(found, data):
    """Each group's metrics compare all known images with that group's images only."""
    assert list(found.get("per_unknown_group", {})) == [name for name, _ in data.split.groups]
    known, unknown = (found["arrays"][f"{side}_scores"] for side in ("known", "unknown"))
    for name, ids in data.split.groups:
        group, chosen = found["per_unknown_group"][name], np.isin(data.test_unknown.class_ids, ids)
        assert (group["n"], group["classes"]) == (chosen.sum(), len(ids))
        truth = np.repeat([1, 0], [len(known), chosen.sum()])
        auroc = reference.roc_auc_score(truth, np.concatenate([known, unknown[chosen]]))
        assert group["auroc"] == pytest.approx(auroc, abs=1e-12)
        assert group["auroc"] == group["by_score"][found["feature"]][found["score_name"]]["auroc"]
        assert group["accuracy"] == found["accuracy"]
    if data.split.groups:
        groups = found["per_unknown_group"].values()
        together = sum(each["auroc"] * each["n"] for each in groups) / sum(each["n"] for each in groups)
        assert found["auroc"] == pytest.approx(together, abs=1e-12), "the headline covers all groups together"


def _check_leaderboard(found, protocol):
    spectra = ("ood", "fsood") if protocol.shifted else ("ood",)
    assert tuple(found["leaderboard"]) == spectra
    names = lambda kind: [leaderboard.short_name(name) for name in getattr(protocol, kind)]
    for spectrum in spectra:
        table = found["leaderboard"][spectrum]
        assert table["columns"] == ["FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC"]
        assert list(table["rows"]) == [*names("near"), "nearood", *names("far"), "farood"]
        for kind in ("near", "far"):
            mean = np.mean([table["rows"][name] for name in names(kind)], axis=0)
            assert table["rows"][f"{kind}ood"] == pytest.approx(mean)
        by_score = {"ood": "by_score", "fsood": "full_spectrum"}[spectrum]
        for kind in ("near", "far"):
            for name in getattr(protocol, kind):
                each = found["ood"][kind][name][by_score][found["feature"]][found["score_name"]]
                row = table["rows"][leaderboard.short_name(name)]
                assert row[:2] == pytest.approx([100 * each["fpr95_unknown_positive"], 100 * each["auroc"]])
    assert found["leaderboard"]["ood"]["rows"]["nearood"][-1] == pytest.approx(100 * found["accuracy"])
    assert list(found.get("shifted", {})) == list(protocol.shifted)
    if protocol.shifted:
        sizes = [found["num_known"], *(each["n"] for each in found["shifted"].values())]
        shares = [found["accuracy"], *(each["accuracy"] for each in found["shifted"].values())]
        accuracy = np.average(shares, weights=sizes)
        assert found["leaderboard"]["fsood"]["rows"]["farood"][-1] == pytest.approx(100 * accuracy)


@pytest.mark.parametrize(
    "name",
    slow_but(["imagenet_p2"], PROTOCOLS),
)
def test_a_protocol_trains(name, tmp_path):
    """One epoch with everything in the protocol's config, including negative classes where there are any."""
    c = config(tmp_path / "data", name)
    has_negative = name.startswith("imagenet_p")
    if has_negative:
        c.dataset.negative = ("published",)
    workdir = str(tmp_path / "run")
    run.run(c, workdir)
    found = workdir_lib.read_json(workdir, workdir_lib.RESULTS)
    trained_on = found["num_train"] + found.get("num_negative", 0)
    assert found["step"] == order.steps_per_epoch(trained_on, c.train.batch_size) and found["failed"] == {}
    assert 0 <= found["auroc"] <= 1
    assert ("num_negative" in found) == has_negative
    assert run_many.is_finished(c, workdir), "negative images count toward an epoch"


@pytest.mark.slow
def test_outlier_exposure_trains_on_the_negative_classes_of_a_protocol(tmp_path):
    c = config(tmp_path / "data", "imagenet_p2", "outlier_exposure")
    workdir = tmp_path / "run"
    run.run(c, str(workdir))
    found = workdir_lib.read_json(str(workdir), workdir_lib.RESULTS)
    split = data_lib.splits.get("imagenet_p2", 0)
    assert found["num_negative"] == 31 * 2 and found["failed"] == {}  # two training images of each
    assert found["num_unknown"] == len(split.unknown) == 55, "one test image of each, and none of the negative ones"
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    # Between the logarithm of the number of classes, which is that of uniform predictions, and a little more.
    assert np.log(30) <= lines[-1]["outlier_exposure"] < np.log(30) + 1


# Leaderboard


def test_a_row_of_the_leaderboard_equals_scikit_learn():
    random = np.random.default_rng(0)
    known, unknown = random.normal(1, 1, 300).round(1), random.normal(0, 1, 200).round(1)
    fpr, auroc, aupr_in, aupr_out = leaderboard.row(known, unknown)
    is_known, score = np.repeat([1, 0], [300, 200]), np.concatenate([known, unknown])

    def area(truth, score):
        precision, recall, _ = reference.precision_recall_curve(truth, score)
        return 100 * reference.auc(recall, precision)

    assert auroc == pytest.approx(100 * reference.roc_auc_score(is_known, score))
    assert aupr_in == pytest.approx(area(is_known, score)) and aupr_out == pytest.approx(area(1 - is_known, -score))
    false, true, _ = reference.roc_curve(1 - is_known, -score, drop_intermediate=False)
    assert fpr == pytest.approx(100 * false[np.argmax(true >= 0.95)])


def test_the_leaderboard_has_the_mean_of_each_kind_after_its_data_sets():
    of = lambda number: {"leaderboard": {"ood": [number] * 4}}
    found = {"near": {"imglist:a/b/tin": of(10.0), "svhn_cropped": of(30.0)}, "far": {"noise:uniform": of(90.0)}}
    wanted = {kind: tuple(names) for kind, names in found.items()}
    table = leaderboard.table(found, {"ood": 0.5}, wanted)
    assert table["ood"]["rows"] == {
        **{"tin": [10.0] * 4 + [50.0], "svhn_cropped": [30.0] * 4 + [50.0], "nearood": [20.0] * 4 + [50.0]},
        **{"noise:uniform": [90.0] * 4 + [50.0], "farood": [90.0] * 4 + [50.0]},
    }
    assert json.loads(json.dumps(table)) == table
    failed = leaderboard.table(found, {"ood": 0.5}, wanted | {"near": (*wanted["near"], "mnist")})["ood"]["rows"]
    assert set(failed) == {"tin", "svhn_cropped", "noise:uniform", "farood"}, "no mean of a part"


def test_the_full_spectrum_is_all_known_images_together():
    score = lambda *values: {"logits": {"msp": np.array(values)}, "features": {"knn": np.array(values)}}
    spectrum = shifted.Spectrum(("v2", "r"), [score(1, 2)], [np.array([True, False])])
    assert not spectrum.is_whole
    spectrum.add(score(3), np.array([True]))
    assert not spectrum.is_whole, "one of two datasets is missing"
    spectrum.add({"logits": {"msp": np.array([4, 5])}}, np.array([False, False]))
    assert spectrum.is_whole and spectrum.accuracy == 0.4
    joined = spectrum.joined()
    assert joined["logits"]["msp"].tolist() == [1, 2, 3, 4, 5] and joined["features"] == {}
    assert not shifted.Spectrum((), [score(1)], [np.array([True])]).is_whole


def test_shifted_images_have_the_labels_of_the_run(tmp_path):
    c = animals(tmp_path / "animals", **{"dataset.trial": 0})
    spec = run.from_config(json.loads(c.to_json()), num_devices=1).dataset
    data = data_lib.open_set(spec)
    noise = Noise()
    for name in ("bat", *data.class_names[::-1], *sorted(set(data.stored_names) - set(data.class_names))):
        noise.write(tmp_path / "sketches" / "test" / name / "0.png")
    source = data_lib.shifted(spec, data, f"folder:{tmp_path}/sketches")
    assert [data.class_names[label] for label in source.labels] == source.classes.tolist()
    assert sorted(source.classes) == sorted(data.class_names), "unknown and other classes are left out"
    noise.write(tmp_path / "others" / "test" / "bat" / "0.png")
    with pytest.raises(ValueError, match="evaluate.shifted must have images of known classes, but .* has none"):
        data_lib.shifted(spec, data, f"folder:{tmp_path}/others")


# Negative classes


def test_a_negative_image_in_the_test_is_found(tmp_path):
    root = tmp_path / "animals"
    named = {"dataset.benchmark": "named", "dataset.known": ("cat",), "dataset.negative": ("dog",)}
    c = animals(root, **named)
    copied = (root / "train" / "dog" / "003.png").read_bytes()
    (root / "test" / "owl" / "003.png").write_bytes(copied)
    plain, workdir = untrained(c, tmp_path / "run")
    with pytest.raises(ValueError, match="1 of the 5 images of test_unknown are also in negative; set evaluate.dup"):
        run.evaluate(plain, workdir)
    plain["evaluate"]["duplicates"] = "drop"
    found = run.evaluate(plain, workdir)
    assert found["num_negative"] == 20 and found["num_unknown"] == 4 and found["duplicates"]["unknown"] == 1
    assert set(found["per_unknown_class"]) == {"owl"}


def test_groups_may_lose_all_their_images():
    from gradmix_jax.evaluation import headline

    part = lambda *values: {"features": {"knn": np.array(values, float)}}
    scored = headline.Scored({"test_known": part(2, 3), "test_unknown": part(1, 4)}, {"test_known": {}})
    truth = headline.Truth(None, np.array(["a", "a"]), np.array(["x", "y"]), ("a",), {"easy": ["x"], "hard": ["z"]})
    found = headline.results(scored, truth, feature="features", score="knn")
    assert found["per_unknown_group"]["hard"] == {"classes": 0, "n": 0, "by_score": {}}
    assert found["per_unknown_group"]["easy"]["auroc"] == 1.0 and found["auroc"] == 0.5
    without = headline.results(scored, dataclasses.replace(truth, groups={}), feature="features", score="knn")
    assert "per_unknown_group" not in without
