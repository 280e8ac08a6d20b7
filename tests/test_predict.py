"""The command predict: its input and output, and its messages for broken files and unfinished runs."""

import csv
import io
import json
import re
import subprocess
import sys

import commands
import numpy as np
import old_run
import pytest
from PIL import Image

from gradmix_jax import predict
from gradmix_jax.portable import conformal
from gradmix_jax.portable import images as images_lib


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A digits run with the features of its checkpoint."""
    return old_run.unpack_with_features(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Six digits in folders, a hidden file, a file that is not an image, and a broken one."""
    from sklearn.datasets import load_digits

    folder, data = tmp_path_factory.mktemp("pictures"), load_digits()
    (folder / "inner").mkdir()
    for i in range(6):
        image = Image.fromarray((data.images[1500 + i] * 255 / 16).astype(np.uint8))
        image.save(folder / ("inner" if i % 2 else "") / f"{i}.png")
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "inner" / "broken.png").write_bytes((folder / "0.png").read_bytes()[:50])
    return folder


@pytest.fixture(scope="module")
def answers(workdir, pictures):
    """{path: record} of the readable ones."""
    classifier = predict.OpenSetClassifier.load(str(workdir))
    paths = sorted(str(path) for path in pictures.rglob("[0-9].png"))
    images = np.stack([classifier.array(path) for path in paths])
    return dict(zip(paths, classifier.records(images, neighbors=2)))


def run(*words):
    return commands.run("gradmix_jax.predict", *words)


def test_json_has_a_record_for_each_readable_file(workdir, pictures, answers):
    result = run(workdir, pictures, "--json", "--neighbors=2")
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["path"] for record in records] == sorted(answers)
    for record in records:
        expected = answers[record.pop("path")]
        assert record.keys() == expected.keys() and record["label"] == expected["label"]
        assert record["score"] == pytest.approx(expected["score"], rel=1e-5)
        assert record["top"][0]["score"] >= record["top"][1]["score"] >= record["top"][2]["score"]
        assert [each["image"] for each in record["neighbors"]] == [each["image"] for each in expected["neighbors"]]
    # The broken file is named, the others are classified, and the status is nonzero.
    assert result.returncode == 1
    assert re.fullmatch(r"error: \S*broken\.png cannot be read as an image: .*\n", result.stderr)


def test_csv_is_a_table(workdir, pictures, answers):
    result = run(workdir, pictures, "--csv", "--top=2")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert len(rows) == 6
    for row in rows:
        expected = answers[row["path"]]
        assert (row["label"], row["accepted"]) == (expected["label"], str(expected["accepted"]))
        assert float(row["p_value"]) == pytest.approx(expected["p_value"])
        assert [row["top1_class"], row["top2_class"]] == [each["class"] for each in expected["top"][:2]]
        assert "top3_class" not in row


def test_plain_output(workdir, pictures, answers):
    path = str(pictures / "0.png")
    expected = answers[path]
    threshold = predict.OpenSetClassifier.load(str(workdir)).threshold
    result = run(workdir, path)
    line = f"{path}: {expected['label']} (score {expected['score']:.3f}, threshold {threshold:.3f})\n"
    assert (result.returncode, result.stdout, result.stderr) == (0, line, "")
    more = run(workdir, path, "--top=1", "--neighbors=1", "--threshold=9").stdout.splitlines()
    assert more[0] == f"{path}: unknown (score {expected['score']:.3f}, threshold 9.000)"
    assert more[1] == f"    class {expected['top'][0]['class']} {expected['top'][0]['score']:.3f}"
    neighbor = expected["neighbors"][0]
    assert more[2] == f"    neighbor {neighbor['image']} ({neighbor['class']}) {neighbor['cosine']:.3f}"
    assert len(more) == 3


def test_a_list_of_paths_on_stdin(workdir, pictures, answers):
    command = [sys.executable, "-m", "gradmix_jax.predict", str(workdir), "-", "--json"]
    lines = f"{pictures / '0.png'}\n\n{pictures / 'inner' / '1.png'}\n"
    result = subprocess.run(command, input=lines, capture_output=True, text=True, cwd=commands.ROOT, timeout=200)
    assert result.returncode == 0, result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [each["path"] for each in found] == lines.split()
    assert all(each["label"] == answers[each["path"]]["label"] for each in found)
    result = subprocess.run(command, input="\n", capture_output=True, text=True, cwd=commands.ROOT, timeout=200)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: no image to classify: standard input must list one path a line, got none.\n"


def test_keep_decides_by_the_p_value(workdir, answers):
    paths = list(answers)
    p_N = np.array([answers[path]["p_value"] for path in paths])
    for keep in (0.3, 0.9):
        classifier = predict.OpenSetClassifier.load(str(workdir), keep=keep)
        accepted = classifier.predict(paths).label_N >= 0
        np.testing.assert_array_equal(accepted, p_N > 1 - keep + 1e-9)
    assert len(set(p_N > 0.7)) == 2, "all p-values are on one side: nothing was decided"


def test_few_calibration_images(workdir, pictures):
    result = run(workdir, pictures / "0.png", "--keep=0.9999")
    assert result.returncode == 0 and "threshold -inf" in result.stdout
    assert re.fullmatch(
        r"warning: no image is rejected: rejecting at most 0\.01 % of known images takes 9999 validation images, there "
        r"are \d+; keep=0\.\d\d rejects some, or train with a larger dataset\.validation_fraction\.\n",
        result.stderr,
    )


def test_an_unfinished_run_says_so(workdir, pictures, tmp_path):
    config = json.loads((workdir / "config.json").read_text())
    before = json.dumps(config)
    config["phases"][0]["epochs"] *= 2
    try:
        (workdir / "config.json").write_text(json.dumps(config))
        result = run(workdir, pictures / "0.png")
    finally:
        (workdir / "config.json").write_text(before)
    assert result.returncode == 0
    assert re.fullmatch(
        r"warning: the run is unfinished: its newest checkpoint is of step (\d+) of \d+\.\n", result.stderr
    )


def test_without_cached_features_and_without_data(workdir, pictures, tmp_path):
    (tmp_path / "run").mkdir()
    config = json.loads((workdir / "config.json").read_text())
    config["dataset"]["name"] = f"folder:{tmp_path}/gone"
    config["dataset"]["benchmark"] = "random"
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    (tmp_path / "run" / "checkpoints").symlink_to(workdir / "checkpoints")
    result = run(tmp_path / "run", pictures / "0.png")
    assert result.returncode == 2
    assert "has no cached features of its newest checkpoint, and its dataset cannot be read" in result.stderr
    assert f"run `gradmix eval --config=... --workdir={tmp_path / 'run'}` where the data is." in result.stderr
    assert result.stderr.count("\n") == 1


def test_cached_features_of_another_checkpoint_are_not_used(workdir, tmp_path, monkeypatch):
    """They are recomputed from the data."""
    expected = predict.OpenSetClassifier.load(str(workdir)).threshold
    content = dict(np.load(workdir / "features.npz"))
    content |= {name: np.array("f" * 16) for name in content if name.endswith("/checkpoint")}
    content["key"] = np.array("of another checkpoint")
    content |= {name: x + 1 for name, x in content.items() if name.endswith("/features")}
    (tmp_path / "checkpoints").symlink_to(workdir / "checkpoints")
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    np.savez(tmp_path / "features.npz", **content)
    assert predict.OpenSetClassifier.load(str(tmp_path)).threshold == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr("gradmix_jax.data.open_set", lambda spec: pytest.fail("the dataset was opened"))
    assert predict.OpenSetClassifier.load(str(workdir)).threshold == expected


def test_explanations(workdir, pictures, tmp_path):
    result = run(workdir, pictures / "0.png", pictures / "inner" / "1.png", f"--explain={tmp_path / 'maps'}")
    assert result.returncode == 0, result.stderr
    drawn = sorted((tmp_path / "maps").iterdir())
    assert [path.name[-5:] for path in drawn] == ["0.png", "1.png"]
    with Image.open(drawn[0]) as image:
        assert image.size == (448, 224) and len(image.getcolors(100_000)) > 20


def test_a_map_is_the_gradient_of_the_score(workdir, pictures):
    """Where the map is brightest, a change of the image changes the score more than where it is darkest."""
    classifier = predict.OpenSetClassifier.load(str(workdir))
    image = classifier.array(str(pictures / "0.png"))
    map_HxW = classifier.maps(image[None])[0]
    assert map_HxW.shape == (16, 16) and map_HxW.min() == 0 and map_HxW.max() == 1
    slopes = np.zeros((16, 16))
    for row, column in np.ndindex(16, 16):
        changed = image.astype(int).copy()
        step = 8 if changed[row, column, 0] < 128 else -8
        changed[row, column] += step
        pair = classifier.predict(np.stack([image, changed.astype(np.uint8)])).score_N
        slopes[row, column] = abs(pair[1] - pair[0])
    # The map is averaged over 3 x 3 pixels and 8 levels are a finite step, so ranks agree but values do not.
    ranks = lambda x: np.argsort(np.argsort(x.ravel()))
    smoothed = sum(np.roll(np.pad(slopes, 1), (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1))[1:-1, 1:-1]
    assert np.corrcoef(ranks(map_HxW), ranks(smoothed))[0, 1] > 0.7


@pytest.mark.parametrize(
    "words, error",
    [
        (["--json", "--csv"], "error: --json and --csv exclude each other; give one of them.\n"),
        (["--keep=0.9", "--threshold=1"], "error: --threshold and --keep exclude each other; give one of them.\n"),
        (["--keep=0"], "error: keep must be above 0 and at most 1, got 0.0.\n"),
        (["--threshold=nan"], "error: threshold must be a number, got nan.\n"),
    ],
)
def test_flags_that_do_not_go_together(workdir, pictures, words, error):
    result = run(workdir, pictures / "0.png", *words)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", error)


def test_arguments_that_are_missing(workdir, tmp_path):
    assert run(workdir).stderr.startswith("error: predict takes the workdir of a run or an export, then ")
    assert run(workdir, tmp_path).stderr.startswith(f"error: {tmp_path} has no image; looked for files ending in ")
    assert run(tmp_path, "x.png").stderr.startswith(f"error: no config.json in {tmp_path}")
    config = json.loads((workdir / "config.json").read_text())
    config["dataset"]["image_size"], config["normalization"]["std"] = 0, []  # left to the data
    (tmp_path / "config.json").write_text(json.dumps(config))
    said = f"error: {tmp_path}/config.json is damaged: it has no value for dataset.image_size, normalization.std.\n"
    assert run(tmp_path, "x.png").stderr == said


def test_names_of_drawings_differ():
    taken = set()
    names = [images_lib.drawing_name(path, taken) for path in ("a/b.png", "a_b.jpg", "./a/b.bmp", "../../c.png")]
    assert names == ["a_b.png", "a_b_2.png", "a_b_3.png", "c.png"]


def test_conformal_threshold_is_the_default(workdir):
    classifier = predict.OpenSetClassifier.load(str(workdir))
    calibration = classifier._classifier.calibration_V
    assert classifier.threshold == conformal.threshold(calibration, keep=0.95)
    assert np.mean(calibration >= classifier.threshold) >= 0.95
