"""Evaluation from a checkpoint to results, against scikit-learn, and everything it rejects."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import special
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from stored_data import write_folder
from untrained_runs import animals, digits, untrained, write_noise

from gradmix_jax import config as config_lib
from gradmix_jax import corruptions, metrics, scores
from gradmix_jax import data as data_lib
from gradmix_jax import run as run_lib
from gradmix_jax.config import phase
from gradmix_jax.evaluation import (
    cache,
    closed_set,
    corrupted,
    evaluate,
    features,
    fitting,
    guards,
    headline,
    images,
    probes,
)
from gradmix_jax.evaluation import gallery as gallery_lib

ODIN = {"temperature": 10.0, "noise": 0.01}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config, workdir = untrained(digits(), tmp_path_factory.mktemp("run"))
    return config, workdir, run_lib.evaluate(config, workdir)


def parts_of(run):
    return cache.load(run[1])


def test_the_headline_equals_scikit_learn(run):
    _, _, results = run
    arrays = results["arrays"]
    truth = np.r_[np.ones(results["num_known"]), np.zeros(results["num_unknown"])]
    score = np.r_[arrays["known_scores"], arrays["unknown_scores"]]
    assert results["auroc"] == pytest.approx(roc_auc_score(truth, score), abs=1e-9)
    assert results["average_precision_unknown"] == pytest.approx(average_precision_score(1 - truth, -score), abs=1e-9)
    assert results["accuracy"] == pytest.approx(np.mean(arrays["predicted"] == arrays["labels"]))
    assert results["openness"] == pytest.approx(0.1340, abs=1e-4)  # 6 of 10 classes are known
    low, high = results["intervals"]["auroc"]
    assert low < results["auroc"] < high


def test_every_score_on_every_feature_is_reported(run):
    _, _, results = run
    on_features = {"topk_cosine", "class_mean_l1", "ensemble"}
    assert {feature: set(by_score) for feature, by_score in results["by_score"].items()} == {
        "projection": on_features,
        "features": on_features,
        "stage2": on_features,
        "logits": {"msp", "vim"},
    }
    truth = np.r_[np.ones(results["num_known"]), np.zeros(results["num_unknown"])]
    for feature, by_score in results["by_score"].items():
        for score, values in by_score.items():
            both = [results["arrays"][f"{feature}/{score}/{side}"] for side in ("known", "unknown")]
            assert values["auroc"] == pytest.approx(roc_auc_score(truth, np.concatenate(both)), abs=1e-9)
    assert results["by_score"]["features"]["topk_cosine"]["auroc"] == results["auroc"]
    assert results["by_feature"]["projection"] == results["by_score"]["projection"]["topk_cosine"]
    assert set(results["by_feature"]) == {"projection", "features", "stage2"}


def test_parts_that_are_not_asked_for_are_left_out_and_the_probe_with_them(run, monkeypatch):
    config, workdir, results = run
    monkeypatch.setattr(probes, "linear", lambda *_, **__: pytest.fail("the probe was fitted"))
    # The features of the stage stay in the cache.
    few = config | {"evaluate": config["evaluate"] | {"parts": ["diversity"], "scores": ["topk_cosine"]}}
    found = run_lib.evaluate(few, workdir)
    assert found["auroc"] == results["auroc"] and found["diversity"] == results["diversity"]
    assert (found["closed_set"], found["failed"]) == ({}, {}) and "gallery" not in found
    assert found["by_score"]["features"].keys() == {"topk_cosine"} and "logits" not in found["by_score"]
    # A score of logits needs it all the same.
    needs = few | {"evaluate": few["evaluate"] | {"scores": ["msp"]}}
    with pytest.raises(pytest.fail.Exception, match="the probe was fitted"):
        run_lib.evaluate(needs, workdir)


@pytest.mark.parametrize(("k", "few"), [(2, 1), (5, 3), (1, 0)])
def test_classes_smaller_than_k_are_named(k, few):
    said = headline.fewer_images_than(k, np.array([0, 0, 2, 1, 2, 2]), ("a", "b", "c"))
    start = f"{few} of 3 classes have fewer than {k} training images (b has 1)"
    assert said.startswith(start) and said.endswith("evaluate.k should be at most 1.") if few else said == ""


def test_an_evaluation_says_that_classes_are_smaller_than_k(run, tmp_path, capsys):
    config, workdir, _ = run
    shutil.copytree(workdir, tmp_path / "copy")
    few = {"k": 1000, "parts": [], "scores": ["topk_cosine"], "stages": []}
    found = run_lib.evaluate(config | {"evaluate": config["evaluate"] | few}, str(tmp_path / "copy"))
    assert "warning: 6 of 6 classes have fewer than 1000 training images (" in capsys.readouterr().err
    assert "sum of the 1000 largest" in found["score"]


def test_class_means_by_hand(run):
    """One score computed from features.npz alone, whose parts, features and labels are those of the data."""
    parts, arrays = parts_of(run), run[2]["arrays"]
    train_features, labels = parts["train"].outputs["stage2"].astype(np.float64), parts["train"].labels
    means = np.stack([train_features[labels == label].mean(axis=0) for label in range(6)])
    test = parts["test_unknown"].outputs["stage2"].astype(np.float64)
    expected = -np.abs(test[:, None] - means).sum(axis=2).min(axis=1)
    np.testing.assert_allclose(arrays["stage2/class_mean_l1/unknown"], expected, rtol=1e-4)


def test_the_threshold_comes_from_validation_images(run):
    config, workdir, results = run
    parts, arrays = parts_of(run), run[2]["arrays"]
    model = fitting.restore(config_lib.from_config(config, num_devices=1).setup, workdir)
    judge = fitting.fit(model, {name: parts[name] for name in ("train", "validation")}, headline_only=True)
    validation = judge.score(parts["validation"].outputs)
    # Sums of cosines differ in the last bits with another batch shape.
    kept = [np.mean(validation >= results["threshold"] + shift) for shift in (-1e-5, 1e-5)]
    assert kept[0] >= 0.95 > kept[1]
    unknown = judge.predict(parts["test_unknown"].outputs)
    decide = lambda scores, predicted: np.where(scores >= results["threshold"], predicted, 6)
    decided = np.r_[decide(arrays["known_scores"], arrays["predicted"]), decide(arrays["unknown_scores"], unknown)]
    truth = np.r_[arrays["labels"], np.full(len(unknown), 6)]
    assert results["macro_f1"] == pytest.approx(f1_score(truth, decided, average="macro"))
    counts = np.array(results["confusion"]["counts"])
    assert counts.sum() == len(truth) and results["confusion"]["columns"][-1] == "unknown"
    assert np.trace(counts[:6, :6]) == np.sum((truth == decided)[: results["num_known"]])
    assert counts[6:, 6].sum() == np.sum((truth == decided)[results["num_known"] :])
    assert results["confusion"]["rows"][:6] == results["known_classes"]
    # The report needs these for decisions at other thresholds.
    np.testing.assert_array_equal(arrays["predicted_unknown"], unknown)
    names = np.array(list(results["per_unknown_class"]))
    np.testing.assert_array_equal(names[arrays["unknown_classes"]], parts["test_unknown"].classes)


def test_classes_one_by_one(run):
    _, _, results = run
    arrays, parts = results["arrays"], parts_of(run)
    for label, name in enumerate(results["known_classes"]):
        of_class = arrays["labels"] == label
        truth = np.r_[np.ones(of_class.sum()), np.zeros(results["num_unknown"])]
        score = np.r_[arrays["known_scores"][of_class], arrays["unknown_scores"]]
        assert results["per_class"][name]["auroc"] == pytest.approx(roc_auc_score(truth, score), abs=1e-9)
        assert results["per_class"][name]["accuracy"] == pytest.approx(np.mean(arrays["predicted"][of_class] == label))
    assert sum(value["n"] for value in results["per_unknown_class"].values()) == len(parts["test_unknown"])


def test_closed_set_equals_scikit_learn(run):
    parts, found = parts_of(run), run[2]["closed_set"]
    train_part, test = parts["train"], parts["test_known"]
    x, l2 = train_part.outputs["features"].astype(np.float64), found["linear_probe"]["l2"]
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (l2 * len(x)), tol=1e-8, max_iter=10**5))
    linear.fit(x, train_part.labels)
    # A few images lie on the border between two classes.
    assert found["linear_probe"]["accuracy"] == pytest.approx(
        linear.score(test.outputs["features"].astype(np.float64), test.labels), abs=0.02
    )
    neighbors = KNeighborsClassifier(found["knn"]["k"], metric="cosine").fit(x, train_part.labels)
    assert found["knn"]["accuracy"] == pytest.approx(
        neighbors.score(test.outputs["features"].astype(np.float64), test.labels), abs=0.01
    )
    assert found["topk_cosine"]["accuracy"] == run[2]["accuracy"] and found["head"] is None
    assert run[2]["logits_from"] == "linear probe"


def test_the_gallery_shows_the_images_of_the_highest_scores(run):
    config, workdir, results = run
    gallery, arrays = results["gallery"], results["arrays"]
    data = data_lib.open_set(data_lib.Spec(**config["dataset"]))
    worst = int(arrays["unknown_scores"].argmax())
    np.testing.assert_array_equal(gallery["accepted_unknown/images"][0], data.test_unknown[worst])
    assert gallery["accepted_unknown/scores"][0] == arrays["unknown_scores"].max()
    assert gallery["rejected_known/scores"][0] == arrays["known_scores"].min()
    assert not np.any(gallery["misclassified/truth"] == gallery["misclassified/predicted"])
    assert len(gallery["misclassified/images"]) == min(16, np.sum(arrays["predicted"] != arrays["labels"]))


def test_the_gallery_has_the_nearest_training_images_of_every_image(run):
    config, _, results = run
    gallery, parts = results["gallery"], parts_of(run)
    data = data_lib.open_set(data_lib.Spec(**config["dataset"]))
    unit = lambda x: x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    feature, worst = results["feature"], int(results["arrays"]["unknown_scores"].argmax())
    cosine = unit(parts["test_unknown"].outputs[feature])[worst] @ unit(parts["train"].outputs[feature]).T
    nearest = np.argsort(-cosine)[: gallery_lib.NEIGHBORS]
    np.testing.assert_allclose(gallery["accepted_unknown/similarity"][0], cosine[nearest], atol=1e-5)
    for place, row in zip(gallery["accepted_unknown/nearest"][0], nearest):
        np.testing.assert_array_equal(gallery["train/images"][place], data.train[int(parts["train"].places[row])])
        assert gallery["train/classes"][place] == parts["train"].classes[row]


def test_nearest_rows_of_a_bank_in_blocks(monkeypatch):
    random = np.random.default_rng(0)
    bank, asked = random.normal(size=(23, 4)), random.normal(size=(5, 4))
    bank[3], bank[20] = 0, 2 * bank[7]  # no direction; the same direction, so the first one wins
    asked[0] = bank[7]
    unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300)
    cosine = unit(asked) @ unit(bank).T
    monkeypatch.setattr(gallery_lib, "_BLOCK", 10)
    rows, found = gallery_lib.nearest_rows(bank, asked, count=4)
    assert rows[0, :2].tolist() == [7, 20]
    np.testing.assert_array_equal(rows[1:], np.argsort(-cosine[1:], axis=1, kind="stable")[:, :4])
    np.testing.assert_allclose(found, -np.sort(-cosine, axis=1)[:, :4], atol=1e-6)
    assert gallery_lib.nearest_rows(bank[:2], asked, count=4)[0].shape == (5, 2)


def test_features_are_computed_once(run, monkeypatch):
    config, workdir, results = run

    def fail(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr(features, "extract", fail)
    again = run_lib.evaluate(config, workdir)
    assert again["auroc"] == results["auroc"]
    other = config | {"normalization": {"mean": [0.4], "std": [0.25]}}
    with pytest.raises(AssertionError, match="computed again"):
        run_lib.evaluate(other, workdir)


def test_features_of_changed_images_are_not_reused(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        for name in ("0.png", "1.png"):
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / part / "a" / name)
    data = data_lib.folder.load(str(tmp_path), with_train=False)
    fingerprint = lambda records, *indices: records.fingerprint(np.array(indices))
    before = [fingerprint(data.test, 0), fingerprint(data.test, 0, 1)]
    Image.fromarray(np.full((8, 8), 99, np.uint8)).save(data.test.paths[1])
    assert fingerprint(data.test, 0) == before[0] and fingerprint(data.test, 0, 1) != before[1]
    images = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)
    stored = lambda images: data_lib.source.ArrayRecords(images, np.zeros(3, np.int32), "name")
    before = fingerprint(stored(images), 0, 1)
    images = images.copy()
    images[2] += 1
    assert fingerprint(stored(images), 0, 1) == before != fingerprint(stored(images), 0, 2)
    source = data_lib.Source(stored(images), np.arange(2), np.zeros(2, np.int32), 4, 1)
    setup = config_lib.from_config(digits(), num_devices=1).setup
    keys = {cache.key_of("c", setup, {"test": source}) for images[0, 0, 0] in (7, 8)}
    assert len(keys) == 2


def test_a_damaged_cache_is_computed_again(run, tmp_path, capsys):
    config, workdir, results = run
    shutil.copytree(workdir, tmp_path / "copy")
    (tmp_path / "copy" / "features.npz").write_bytes(b"nothing")
    capsys.readouterr()
    again = run_lib.evaluate(config, str(tmp_path / "copy"))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]
    assert len(lines) == 1 and lines[0].endswith("; its features are computed again."), lines
    for name, values in results["arrays"].items():
        np.testing.assert_array_equal(again["arrays"][name], values)
    assert cache.load(str(tmp_path / "copy")) and capsys.readouterr().err == "", "healed"


def test_a_classifier_head_gives_the_logits(tmp_path):
    overrides = {"model.classifier": "linear", "evaluate.stages": (), "evaluate.scores": ("msp", "vim")}
    config = digits(phases=(phase("classes", epochs=1, cross_entropy=1.0),), **overrides)
    config, workdir = untrained(config, tmp_path)
    results = run_lib.evaluate(config, workdir)
    assert results["logits_from"] == "classifier head" and set(results["by_score"]["logits"]) == {"msp", "vim"}
    logits, labels = (lambda part: (part.outputs["logits"], part.labels))(cache.load(workdir)["test_known"])
    assert results["closed_set"]["head"]["accuracy"] == pytest.approx(np.mean(logits.argmax(axis=1) == labels))
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    sums = np.exp(shifted).sum(axis=1)
    expected = -np.log(sums - 1)  # log(p / (1 - p)) of the largest p = 1 / sum
    np.testing.assert_allclose(results["arrays"]["logits/msp/known"], expected, atol=1e-5)
    # The head, not the probe, may provide the headline.
    config["evaluate"] |= {"feature": "logits", "score": "msp"}
    assert run_lib.evaluate(config, workdir)["auroc"] == results["by_score"]["logits"]["msp"]["auroc"]
    # ODIN differentiates the head and is computed when named.
    config["evaluate"] |= {"scores": ["all", "odin"], "options": config["evaluate"]["options"] | {"odin": ODIN}}
    again = run_lib.evaluate(config, workdir)
    perturbed = cache.load(workdir)["test_known"].outputs["perturbed_logits"].astype(np.float64) / ODIN["temperature"]
    confidence = special.softmax(perturbed, axis=1).max(axis=1)
    expected = np.log(perturbed.shape[1] * confidence)
    np.testing.assert_allclose(again["arrays"]["logits/odin/known"], expected, rtol=1e-3, atol=1e-6)
    before = special.softmax(logits.astype(np.float64) / ODIN["temperature"], axis=1).max(axis=1)
    assert np.mean(confidence > before) > 0.95  # the purpose of the step
    assert {"odin", "msp", "vim"} <= set(again["by_score"]["logits"])
    # Neighbor scores still use features.
    config["evaluate"]["scores"] = ["topk_cosine", "msp"]
    again = run_lib.evaluate(config, workdir)
    nearest = again["closed_set"]["topk_cosine"]["accuracy"]
    assert nearest == again["by_score"]["features"]["topk_cosine"]["accuracy"] != again["accuracy"]


def test_other_datasets(run, tmp_path):
    config, workdir, _ = run
    other = write_folder(tmp_path / "other", train={"cat": 40, "dog": 40}, test={"cat": 9, "dog": 9})
    write_noise(tmp_path / "other", brightness={"cat": 0, "dog": 128})
    changes = {"near": [other], "far": ["noise:uniform"], "probes": [other], "scores": ["topk_cosine"], "stages": []}
    results = run_lib.evaluate(config | {"evaluate": config["evaluate"] | changes}, workdir)
    near, far = results["ood"]["near"][other], results["ood"]["far"]["noise:uniform"]
    assert (near["n"], far["n"]) == (18, 1000)
    assert far["by_score"]["features"]["topk_cosine"]["auroc"] > 0.9
    found = results["probes"][other]
    assert (found["classes"], found["n_train"], found["n_validation"], found["n_test"]) == (2, 72, 8, 18)
    # Noise, darker for cats, so any encoder separates them.
    assert found["linear_probe"]["accuracy"] == found["knn"]["accuracy"] == 1.0


def corrupted_release(folder, config, names, change):
    """A release like that of CIFAR-10-C with `change`d test images of digits, and its config."""
    spec = data_lib.Spec(**config["dataset"])
    data = data_lib.open_set(spec)
    parts = (data.test_known, data.test_unknown)
    images = np.concatenate([data_lib.read_all(part)[..., 0] for part in parts])
    labels = np.concatenate([part.class_ids for part in parts])
    folder.mkdir()
    for name in names:
        np.save(folder / f"{name}.npy", np.concatenate([change(images, severity) for severity in range(1, 6)]))
    np.save(folder / "labels.npy", np.tile(labels, 5))
    return config | {"evaluate": config["evaluate"] | {"corruptions": f"folder:{folder}", "scores": ["topk_cosine"]}}


def test_corrupted_images(run, tmp_path, monkeypatch):
    monkeypatch.setattr(corruptions, "NAMES", ("contrast", "brightness"))
    config, workdir, results = run
    darker = lambda images, severity: images if severity == 1 else images // severity
    config = corrupted_release(tmp_path / "release", config, corruptions.NAMES, darker)
    found = run_lib.evaluate(config, workdir)["corruptions"]
    assert found["n"] == results["num_known"] + results["num_unknown"]
    clean = {name: results[name] for name in corrupted.METRICS}
    assert found["results"]["contrast"]["1"] == found["clean"] == pytest.approx(clean, abs=1e-6)
    errors = [1 - values["accuracy"] for of in found["results"].values() for values in of.values()]
    assert found["mce"] == pytest.approx(np.mean(errors))
    aurocs = [values["auroc"] for of in found["results"].values() for values in of.values()]
    assert found["mean"]["auroc"] == pytest.approx(np.mean(aurocs)) and len(set(aurocs)) > 2

    monkeypatch.setattr(corruptions, "NAMES", ("contrast", "brightness", "fog"))
    again = run_lib.evaluate(config, workdir)
    assert (
        list(again["failed"]) == ["corruptions"] and "neither fog.npy with labels.npy" in again["failed"]["corruptions"]
    )
    assert again["auroc"] == results["auroc"] and again["corruptions"] is None
    with pytest.raises(ValueError, match="neither fog.npy with labels.npy nor fog/1"):
        check(config)


def test_corrupted_images_in_folders_of_classes(tmp_path):
    """The layout of TinyImageNet-C: <corruption>/<severity>/<class>/*; classes are those of the run's dataset."""
    config = animals(tmp_path / "data")
    spec = data_lib.Spec(**config_lib.to_plain(config)["dataset"])
    data = data_lib.open_set(spec)
    for severity in (1, 2):
        for part, count in (("cat", 3), ("dog", 2), ("owl", 1)):
            folder = tmp_path / "release" / "fog" / str(severity) / part
            folder.mkdir(parents=True)
            for place in range(count):
                Image.fromarray(np.full((8, 8), 10 * severity + place, np.uint8)).save(folder / f"{place}.png")
    known, unknown = data_lib.corrupted(spec, data, f"folder:{tmp_path}/release", "fog", 2)
    counts = {"cat": 3, "dog": 2, "owl": 1}
    assert len(known) == sum(counts[name] for name in data.class_names)
    assert len(unknown) == 6 - len(known) and set(unknown.labels.tolist()) == {-1}
    assert set(np.unique(data_lib.read_all(known))) <= {20, 21, 22}
    assert [data.stored_names[i] for i in known.class_ids] == [data.class_names[label] for label in known.labels]
    shutil.rmtree(tmp_path / "release" / "fog" / "2" / "owl")
    with pytest.raises(ValueError, match="must have the 3 classes of .*, got .* with 2 classes"):
        data_lib.corrupted(spec, data, f"folder:{tmp_path}/release", "fog", 2)


def test_regenerated_corruptions_and_their_reference(run, tmp_path, monkeypatch):
    monkeypatch.setattr(corruptions, "NAMES", ("contrast",))
    config, workdir, results = run
    config = config | {"evaluate": config["evaluate"] | {"corruptions": "regenerated", "scores": ["topk_cosine"]}}
    found = run_lib.evaluate(config, workdir)["corruptions"]
    data = data_lib.open_set(data_lib.Spec(**config["dataset"]))
    images = data_lib.read_all(data.test_known)
    worst = np.asarray(corruptions.corrupt(jax.random.key(0), images, name="contrast", severity=5))
    model = fitting.restore(config_lib.from_config(config, num_devices=1).setup, workdir)
    judge = fitting.fit(model, {name: parts_of(run)[name] for name in ("train", "validation")}, headline_only=True)
    accuracy = np.mean(judge.predict(model.outputs(worst)) == data.test_known.labels)
    assert found["results"]["contrast"]["5"]["accuracy"] == pytest.approx(accuracy, abs=0.01)
    assert found["source"] == "regenerated" and found["mce_reference"].startswith("none")
    assert found["constants"] == "cifar10_c"

    (tmp_path / "results.json").write_text(json.dumps({"corruptions": found}))
    (tmp_path / "config.json").write_text(json.dumps(config))
    config["evaluate"]["corruption_reference"] = str(tmp_path)
    assert run_lib.evaluate(config, workdir)["corruptions"]["mce"] == pytest.approx(1.0)
    (tmp_path / "results.json").write_text(json.dumps({"corruptions": found | {"constants": "tiny_imagenet_c"}}))
    with pytest.raises(ValueError, match="with the constants 'cifar10_c', got .*, which was .* 'tiny_imagenet_c'"):
        check(config)
    (tmp_path / "results.json").write_text(json.dumps({"corruptions": found}))
    other = config | {"dataset": config["dataset"] | {"trial": config["dataset"]["trial"] + 1}}
    (tmp_path / "config.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"must be a run with dataset\.trial 0, got .*, which has 1"):
        check(config)
    (tmp_path / "results.json").write_text('{"corruptions": null}')
    with pytest.raises(ValueError, match="must be a run evaluated with corruptions 'regenerated'.* with 'none'"):
        check(config)
    assert "which was evaluated with 'none'" in run_lib.evaluate(config, workdir)["failed"]["corruptions"]


def test_blocks_of_images_are_corrupted_as_the_whole_would_be():
    clean = np.random.default_rng(0).integers(0, 256, (603, 8, 8, 1), dtype=np.uint8)
    key = jax.random.fold_in(jax.random.key(0), corruptions.NAMES.index("gaussian_noise"))
    whole = corruptions.corrupt(key, clean, name="gaussian_noise", severity=3)
    np.testing.assert_array_equal(images.corrupt(clean, "gaussian_noise", 3), whole)
    shares = [slice(*images.share_of(603, index, 2)) for index in range(2)]
    found = [images.corrupt(clean[share], "gaussian_noise", 3, first=share.start) for share in shares]
    assert [len(part) for part in found] == [302, 301]
    np.testing.assert_array_equal(np.concatenate(found), whole)


# Leak guards


def test_features_of_two_checkpoints_are_refused(run, tmp_path):
    config, workdir, _ = run
    shutil.copytree(workdir, tmp_path / "copy")
    parts = parts_of(run)
    with np.load(f"{workdir}/features.npz") as file:
        key = str(file["key"])
    parts["test_unknown"] = dataclasses.replace(parts["test_unknown"], checkpoint="of another run")
    cache.save(str(tmp_path / "copy"), parts, key)
    with pytest.raises(ValueError, match="must be of one checkpoint.*test_unknown of of another run"):
        run_lib.evaluate(config, str(tmp_path / "copy"))


def test_fingerprints_tell_checkpoints_apart():
    variables = {"params": {"kernel": np.ones((2, 3), np.float32)}}
    other = {"params": {"kernel": np.ones((2, 3), np.float32) + np.eye(2, 3, dtype=np.float32) * 1e-6}}
    assert features.fingerprint(variables) == features.fingerprint(jax.device_put(variables))
    assert features.fingerprint(variables) != features.fingerprint(other)


def test_duplicate_images_are_refused_or_dropped(tmp_path, monkeypatch):
    config = animals(tmp_path / "data")
    data = data_lib.open_set(data_lib.Spec(**config_lib.to_plain(config)["dataset"]))
    known, unknown = data.class_names[0], data.stored_names[data.split.unknown[0]]
    first = lambda part, name: sorted((tmp_path / "data" / part / name).iterdir())
    for place, (part, name) in enumerate([("test", known), ("test", unknown), ("test", unknown)]):
        source = data_lib.Source(data.train.records, data.train.indices, data.train.labels, 8, 1)[place]
        Image.fromarray(source[..., 0]).save(first(part, name)[place])
    plain, workdir = untrained(config, tmp_path / "run")
    with pytest.raises(ValueError, match="1 of the 10 images of test_known are also in train; set evaluate.duplicates"):
        run_lib.evaluate(plain, workdir)
    plain["evaluate"]["duplicates"] = "drop"
    results = run_lib.evaluate(plain, workdir)
    assert results["duplicates"] == {"known": 1, "unknown": 2, "validation": 0}
    assert (results["num_known"], results["num_unknown"]) == (9, 3)
    # Corrupted images are made only of the remaining images, whatever the source.
    plain["evaluate"]["corruptions"] = "regenerated"
    monkeypatch.setattr(corruptions, "NAMES", ("contrast",))
    assert run_lib.evaluate(plain, workdir)["corruptions"]["n"] == 9 + 3
    fog = tmp_path / "release" / "fog"
    for severity in range(1, 6):
        shutil.copytree(tmp_path / "data" / "test", fog / str(severity))
    monkeypatch.setattr(corruptions, "NAMES", ("fog",))
    plain["evaluate"]["corruptions"] = f"folder:{tmp_path}/release"
    found = run_lib.evaluate(plain, workdir)["corruptions"]
    clean = {name: results[name] for name in corrupted.METRICS}
    assert found["n"] == 9 + 3 and found["results"]["fog"]["3"] == pytest.approx(clean, abs=1e-6)
    # A release in another order does not tell which images to leave out.
    (fog / "2" / known / "000.png").rename(fog / "2" / known / "first.png")
    failed = run_lib.evaluate(plain, workdir)["failed"]
    assert "the 1 test images that are left out cannot be found in it" in failed["corruptions"]
    # Without the first image, the gallery still shows the images that were scored.
    shown = results["gallery"]["rejected_known/images"]
    hashes = features.image_hashes(shown)
    assert not np.isin(hashes, cache.load(workdir)["train"].hashes).any()


def test_no_image_is_known_and_unknown(tmp_path):
    config = animals(tmp_path / "data")
    data = data_lib.open_set(data_lib.Spec(**config_lib.to_plain(config)["dataset"]))
    unknown = data.stored_names[data.split.unknown[0]]
    # Numbers as class names prove nothing, so only the pixels can show the overlap.
    other = write_folder(tmp_path / "other", train={"0": 1}, test={"0": 3, "1": 3})
    for place, target in enumerate(
        [tmp_path / "data" / "test" / unknown / "000.png", tmp_path / "other/test/1/002.png"]
    ):
        Image.fromarray(data.test_known[place][..., 0]).save(target)
    config.evaluate.near = (other,)
    plain, workdir = untrained(config, tmp_path / "run")
    with pytest.raises(ValueError, match="1 of the 5 images of test_unknown are also in test_known; set evaluate"):
        run_lib.evaluate(plain, workdir)
    plain["evaluate"]["duplicates"] = "drop"
    results = run_lib.evaluate(plain, workdir)
    assert results["duplicates"] == {"known": 0, "unknown": 1, "validation": 0}
    assert (results["num_known"], results["num_unknown"]) == (10, 4)
    assert (results["ood"]["near"][other]["duplicates"], results["ood"]["near"][other]["n"]) == (1, 5)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_training_images_do_not_set_the_threshold(tmp_path, share, caplog):
    config = animals(tmp_path / "data")
    data = data_lib.open_set(data_lib.Spec(**config_lib.to_plain(config)["dataset"]))
    count = round(share * len(data.validation))
    for place, index in enumerate(data.validation.indices[:count]):
        Image.fromarray(data.train[place][..., 0]).save(data.validation.records.paths[index])
    plain, workdir = untrained(config, tmp_path / "run")
    results = run_lib.evaluate(plain, workdir)
    assert results["duplicates"] == {"known": 0, "unknown": 0, "validation": count}
    assert f"{count} of {len(data.validation)} validation images are left out, as they are training" in caplog.text
    if share == 1:
        assert results["threshold"] is None
        return
    with np.load(f"{workdir}/features.npz") as file:
        left = ~np.isin(file["validation/hashes"], file["train/hashes"])
        kept = {name: file[f"{part}/features"] for name, part in (("bank", "train"), ("query", "validation"))}
        labels = file["train/labels"]
    scored = scores.topk_cosine(kept["query"][left], kept["bank"], labels, k=3, num_classes=2).max(axis=1)
    assert left.sum() == len(data.validation) - count
    assert results["threshold"] == pytest.approx(metrics.known_threshold(scored), abs=1e-5)


def test_validation_images_count_as_duplicates_too(tmp_path):
    config = animals(tmp_path / "data")
    spec = data_lib.Spec(**config_lib.to_plain(config)["dataset"])
    data = data_lib.open_set(spec)
    other = write_folder(tmp_path / "other", train={"ape": 20, "fox": 20}, test={"ape": 3, "fox": 3})
    write_noise(tmp_path / "other", brightness={"ape": 128})
    held_out, its_own = data.validation[0][..., 0], data_lib.labeled(spec, other).validation[0][..., 0]
    Image.fromarray(held_out).save(tmp_path / "data" / "test" / data.class_names[0] / "000.png")
    Image.fromarray(held_out).save(tmp_path / "other" / "test" / "ape" / "000.png")
    Image.fromarray(its_own).save(tmp_path / "other" / "test" / "fox" / "001.png")
    config.evaluate.near, config.evaluate.probes = (other,), (other,)
    plain, workdir = untrained(config, tmp_path / "run")
    with pytest.raises(ValueError, match="1 of the 10 images of test_known are also in validation; set evaluate"):
        run_lib.evaluate(plain, workdir)
    plain["evaluate"]["duplicates"] = "drop"
    results = run_lib.evaluate(plain, workdir)
    assert results["duplicates"] == {"known": 1, "unknown": 0, "validation": 0}
    assert (results["ood"]["near"][other]["duplicates"], results["ood"]["near"][other]["n"]) == (1, 5)
    assert (results["probes"][other]["duplicates"], results["probes"][other]["n_test"]) == (1, 5)


def test_validation_images_that_were_trained_on_choose_nothing(run):
    """As known images or as negative ones: either moves their scores."""
    parts = parts_of(run)
    validation, train = parts["validation"], parts["train"]
    negative = dataclasses.replace(validation.take(np.arange(3)), part=guards.NEGATIVE)
    assert len(guards.not_learned([train], validation)) == len(validation)
    left = guards.not_learned([train, negative], validation)
    np.testing.assert_array_equal(left.places, validation.places[3:])
    assert guards.not_learned([validation], validation) is None


def test_no_validation_images_no_threshold(tmp_path):
    plain, workdir = untrained(animals(tmp_path / "data", **{"dataset.validation_fraction": 0.0}), tmp_path / "run")
    results = run_lib.evaluate(plain, workdir)
    assert results["macro_f1"] is None and results["confusion"] is None and "none" in results["threshold_rule"]
    assert 0 <= results["closed_set"]["linear_probe"]["accuracy"] <= 1


def test_classes_that_overlap_are_refused(tmp_path):
    config = animals(tmp_path / "data")
    other = write_folder(tmp_path / "other", train={}, test={config_names(config)[0]: 3, "fox": 3})
    config.evaluate.near = (other,)
    plain, workdir = untrained(config, tmp_path / "run")
    message = f"other must not have classes of train, got {config_names(config)[0]}"
    assert message in run_lib.evaluate(plain, workdir)["failed"][f"near dataset {other}"]
    with pytest.raises(ValueError, match=message):
        check(plain)


def check(plain):
    """The checks made before training."""
    specs = run_lib.from_config(plain, num_devices=1)
    evaluate.check_data(specs.setup, data_lib.open_set(specs.dataset))


def config_names(config):
    return data_lib.open_set(data_lib.Spec(**config_lib.to_plain(config)["dataset"])).class_names


def test_test_images_choose_nothing(run):
    parts = parts_of(run)
    with pytest.raises(ValueError, match="must be chosen with train or validation images, got 'test_known'"):
        fitting.fit_probe(parts["train"], parts["test_known"], 6)
    with pytest.raises(ValueError, match="must be chosen with.*'test_unknown'"):
        fitting.choosing(parts["test_unknown"], parts["validation"])
    with pytest.raises(ValueError, match="must be chosen with.*'test_known'"):
        closed_set.fit_neighbors(parts["train"], parts["test_known"], 6)
    guards.for_selection(parts["train"], parts["validation"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature": "stage9"}, "evaluate.feature must be one of projection, features, stage2, logits, got 'stage9'"),
        (
            {"score": "msp"},
            r"evaluate.score \(of .* 'features'\) must be one of topk_cosine,.* got 'msp'",
        ),
        ({"scores": ["cosine"]}, "each element of evaluate.scores must be one of all, topk_cosine,.* got 'cosine'"),
        ({"near": ["noise:pink"]}, "evaluate.near and evaluate.far .*noise:uniform, noise:gaussian.*'noise:pink'"),
        ({"probes": ["cifar11"]}, "each element of evaluate.probes .*'cifar11'"),
        ({"corruptions": "fog"}, "evaluate.corruptions must be one of none, regenerated,.* got 'fog'"),
        ({"duplicates": "keep"}, "evaluate.duplicates must be one of error, drop, got 'keep'"),
    ],
)
def test_mistakes_in_the_evaluate_section(change, message):
    section = config_lib.to_plain(digits())["evaluate"]
    with pytest.raises(ValueError, match=message):
        fitting.Spec(**section | change)


def test_a_stage_that_the_model_lacks(run):
    config, workdir, _ = run
    with pytest.raises(ValueError, match="of evaluate.stages must be one of stage1, stage2,.* got 'stage9'"):
        run_lib.evaluate(config | {"evaluate": config["evaluate"] | {"stages": ["stage9"]}}, workdir)


def test_the_probe_is_refitted_on_all_images_when_none_are_held_out(run):
    train_part = parts_of(run)["train"]
    linear = fitting.fit_probe(train_part, None, 6)
    expected = probes.fit_linear(*fitting.probed(train_part), num_classes=6, l2=linear.l2)
    np.testing.assert_allclose(linear.kernel_FxK, expected.kernel_FxK)


def test_a_model_with_logits_needs_no_probe(run, monkeypatch):
    """If it cannot be fitted, as with one image of each class, the headline is not affected; exports do without it."""
    tried = []

    def fail(*arguments):
        tried.append(1)
        raise ValueError("there are no validation images")

    monkeypatch.setattr(fitting, "fit_probe", fail)
    section = config_lib.to_plain(digits())["evaluate"]
    spec = fitting.Spec(**section | {"feature": "logits", "score": "max_logit", "scores": ["max_logit"], "stages": []})
    data, variables = SimpleNamespace(num_classes=6), {"params": {"classifier": {}}}
    model = SimpleNamespace(spec=spec, data=data, scored_features=("features",), variables=variables)
    part = parts_of(run)["train"]
    with_head = dataclasses.replace(part, outputs=part.outputs | {"logits": part.outputs["features"][:, :6]})
    evaluator = fitting.fit(model, {"train": with_head})
    assert evaluator.linear is None and "cannot be fitted: there are no" in evaluator.problem and len(tried) == 1
    assert fitting.fit(model, {"train": with_head}, headline_only=True).problem is None and len(tried) == 1
    with pytest.raises(ValueError, match="no validation images"):
        fitting.fit(model, {"train": part})


def test_few_batches_are_on_the_device_at_once():
    # Images that are read faster than the device works would fill its memory.
    computing = []

    class Output:
        def __init__(self, rows):
            self.rows = rows
            computing.append(self)
            assert len(computing) <= features.AHEAD + 1

        def __array__(self, dtype=None, copy=None):
            computing.remove(self)
            return self.rows

    images = np.arange(90, dtype=np.uint8).reshape(90, 1, 1, 1)
    function = lambda variables, batch: {"x": Output(np.asarray(batch)[:, 0, 0].astype(np.float32))}
    outputs, hashes = features.extract(function, {}, images, batch_size=8)
    np.testing.assert_array_equal(outputs["x"], images[:, 0, 0])
    assert not computing and len(set(hashes.tolist())) == 90


def test_a_classifier_without_a_bias_gets_zeros():
    kernel_FxK = np.arange(6, dtype=np.float32).reshape(3, 2)
    model = SimpleNamespace(variables={"params": {"classifier": {"dense": {"kernel": kernel_FxK}}}})
    found = fitting._head(model, SimpleNamespace(outputs={"logits": np.zeros((1, 2))}), None)
    np.testing.assert_array_equal(found[0], kernel_FxK)
    np.testing.assert_array_equal(found[1], np.zeros(2))
