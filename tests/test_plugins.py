"""Entries from outside the package: adding one takes one function or class and one table entry.

Each toy is put into its table, chosen by its name in a config, and then trained, evaluated and reported with, by the
functions that the commands call. Nothing in the package knows these names.
"""

import json
import pathlib

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from programs import small_config
from sklearn.datasets import load_digits

from gradmix_jax import config as config_lib
from gradmix_jax import data, models, report, run, scores
from gradmix_jax.config import phase
from gradmix_jax.fields import Key
from gradmix_jax.models.layers import Encoder, global_average


def tiny(**overrides):
    """A digits config of one epoch, with a batch size that 8 devices can share."""
    config = small_config("input", phases=(phase("joint", epochs=1, supcon=1.0, ssl=1.0),), **overrides)
    config.dataset.channels = 1
    config.normalization.mean, config.normalization.std = (0.5,), (0.25,)
    config.train.batch_size = 256
    config.evaluate.scores = ("topk_cosine",)
    return config


def train_evaluate_report(config, workdir):
    """The results of a run, and the text of its report."""
    results = run.run(config, str(workdir))
    paths = report.write([str(workdir)], str(workdir / "report"))
    assert json.loads((workdir / "results.json").read_text())["step"] == results["step"] > 0
    return results, "\n".join(pathlib.Path(path).read_text() for path in paths)


class ToyEncoder(Encoder):
    """Two stages of one convolution."""

    @nn.compact
    def __call__(self, images_BxHxWxC, *, train, tap):
        conv, norm = self.layers(train)
        x = images_BxHxWxC
        for stage in (1, 2):
            x = conv(self.width, 3, stage, name=f"stage{stage}_conv")(x)
            x = tap(f"stage{stage}", norm(name=f"stage{stage}_bn")(x, with_relu=True))
        return global_average(x)


def fit_toy(reference, *, power):
    return np.asarray(reference.train.features).mean(axis=0), power


def score_toy(state, outputs):
    """Minus the distance to the mean training feature, to some power."""
    mean_F, power = state
    return -(jnp.linalg.norm(jnp.asarray(outputs.features) - mean_F[None], axis=1) ** power)


def read_toy(spec, name, with_train):
    """scikit-learn's digits, every third one in the test part; `name` is what follows "toy_data:"."""
    images, labels = load_digits(return_X_y=True)
    images = np.uint8(images.reshape(-1, 8, 8) * 15)
    is_test = np.arange(len(labels)) % 3 == 0
    parts = [data.ArrayRecords(images[part], np.int32(labels[part]), name) for part in (~is_test, is_test)]
    return data.DataSet(tuple("0123456789"), parts[0] if with_train else None, parts[1])


@pytest.fixture
def toys(monkeypatch):
    """A toy in each table."""
    monkeypatch.setitem(data.READERS, "toy_data", data.Reader(read_toy, argument="PATH"))
    monkeypatch.setitem(models.ENCODERS, "toy_encoder", models.Choice(ToyEncoder, 8, 2, ("cifar",)))
    options = {"power": Key(1.0, "of the distance", above=0)}
    monkeypatch.setitem(scores.SCORES, "toy_score", scores.Score(fit_toy, score_toy, ("features",), options))


def test_a_run_of_toys(toys, tmp_path):
    """All in one run, because most of a run is compilation."""
    config = tiny(**{"model.name": "toy_encoder", "evaluate.stages": ("stage2",), "evaluate.score": "toy_score"})
    config.dataset.name = "toy_data:anywhere"
    config.evaluate.options.toy_score.power = 2.0
    results, text = train_evaluate_report(config, tmp_path)
    parameters = (tmp_path / "parameters.txt").read_text()
    assert "encoder/stage2_conv/kernel" in parameters and "stage3" not in parameters
    assert results["score_name"] == "toy_score" and "stage2" in results["by_feature"]
    assert 0 < results["auroc"] == results["by_score"]["features"]["toy_score"]["auroc"] < 1
    assert "toy_score" in text and "toy_data:anywhere" in text


def test_options_of_an_entry_are_keys_of_the_config(toys):
    assert config_lib.default_config().evaluate.options.toy_score.power == 1.0
    config = tiny()
    config.evaluate.options.toy_score.power = -1.0
    with pytest.raises(ValueError, match=r"evaluate\.options\.toy_score\.power must be a positive number, got -1\.0"):
        config_lib.from_config(config, num_devices=8)


def test_names_of_an_external_dataset(toys):
    config = tiny(**{"dataset.name": "toy_dta:anywhere"})
    with pytest.raises(ValueError, match="dataset.name must be one of .*toy_data:PATH, got 'toy_dta:anywhere'"):
        config_lib.from_config(config, num_devices=8)
