"""Exports give the same answers as the run, for every score and layout, without this package or the data."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import commands
import numpy as np
import old_run
import pytest
import untrained_runs
from marks import slow_but
from PIL import Image

from gradmix_jax import config as config_lib
from gradmix_jax import data as data_lib
from gradmix_jax import export as export_lib
from gradmix_jax import predict, scores
from gradmix_jax.config import phase
from gradmix_jax.evaluation import cache, fitting, weights
from gradmix_jax.evaluation import features as features_lib
from gradmix_jax.portable import card, files, from_run, onnx_file
from gradmix_jax.scores.fitted import works_on_logits
from gradmix_jax.training.checkpoint import Checkpoints

pytest.importorskip("flatbuffers", reason="jax.export needs flatbuffers")
# One of each kind of fit; the others are slow tests.
QUICK = ("topk_cosine", "knn", "mahalanobis", "max_logit", "react", "vim", "ensemble")
SCORES = slow_but(QUICK, [name for name, entry in scores.SCORES.items() if not entry.on_request])


def set_config(workdir, **changes):
    config = json.loads((workdir / "config.json").read_text())
    for name, value in changes.items():
        section, key = name.split("__")
        config[section][key] = value
    (workdir / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A digits run with the features of its checkpoint, whose data is unreachable."""
    return old_run.unpack_with_features(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "digits"
    export_lib.export(str(workdir), str(out))
    return out


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Image files of ten digits, with sizes and modes that differ from the model's."""
    from sklearn.datasets import load_digits

    folder, data = tmp_path_factory.mktemp("digits"), load_digits()
    for i in range(10):
        image = Image.fromarray((data.images[-1 - i] * 255 / 16).astype(np.uint8)).resize((16 + i, 20))
        image.convert("RGB" if i % 2 else "L").save(folder / f"{i}.png")
    # Transparent, 16-bit, and rotated.
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(folder / "transparent.png")
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(folder / "sixteen.png")
    exif = Image.Exif()
    exif[274] = 6
    image.convert("L").save(folder / "side.jpg", exif=exif)
    return sorted(str(path) for path in folder.iterdir())


def no_data(monkeypatch):
    def fail(*_):
        raise AssertionError("the dataset was opened")

    monkeypatch.setattr("gradmix_jax.data.open_set", fail)


@pytest.fixture(scope="module")
def restored(workdir):
    experiment = config_lib.from_config(config_lib.read(str(workdir)), num_devices=1)
    evaluator, parts = from_run._restore(experiment, str(workdir))
    return experiment, evaluator.model, parts


@pytest.mark.parametrize("name", SCORES)
def test_every_score_is_the_evaluation_s(workdir, restored, tmp_path, name):
    """Read back as StableHLO, on test images, against the evaluation's own functions (float64 NumPy for some)."""
    experiment, model, parts = restored
    feature = "logits" if works_on_logits(name) else "features"
    spec = dataclasses.replace(experiment.evaluate, score=name, feature=feature)
    experiment = dataclasses.replace(experiment, evaluate=spec)
    evaluator = fitting.fit(dataclasses.replace(model, setup=experiment.setup), parts, headline_only=True)
    classifier = from_run.classifier_of(experiment, evaluator, parts, str(workdir), from_run.Reduction())
    outputs = cache.load(str(workdir))["test_unknown"].outputs
    program = dataclasses.replace(classifier, score=files.write_score(classifier, str(tmp_path / "score"), outputs))
    found, expected = program.scores(outputs), evaluator.score(outputs)
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(found["score"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found["class"], evaluator.predict(outputs))


@pytest.mark.parametrize("cached", [True, False])
def test_the_steps_of_a_run_are_those_with_its_negative_images(cached, tmp_path):
    config, run = untrained_runs.untrained(untrained_runs.digits(**{"dataset.num_negative": 2}), tmp_path)
    experiment = config_lib.from_config(config, num_devices=1)
    if cached:
        fitting.compute_parts(fitting.restore(experiment.setup, run), run)
    data = data_lib.open_set(experiment.dataset)
    steps = 2 * (len(data.for_training) // 32)
    assert steps > 2 * (len(data.train) // 32) and from_run.load(run).metadata["steps"] == steps
    # A checkpoint that records its negative classes is compared with these.
    evaluator, _ = from_run._restore(experiment, run)
    assert set(evaluator.model.data.negative_names) == set(data.negative_names) and data.negative_names


def test_odin_differentiates_the_exported_model(tmp_path):
    overrides = {"evaluate.scores": ("odin",), "evaluate.score": "odin", "evaluate.feature": "logits"}
    overrides |= {"model.classifier": "linear", "phases": (phase("classes", epochs=1, cross_entropy=1.0),)}
    config, run = untrained_runs.untrained(untrained_runs.digits(**overrides), tmp_path / "run")
    experiment = config_lib.from_config(config, num_devices=1)
    evaluator, parts = from_run._restore(experiment, run)
    classifier = from_run.classifier_of(experiment, evaluator, parts, run, from_run.Reduction())
    images = data_lib.read_range(evaluator.model.data.test_unknown, 0, 40)
    found = classifier.scores(classifier.outputs(images))
    np.testing.assert_allclose(found["score"], evaluator.score(evaluator.model.outputs(images)), rtol=1e-4, atol=1e-7)
    assert np.ptp(found["score"]) > 0


def test_onnx_gives_the_outputs_of_the_model(workdir, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="an extra")
    pytest.importorskip("jax2onnx", reason="an extra")
    export_lib.export(str(workdir), str(tmp_path / "out"), onnx=True)
    classifier = files.read(str(tmp_path / "out"))
    image = classifier.metadata["image"]
    shape = (7, image["size"], image["size"], image["channels"])  # not the number of images it was checked with
    images = np.random.default_rng(3).integers(0, 256, shape, np.uint8)
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / onnx_file.FILE))
    names = [output.name for output in session.get_outputs()]
    expected = classifier.outputs(images)
    assert set(names) == set(expected)
    for name, found in zip(names, session.run(names, {"images": images})):
        np.testing.assert_allclose(found, expected[name], rtol=1e-4, atol=1e-5)


def test_the_card_lists_the_files(workdir, exported, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "check_installed", lambda: None)
    monkeypatch.setattr(onnx_file, "write", lambda classifier, path: open(path, "w").close())
    export_lib.export(str(workdir), str(tmp_path / "out"), onnx=True)
    for out in (exported, tmp_path / "out"):
        table = (out / files.CARD).read_text().partition("## Files")[2]
        listed = {line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")}
        assert listed == {path.name for path in out.iterdir()} - {files.CARD} | {"file", "---"}


def test_names_in_the_card_are_text(exported):
    metadata = json.loads((exported / "metadata.json").read_text())
    metadata["class_names"] = ["<b>", "a\nb", "c|d`e", "caf\udce9"]
    metadata["config"]["dataset"]["name"] = "folder:/<i>|\x1b\udce9"
    text = card.text(metadata, None, [])
    assert r"Known classes: &lt;b>, a b, c\|d\`e, caf\\udce9." in text
    assert r"| dataset | folder:/&lt;i>\|\\x1b\\udce9 |" in text
    assert "on folder:/&lt;i>" in text.splitlines()[0] and not set(text) & {"\x1b", "\udce9"}


def test_onnx_without_its_packages_is_one_line(workdir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ValueError, match="--onnx needs the packages jax2onnx, onnx and onnxruntime, and jax2onnx is"):
        export_lib.export(str(workdir), str(tmp_path / "out"), onnx=True)
    assert not (tmp_path / "out").exists()


def test_contents_of_an_export(workdir, exported):
    metadata = json.loads((exported / "metadata.json").read_text())
    results = json.loads((workdir / "results.json").read_text())
    assert metadata["class_names"] == results["known_classes"]
    assert metadata["checkpoint"] == cache.load(str(workdir))["train"].checkpoint
    assert metadata["steps"] == metadata["step"] == results["step"]
    cached = cache.load(str(workdir))
    calibration = np.array(metadata["calibration_scores"])
    assert len(calibration) == len(cached["validation"]) and (np.diff(calibration) >= 0).all()
    places = files.read(str(exported)).places_M
    np.testing.assert_array_equal(np.sort(places), np.arange(len(cached["train"])))
    card = (exported / "README.md").read_text()
    for name in ("accuracy", "auroc", "oscr", "macro_f1"):
        assert f"{results[name]:.4f}" in card
    assert "Unfinished" not in card and "another checkpoint" not in card
    assert metadata["model"]["platforms"] == ["cpu", "cuda", "tpu"]


BLOCKED = """\
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("gradmix_jax", "flax", "optax", "orbax", "sklearn"):
            raise ImportError(name)
sys.meta_path.insert(0, Block())
"""


@pytest.mark.parametrize("score", ["topk_cosine", "mahalanobis"])
def test_the_code_of_the_card_needs_only_jax_and_numpy(workdir, digits, tmp_path, score):
    before = (workdir / "config.json").read_text()
    try:
        set_config(workdir, evaluate__score=score)
        export_lib.export(str(workdir), str(tmp_path / "out"))
        prediction = predict.OpenSetClassifier.load(str(workdir)).predict(digits)
    finally:
        (workdir / "config.json").write_text(before)
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)
    (tmp_path / "use.py").write_text(BLOCKED + code)
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, str(tmp_path / "use.py"), str(tmp_path / "out"), *digits]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=200)
    assert result.returncode == 0, result.stderr
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert [row[0] for row in rows] == digits
    assert [row[1] for row in rows] == prediction.name_N
    np.testing.assert_allclose([float(row[2]) for row in rows], prediction.score_N, rtol=1e-5, atol=1e-5)
    # The package is really blocked.
    blocked = subprocess.run(
        [sys.executable, "-c", BLOCKED + "import gradmix_jax"], capture_output=True, text=True, cwd=files.__file__[:-30]
    )
    assert "ImportError: gradmix_jax" in blocked.stderr


def test_an_export_predicts_like_its_run(workdir, exported, digits, monkeypatch):
    no_data(monkeypatch)
    run, export = (predict.OpenSetClassifier.load(str(each)) for each in (workdir, exported))
    assert export.threshold == run.threshold
    for images in (digits, digits[:1], digits * 30):
        expected, found = run.predict(images), export.predict(images)
        assert found.name_N == expected.name_N
        np.testing.assert_allclose(found.score_N, expected.score_N, rtol=1e-5)
    assert {"unknown"} < set(found.name_N)
    images = np.stack([run.array(file) for file in digits])
    np.testing.assert_allclose(export.maps(images), run.maps(images), atol=1e-3)


def test_weights_with_pytorch_s_names(tmp_path, monkeypatch):
    """Weights with torchvision's names and shapes give the same outputs as ours."""
    classifier = random_classifier(tmp_path, monkeypatch, "resnet18")
    for layout in files.LAYOUTS:
        files.write(classifier, str(tmp_path / layout), layout=layout)
    ours, torch = (files.read(str(tmp_path / layout)) for layout in files.LAYOUTS)
    assert torch.weights["layer1.0.conv1.weight"].shape == (8, 8, 3, 3)
    assert not set(torch.weights) & {key for key in ours.weights if "/encoder/" in key}
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    expected, found = ours.outputs(images), torch.outputs(images)
    assert expected.keys() == found.keys()
    for key in expected:
        np.testing.assert_allclose(found[key], expected[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet50", "classifier32", "vit_tiny_token", "dinov2_small_registers"])
def test_every_pytorch_layout_is_read_inside_a_program(name):
    """A traced function recovers our weights from the stored tensors, to the bit."""
    import jax
    from flax.traverse_util import flatten_dict

    from gradmix_jax import models

    size = 28 if name.startswith("dinov2") else 32
    spec = models.Spec(name=name, stem="imagenet" if name.startswith("dinov2") else "cifar", classifier="linear")
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    init = lambda key, image: models.create(spec, num_classes=5).init(key, image, train=False)
    shapes = flatten_dict(dict(jax.eval_shape(init, jax.random.key(0), image)), sep="/")
    random = np.random.default_rng(0)
    weights = {path: random.normal(size=leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
    stored, names = files._laid_out(weights, "torch")
    assert set(names) <= set(stored) and not any("/encoder/" in path for path in names)
    read = files._reader({path: x.shape for path, x in weights.items()}, "torch")
    found = jax.jit(read)({path: stored[path] for path in names})
    assert found.keys() == weights.keys()
    for path, expected in weights.items():
        np.testing.assert_array_equal(found[path], expected, err_msg=path)


def random_classifier(tmp_path, monkeypatch, name):
    """An export of an untrained network for 32 x 32 pixels, with random training features."""
    import jax
    from programs import small_config

    from gradmix_jax import data as data_lib
    from gradmix_jax import models
    from gradmix_jax.data import splits

    config = small_config(**{"model.name": name, "model.width": 0 if name.startswith("vit") else 8})
    config.dataset.image_size = 32
    experiment = config_lib.from_config(config_lib.to_plain(config), num_devices=1)
    (tmp_path / "config.json").write_text(json.dumps(config_lib.to_plain(config)))
    network = models.create(experiment.model, num_classes=2)
    start = jax.jit(lambda key: network.init(key, np.zeros((1, 32, 32, 3), np.float32), train=False))
    variables = start(jax.random.key(0))
    monkeypatch.setattr(
        weights, "restored", lambda *_, **__: (1, jax.device_get({"batch_stats": {}} | dict(variables)), ())
    )
    none = dict.fromkeys(("train", "validation", "test_known", "test_unknown"))
    data = data_lib.OpenSet(**none, split=splits.Split((0, 1), (), "", ""), class_names=("a", "b"), stored_names=())
    model = fitting.restore(experiment.setup, str(tmp_path), data=data)
    images = np.random.default_rng(1).integers(0, 256, (32, 32, 32, 3), np.uint8)
    labels = np.arange(32, dtype=np.int32) % 2
    rows = dict(labels=labels, classes=labels.astype(str), hashes=labels.astype(np.uint64), places=np.arange(32))
    train = features_lib.Features("train", model.checkpoint, model.outputs(images), **rows)
    evaluator = fitting.fit(model, {"train": train}, headline_only=True)
    return from_run.classifier_of(experiment, evaluator, {"train": train}, str(tmp_path), from_run.Reduction())


def test_fewer_training_features(workdir, exported, digits, tmp_path):
    reduction = from_run.Reduction(20, "k_center", "float16")
    export_lib.export(str(workdir), str(tmp_path / "small"), reduction=reduction)
    small, whole = files.read(str(tmp_path / "small")), files.read(str(exported))
    described, classes = small.metadata["gallery"], len(small.class_names)
    assert described["features"] == 20 * classes and described["dtype"] == "float16"
    assert described["change"]["images"] == len(whole.calibration_V)
    assert (
        0.5 < described["change"]["auroc"][1] <= 1
        and described["change"]["auroc"][0] != described["change"]["auroc"][1]
    )
    size = lambda folder: os.path.getsize(folder / "score.safetensors")
    assert size(tmp_path / "small") < 0.4 * size(exported)
    # Thresholds come from its own scores, so the same share of the validation images is kept.
    kept = [np.mean(each.calibration_V >= each.metadata["threshold"]) for each in (small, whole)]
    assert kept[0] == pytest.approx(kept[1], abs=0.02)
    assert "k-center" in (tmp_path / "small" / "README.md").read_text()


def test_a_failed_export_leaves_nothing_behind(workdir, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"--out must be a new or empty directory, got '.*full'"):
        export_lib.export(str(workdir), str(tmp_path / "full"))
    read = files.read

    def changed(directory):
        found = read(directory)
        weights = {name: x * 1.01 for name, x in found.weights.items()}
        return files.Classifier(**{**found.__dict__, "weights": weights})

    monkeypatch.setattr(files, "read", changed)
    with pytest.raises(ValueError, match=r"the export differs from the run: score by"):
        export_lib.export(str(workdir), str(tmp_path / "out"))
    assert os.listdir(tmp_path) == ["full"] and os.listdir(tmp_path / "full") == ["file"]
    monkeypatch.undo()
    (tmp_path / "empty").mkdir()
    export_lib.export(str(workdir), str(tmp_path / "empty"))
    assert (tmp_path / "empty" / "README.md").exists()


def test_an_unfinished_run_says_so(workdir, tmp_path):
    config = json.loads((workdir / "config.json").read_text())
    before = json.dumps(config)
    config["phases"][0]["epochs"] += 1
    try:
        (workdir / "config.json").write_text(json.dumps(config))
        result = commands.run("gradmix_jax.export", workdir, f"--out={tmp_path / 'out'}")
        Image.new("L", (16, 16)).save(tmp_path / "dark.png")
        asked = commands.run("gradmix_jax.predict", tmp_path / "out", tmp_path / "dark.png")
    finally:
        (workdir / "config.json").write_text(before)
    assert result.returncode == 0 and "model.stablehlo" in result.stdout
    for each in (result, asked):
        assert re.search(r"warning: the run is unfinished: its newest checkpoint is of step \d+ of \d+\.", each.stderr)
    assert "**Unfinished:**" in (tmp_path / "out" / "README.md").read_text()
    assert asked.returncode == 0


def test_what_cannot_be_exported(workdir, tmp_path):
    run = lambda *words: commands.run("gradmix_jax.export", *words)
    result = run(tmp_path, f"--out={tmp_path / 'out'}")
    assert result.returncode == 2 and result.stderr.startswith("error: no config.json in ")
    assert run(workdir).stderr == "error: --out is required; see --help.\n"
    layout = run(workdir, f"--out={tmp_path / 'out'}", "--layout=torch")
    assert layout.stderr == "error: this model.name has no counterpart in PyTorch's libraries to be exported as.\n"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text((workdir / "config.json").read_text())
    with pytest.raises(ValueError, match="no checkpoint in"):
        Checkpoints(str(tmp_path / "empty"), of=None, read_only=True)
    result = run(tmp_path / "empty", f"--out={tmp_path / 'out'}")
    assert result.returncode == 2 and "no checkpoint in" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["metadata.json", "model.stablehlo", "score.safetensors"])
def test_a_damaged_export(exported, tmp_path, name):
    for path in exported.iterdir():
        content = path.read_bytes()
        (tmp_path / path.name).write_bytes(content[: len(content) // 2] if path.name == name else content)
    with pytest.raises(ValueError, match="cannot be read as an export: "):
        files.read(str(tmp_path))
