"""Stored features and logits of any model: results against scikit-learn, files, and rejected input."""

import csv
import json
import pickle
import time

import commands
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow
from scipy import special, stats
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from gradmix_jax import metrics, scores
from gradmix_jax.evaluation import paired
from gradmix_jax.models import safetensors_file
from gradmix_jax.report.sections import OF_A_RUN
from gradmix_jax.score import names_of, read, score
from gradmix_jax.scores import odin

K, F = 4, 12
PARTS = ("train", "validation", "known", "unknown", "unknown.far/out_side")
EXTRA = "unknown.far/out_side"  # names may have slashes and underscores


def made_up(seed=0, *, scale=1.0):
    """Arrays of all parts: clusters of features, and logits of a linear head."""
    random = np.random.default_rng(0)
    centers = 1.2 * random.normal(size=(K + 3, F))
    random = np.random.default_rng(seed)
    kernel, bias = centers[:K].T.astype(np.float32), (-(centers[:K] ** 2).sum(axis=1) / 2).astype(np.float32)
    arrays = {"head_kernel": kernel, "head_bias": bias}
    sizes = {"train": (200, 0, K), "validation": (60, 0, K), "known": (150, 0, K), "unknown": (90, K, K + 2)}
    for part, (size, first, stop) in {**sizes, EXTRA: (40, K + 2, K + 3)}.items():
        labels = np.arange(size) % (stop - first) + first
        features = (centers[labels] + scale * random.normal(size=(size, F))).astype(np.float32)
        arrays |= {f"{part}_features": features, f"{part}_logits": features @ kernel + bias, f"{part}_labels": labels}
    return arrays


@pytest.fixture(scope="module")
def arrays():
    return made_up()


@pytest.fixture(scope="module")
def results(arrays):
    return score(arrays)


def test_every_score_equals_scikit_learn(results, arrays):
    truth = np.r_[np.ones(150), np.zeros(90)]
    for feature, by_score in results["by_score"].items():
        for name, values in by_score.items():
            both = np.concatenate([results["arrays"][f"{feature}/{name}/{side}"] for side in ("known", "unknown")])
            assert values["auroc"] == pytest.approx(roc_auc_score(truth, both), abs=1e-6)
            expected = average_precision_score(1 - truth, -both)
            assert values["average_precision_unknown"] == pytest.approx(expected, abs=1e-6)
    assert set(results["by_score"]["logits"]) | set(results["by_score"]["features"]) == set(scores.SCORES) - {"odin"}
    assert results["left_out"] == {"logits": {"odin": results["left_out"]["logits"]["odin"]}}
    assert (results["feature"], results["score_name"]) == ("features", "topk_cosine")


def test_scores_of_logits_by_hand(results, arrays):
    logits = arrays["unknown_logits"].astype(np.float64)
    found = lambda name: results["arrays"][f"logits/{name}/unknown"]
    np.testing.assert_allclose(found("max_logit"), logits.max(axis=1), rtol=1e-6)
    np.testing.assert_allclose(found("energy"), special.logsumexp(logits, axis=1), rtol=1e-5)
    order = lambda values: stats.rankdata(values)
    np.testing.assert_allclose(order(found("msp")), order(special.softmax(logits, axis=1).max(axis=1)))
    accuracy = np.mean(arrays["known_logits"].argmax(axis=1) == arrays["known_labels"])
    assert results["by_score"]["logits"]["msp"]["accuracy"] == pytest.approx(accuracy)
    assert results["closed_set"]["head"]["accuracy"] == pytest.approx(accuracy)


def test_class_names_may_be_bytes(arrays):
    """As HDF5 readers return them."""
    bare = {name: arrays[name] for name in ("known_logits", "unknown_logits", "known_labels")}
    names = ["cat", "dog", "été", "owl"]
    results = score(bare | {"class_names": np.char.encode(names, "utf-8")})
    assert results["known_classes"] == names == sorted(results["per_class"], key=names.index)


def test_the_headline_and_its_threshold(results, arrays):
    bank = arrays["train_features"], arrays["train_labels"]
    sums = lambda part: np.asarray(scores.topk_cosine(arrays[f"{part}_features"], *bank, k=3, num_classes=K))
    known, unknown = sums("known"), sums("unknown")
    np.testing.assert_allclose(results["arrays"]["known_scores"], known.max(axis=1), rtol=1e-5)
    threshold = metrics.known_threshold(sums("validation").max(axis=1))
    assert results["threshold"] == pytest.approx(threshold, rel=1e-5)
    decide = lambda of: np.where(of.max(axis=1) >= results["threshold"] - 1e-6, of.argmax(axis=1), K)
    truth = np.r_[arrays["known_labels"], np.full(90, K)]
    expected = f1_score(truth, np.r_[decide(known), decide(unknown)], average="macro")
    assert results["macro_f1"] == pytest.approx(expected, abs=1e-6)
    assert results["known_classes"] == ["0", "1", "2", "3"]
    assert set(results["per_unknown_class"]) == {"unknown 4", "unknown 5"}
    low, high = results["intervals"]["auroc"]
    assert low < results["auroc"] < high


def test_further_unknown_images(results, arrays):
    found = results["ood"]["other"]["far/out_side"]
    both = np.r_[arrays["known_logits"].max(axis=1), arrays[f"{EXTRA}_logits"].max(axis=1)]
    expected = roc_auc_score(np.r_[np.ones(150), np.zeros(40)], both)
    assert found["n"] == 40 and found["by_score"]["logits"]["max_logit"]["auroc"] == pytest.approx(expected, abs=1e-6)


def test_logits_alone_are_enough(arrays, results, caplog):
    few = {name: arrays[name] for name in ("known_logits", "unknown_logits")}
    found = score(few)
    assert not caplog.records  # scores that need features are left out, not computed of none
    assert set(found["by_score"]) == {"logits"}
    assert {"msp", "max_logit", "energy", "entropy", "gen"} <= set(found["by_score"]["logits"])
    assert found["auroc"] == results["by_score"]["logits"]["max_logit"]["auroc"]
    assert "accuracy" not in found and "intervals" not in found
    assert found["left_out"]["features"]["knn"] == "knn needs known_features and unknown_features."
    assert found["left_out"]["logits"]["kl_matching"].endswith("train_logits and train_labels not given.")
    assert set(found["left_out"]["logits"]) | set(found["by_score"]["logits"]) | set(
        found["left_out"]["features"]
    ) == set(scores.SCORES)
    more = score(few | {name: arrays[name] for name in ("validation_logits", "known_labels")})
    expected = results["by_score"]["logits"]["kl_matching"]["auroc"]
    assert more["by_score"]["logits"]["kl_matching"]["auroc"] == pytest.approx(expected, abs=1e-6)
    assert more["accuracy"] == pytest.approx(results["by_score"]["logits"]["msp"]["accuracy"])
    trained = score(few | {name: arrays[name] for name in ("train_logits", "train_labels")})
    assert "kl_matching" in trained["by_score"]["logits"]


def test_features_alone(arrays, results):
    few = {name: x for name, x in arrays.items() if "logits" not in name and "head" not in name}
    found = score(few)
    assert found["auroc"] == pytest.approx(results["auroc"]) and set(found["by_score"]) == {"features"}
    chosen = score(few, score="knn", names=("knn",), options={"knn": {"k": 5}})
    assert (chosen["score_name"], set(chosen["by_score"]["features"])) == ("knn", {"knn"})
    assert chosen["auroc"] != results["by_score"]["features"]["knn"]["auroc"]  # k is 50 by default


def changed(**changes):
    return {name: x for name, x in (made_up() | changes).items() if x is not None}


NAN = made_up()["known_logits"].copy()
NAN[3] = np.nan


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (changed(known_logits=NAN), "known_logits must be finite in float32, got NaN or infinity in 1 of 150"),
        (changed(unknown_logits=np.full((90, K), 1e200)), "unknown_logits must be finite in float32, .*90 of 90 rows"),
        (changed(known_labels=np.full(150, K)), f"known_labels must be from 0 to {K - 1}, got {K}"),
        (changed(known_labels=np.zeros(150)), "known_labels must be integers, got float64"),
        (changed(known_labels=np.zeros(149, int)), "known_labels must have a row per image, got 149"),
        (
            changed(validation_features=np.zeros((0, F), np.float32)),
            "validation_features must have a row per image, got none",
        ),
        (changed(train_labels=np.arange(200) % 5 - 1), r"train_labels must be of known classes only, got 40 negative"),
        (
            changed(known_features=np.zeros((150, 3))),
            "features of all parts must have one width, .*known_features 3",
        ),
        (changed(known_logits=np.zeros(150)), r"known_logits must have 2 dimensions, got shape \[150\]"),
        (changed(unknown_logits=None), "known and unknown images must have the same outputs.*logits"),
        (changed(unknown_logits=None, unknown_features=None), "unknown_features or unknown_logits is needed"),
        (changed(head_kernel=np.zeros((3, K))), r"head_kernel must have shape \[12, 4\], got \[3, 4\]"),
        (changed(head_kernel=None), "head_bias is given without head_kernel"),
        (changed(head_bias=np.zeros(K)), "known_features @ head_kernel \\+ head_bias must equal known_logits, but"),
        (changed(known_images=np.zeros(150)), "unexpected array 'known_images'"),
        (changed(class_names=np.array(["a", "a", "b", "c"])), "class_names must be 4 different names"),
        (
            {
                "train_features": np.ones((3, F)),
                "train_labels": np.array([0, 1, 2**60]),
                "known_features": np.ones((2, F)),
                "unknown_features": np.ones((2, F)),
            },
            f"labels must number the known classes from 0, got {2**60} with 3 images",
        ),
        (changed(train_labels=np.zeros(200, int)), r"got none for class \[1, 2, 3\]"),
        (
            {f"{part}_logits": np.ones((9, K)) for part in ("known", "unknown")},
            r"no score can be computed of these arrays: msp is -1\.\d+ for all of 18 images; max_logit is 1 .*\.\.\.$",
        ),
    ],
)
def test_arrays_that_do_not_fit(arrays, message):
    with pytest.raises(ValueError, match=message) as error:
        score(arrays)
    assert "\n" not in str(error.value)


def test_every_format_gives_the_same_arrays(arrays, tmp_path):
    plain = {name.replace("/", "-"): x for name, x in arrays.items()}
    np.savez(tmp_path / "a.npz", **plain)
    safetensors_file.write(str(tmp_path / "a.safetensors"), plain)
    (tmp_path / "a").mkdir()
    for name, x in plain.items():
        np.save(tmp_path / "a" / f"{name}.npy", x)
    for path in (tmp_path / "a.npz", tmp_path / "a.safetensors", tmp_path / "a"):
        found = read(str(path))
        assert set(found) == set(plain)
        for name, x in plain.items():
            np.testing.assert_array_equal(found[name], x)


class Planted:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_unreadable_files(tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"PK nothing")
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Planted(str(tmp_path / "opened"))))
    (tmp_path / "a.csv").write_text("1,2")
    for folder in ("empty", "folder"):
        (tmp_path / folder).mkdir()
    objects = np.array([Planted(str(tmp_path / "opened"))], dtype=object)
    np.savez(tmp_path / "objects.npz", known_logits=objects)
    np.save(tmp_path / "folder" / "known_logits.npy", objects)
    for path, message in {
        "none.npz": "none.npz does not exist.$",
        "none": "none does not exist.$",
        "bad.npz": "bad.npz is damaged: File is not a zip file.$",
        "pickle.npz": "pickle.npz is damaged: File is not a zip file.$",
        "objects.npz": "objects.npz is damaged: known_logits holds Python objects, which are not loaded.$",
        "folder": "folder cannot be read: known_logits.npy: ",
        "empty": "it is a folder without .npy files.$",
        "a.csv": "give a .npz",
    }.items():
        with pytest.raises(ValueError, match=message):
            read(str(tmp_path / path))
    assert not (tmp_path / "opened").exists()


def test_names_of_files_are_distinct(monkeypatch, tmp_path):
    assert names_of(["x/run.npz", "y/run.npz", "z.npz"]) == ["run_1", "run_2", "z"]
    names = names_of(["x/run.npz", "y/run.npz", "run_1.npz", "x/run_1_.npz"])
    assert len(set(names)) == 4 and names[2] == "run_1"
    monkeypatch.chdir(tmp_path)
    assert names_of([".", ".."]) == [tmp_path.name, tmp_path.parent.name]  # not a place outside --out


def test_odin_of_stored_outputs(arrays):
    kernel, bias = arrays["head_kernel"], arrays["head_bias"]
    step = lambda x: odin.perturbed_logits(lambda x: x @ kernel + bias[None], jnp.asarray(x), temperature=10, noise=0.1)
    perturbed = {f"{part}_perturbed_logits": np.asarray(step(arrays[f"{part}_features"])) for part in PARTS}
    results = score(arrays | perturbed, options={"odin": {"temperature": 10.0}})
    assert results["left_out"] == {}
    for side in ("known", "unknown"):
        probability = special.softmax(perturbed[f"{side}_perturbed_logits"].astype(float) / 10, axis=1).max(axis=1)
        np.testing.assert_allclose(
            results["arrays"][f"logits/odin/{side}"], np.log(K * probability), rtol=1e-3, atol=1e-5
        )
    # It learns nothing, so it needs no training images.
    bare = {name: x for name, x in (arrays | perturbed).items() if not name.startswith(("train", "validation"))}
    alone = score(bare, options={"odin": {"temperature": 10.0}})["by_score"]["logits"]["odin"]
    assert alone["auroc"] == results["by_score"]["logits"]["odin"]["auroc"]


def test_left_out_scores_name_the_arrays_to_add(arrays):
    bare = {name: x for name, x in arrays.items() if not name.startswith(("head", "validation", "train"))}
    left_out = score(bare)["left_out"]
    assert left_out["logits"]["vim"] == "vim needs head_kernel and head_bias."
    assert left_out["logits"]["odin"] == "odin needs known_perturbed_logits and unknown_perturbed_logits."
    assert left_out["features"]["ensemble"].startswith("ensemble needs validation images (validation_features, ")
    assert left_out["features"]["knn"] == "knn needs training images: train_features and train_labels not given."
    no_features = {name: x for name, x in bare.items() if not name.endswith("_features")}
    assert score(no_features)["left_out"]["logits"]["she"] == "she needs known_features and unknown_features."


def test_the_feature_of_the_headline_must_exist():
    with pytest.raises(ValueError, match="feature must be one of features, logits, got 'logit'"):
        score(made_up(), feature="logit")


def test_the_command_writes_everything(tmp_path):
    for name, seed in (("ours", 0), ("theirs", 1)):
        given = {key: x for key, x in made_up(seed).items() if EXTRA not in key}
        if name == "theirs":  # two images of a class
            kept = (given["train_labels"] != 3) | (np.arange(200) < 8)
            given |= {key: x[kept] for key, x in given.items() if key.startswith("train_")}
        np.savez(tmp_path / f"{name}.npz", **given, known_ids=np.arange(150) + 7)
    files = [tmp_path / "ours.npz", tmp_path / "theirs.npz"]
    result = commands.run("gradmix_jax.score", *files, f"--out={tmp_path}/out", "--scores=topk_cosine,msp,max_logit")
    assert result.returncode == 0, result.stderr
    few = "theirs.npz: 1 of 4 classes have fewer than 3 training images (3 has 2): their scores are sums over those"
    assert few in result.stderr and result.stderr.count("warning: ") == 1
    expected = score(read(str(files[0])), names=("topk_cosine", "msp", "max_logit"))
    assert f"{expected['auroc']:.4f}" in result.stdout and "topk_cosine of features *" in result.stdout
    assert "auroc, ours minus theirs: " in result.stdout and "(DeLong)" in result.stdout
    written = json.loads((tmp_path / "out" / "ours" / "results.json").read_text())
    assert written["auroc"] == expected["auroc"] and written["environment"]["packages"]["jax"]
    board = list(csv.DictReader((tmp_path / "out" / "leaderboard.csv").open()))
    assert len(board) == 6 and {row["file"] for row in board} == {"ours", "theirs"}
    images = list(csv.DictReader((tmp_path / "out" / "ours" / "images.csv").open()))
    assert len(images) == 150 + 90 + 60 and images[0]["id"] == "7" and images[0]["part"] == "known"
    of_known = [float(row["features/topk_cosine"]) for row in images if row["part"] == "known"]
    np.testing.assert_allclose(of_known, expected["arrays"]["known_scores"], rtol=1e-6)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "method-0-classes" in page and not [part for part in OF_A_RUN if f"method-0-{part}" in page]
    assert 'id="method-0-slider"' in page and 'id="method-1-slider"' in page
    assert "ours" in page and "theirs" in page and f"{expected['auroc']:.4f}"[1:] in page
    # A second call with a file that allows no page leaves no page of other files in the folder.
    np.savez(tmp_path / "bare.npz", **{f"{part}_logits": made_up()[f"{part}_logits"] for part in ("known", "unknown")})
    result = commands.run("gradmix_jax.score", tmp_path / "bare.npz", f"--out={tmp_path}/out", "--scores=msp")
    assert result.returncode == 0 and "Not in report.html: bare, without known_labels." in result.stdout
    assert not (tmp_path / "out" / "report.html").exists() and not (tmp_path / "out" / "comparison.csv").exists()
    assert (tmp_path / "out" / "bare" / "results.json").exists()
    np.savez(tmp_path / "bad.npz", known_logits=NAN, unknown_logits=NAN)
    result = commands.run("gradmix_jax.score", tmp_path / "bad.npz")
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "bad.npz: known_logits must be finite" in result.stderr


def test_delong_and_mcnemar():
    random = np.random.default_rng(0)
    signal = np.r_[random.normal(1, 1, 60), random.normal(0, 1, 50)]
    one, two = (signal + random.normal(0, 0.8, 110)).round(1), (signal + random.normal(0, 0.8, 110)).round(1)
    found = paired.auroc((one[:60], one[60:]), (two[:60], two[60:]))
    # From the definition, pair by pair (DeLong et al. 1988).
    wins = [(x[:60, None] > x[60:]) + 0.5 * (x[:60, None] == x[60:]) for x in (one, two)]
    known, unknown = ([each.mean(axis=axis) for each in wins] for axis in (1, 0))
    variance = np.var(known[0] - known[1], ddof=1) / 60 + np.var(unknown[0] - unknown[1], ddof=1) / 50
    difference = wins[0].mean() - wins[1].mean()
    assert found.difference == pytest.approx(difference)
    assert found.p_value == pytest.approx(2 * stats.norm.sf(abs(difference) / np.sqrt(variance)))
    assert paired.auroc((one[:60], one[60:]), (one[:60], one[60:])).p_value == 1
    first, second = np.array([1, 1, 1, 1, 0, 1, 0], bool), np.array([1, 0, 0, 0, 1, 0, 0], bool)
    found = paired.accuracy(first, second)
    assert found.difference == pytest.approx(3 / 7) and found.p_value == pytest.approx(0.375)  # 2 (1 + 5) / 32
    with pytest.raises(ValueError, match="same known and unknown images"):
        paired.auroc((one[:60], one[60:]), (two[:59], two[60:]))


@pytest.mark.parametrize(("size", "seconds"), [(20_000, 60), slow(1_000_000, 120)], ids=str)
def test_many_images(size, seconds):
    """The goal for a million images is 20 s on two idle cores; the bounds leave room for a busy machine."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 100, size // 2)
    known, unknown = random.normal(size=(2, size // 2, 100)).astype(np.float32)
    known[np.arange(size // 2), labels] += 4
    started = time.perf_counter()
    found = score({"known_logits": known, "unknown_logits": unknown, "known_labels": labels})
    assert time.perf_counter() - started < seconds
    assert found["auroc"] == pytest.approx(metrics.auroc(known.max(axis=1), unknown.max(axis=1)))
