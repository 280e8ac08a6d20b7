"""The script for published checkpoints, with random weights and images in their place."""

import sys

import jax
import numpy as np
import published_checkpoints
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from gradmix_jax import models
from gradmix_jax.data import splits
from gradmix_jax.data.class_names import CLASS_NAMES
from gradmix_jax.models import pretrained, safetensors_file
from gradmix_jax.score import read, score

MEAN, STD = np.float32((0.4914, 0.4822, 0.4465)), np.float32((0.2023, 0.1994, 0.2010))


@pytest.fixture(scope="module")
def stored(tmp_path_factory, request):
    """(folder, init_from, weights by name): one gray image a class, and random weights, the same for every trial."""
    patch = pytest.MonkeyPatch()
    patch.setattr(published_checkpoints, "IMAGE_SIZE", 8)
    request.addfinalizer(patch.undo)
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for label in range(200):
        images = folder / "val" / CLASS_NAMES[""][label]
        images.mkdir(parents=True)
        Image.fromarray(np.full((8, 8, 3), label, np.uint8)).save(images / "a.png")
    experiment = published_checkpoints.experiment_of(str(folder), "x", 0)
    module = models.create(experiment.model, num_classes=20)
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32)
    shapes = jax.eval_shape(lambda key, x: module.init(key, x, train=False), jax.random.key(0), image)
    variables = jax.tree.map(lambda leaf: rng.uniform(0.5, 1, leaf.shape).astype(np.float32), dict(shapes))
    # Each pixel passes through on its own: all convolution weights except the centers are 0.
    for group in variables["params"]["encoder"].values():
        if "kernel" in group:
            center = rng.normal(size=group["kernel"].shape[2:]) / np.sqrt(group["kernel"].shape[2])
            group["kernel"] = np.zeros_like(group["kernel"])
            group["kernel"][1, 1] = center
    state = pretrained.to_state_dict(variables)
    for trial in range(5):
        safetensors_file.write(str(folder / f"w{trial}.safetensors"), state)
    return folder, str(folder / "w{trial}.safetensors"), state


def logits_of(state):
    """logits_200xK in float64: every image has a single color, so one pixel determines it."""
    x = (np.arange(200)[:, None] / 255 - MEAN) / STD
    for i in range(1, 10):
        x = x @ state[f"conv{i}.weight"][:, :, 1, 1].T.astype(np.float64)
        scale = state[f"bn{i}.weight"] / np.sqrt(state[f"bn{i}.running_var"] + 1e-5)
        x = (x - state[f"bn{i}.running_mean"]) * scale + state[f"bn{i}.bias"]
        x = np.where(x > 0, x, 0.2 * x)
    return x @ state["fc.weight"].T


def test_the_table_is_that_of_the_weights(stored, monkeypatch, capsys):
    folder, init_from, state = stored
    arguments = [f"--data={folder}", f"--init_from={init_from}", "--draws=3", f"--out={folder}/out"]
    monkeypatch.setattr(sys, "argv", ["published_checkpoints.py", *arguments])
    monkeypatch.setattr(published_checkpoints, "TRIALS", range(2))
    published_checkpoints.main()
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")]
    logits = logits_of(state)
    for trial in range(2):
        known = list(splits.get("tiny_imagenet", trial).known)
        is_known = np.isin(np.arange(200), known)
        accuracy = np.mean(logits[known].argmax(axis=1) == np.arange(20))
        auroc = roc_auc_score(is_known, logits.max(axis=1))
        assert rows[2 + trial][0] == str(trial) and rows[2 + trial][4:] == ["20", "180"]
        assert float(rows[2 + trial][1].split()[0]) == pytest.approx(100 * accuracy, abs=0.006)
        assert float(rows[2 + trial][2].split()[0]) == pytest.approx(100 * auroc, abs=0.06)
        low, high = (float(value) for value in rows[2 + trial][2].split("(")[1].rstrip(")").split(" to "))
        assert low < 100 * auroc < high
    assert float(rows[4][2]) == pytest.approx(np.mean([float(row[2].split()[0]) for row in rows[2:4]]), abs=0.011)
    # Every score of the logits, and the same again from outputs stored in a file.
    by_score = {row[0]: row[1:] for row in rows[9:]}
    assert {"max_logit", "msp", "energy", "postmax"} <= set(by_score)
    assert by_score["max_logit"][1] == rows[3][2].split()[0]
    kept = score(read(str(folder / "out" / "trial1.npz")), feature="logits", score="energy")
    assert float(by_score["energy"][1]) == pytest.approx(100 * kept["auroc"], abs=0.006)
    assert "on 3 samples of the unknown images" in printed


def test_samples_hold_every_image_once():
    places = published_checkpoints.sampled(9000, 0)
    assert len(set(places)) == len(places) and 900 < len(places) < 1000 and places.max() < 9000
    assert not np.array_equal(places, published_checkpoints.sampled(9000, 1))
