"""A run made before the package was laid out in folders can be evaluated, reported, predicted with and resumed.

`old_run.tar.xz` is the workdir of 4 epochs of `configs/digits_osr.py` at width 4, made at commit 6911d4c.
"""

import json
import pathlib
import shutil

import commands
import numpy as np
import old_run
import pytest
from ml_collections import ConfigDict

from gradmix_jax import config as config_lib
from gradmix_jax import figure, predict, report, run


@pytest.fixture
def workdir(tmp_path):
    return old_run.unpack(tmp_path / "old")


def test_evaluating_it_gives_the_numbers_it_had(workdir):
    before = json.loads((workdir / "results.json").read_text())
    config = config_lib.read(str(workdir))
    config["evaluate"]["scores"] = ["topk_cosine"]
    found = run.evaluate(config, str(workdir))
    for name in ("accuracy", "auroc", "oscr", "fpr95_unknown_positive", "macro_f1", "step", "num_train"):
        assert found[name] == pytest.approx(before[name], abs=1e-5), name


def test_reporting_it(workdir, tmp_path):
    before = json.loads((workdir / "results.json").read_text())
    assert f"{before['auroc']:.4f}" in report.summary([str(workdir)])
    pages = report.write([str(workdir)], str(tmp_path / "report"))
    assert all(pathlib.Path(page).stat().st_size for page in pages)


def test_predicting_with_it(workdir):
    classifier = predict.OpenSetClassifier.load(str(workdir))
    prediction = classifier.predict(np.zeros((2, 16, 16, 1), np.uint8))
    assert set(prediction.name_N) <= {*classifier.class_names, "unknown"}


def test_drawing_its_next_step(workdir, tmp_path):
    figure.grid(str(workdir), str(tmp_path / "grid.png"), rows=2)
    assert (tmp_path / "grid.png").stat().st_size > 1000


def test_resuming_it(workdir):
    plain = config_lib.read(str(workdir))
    shutil.rmtree(workdir / "checkpoints" / "20")
    (workdir / "results.json").unlink()
    config = ConfigDict(plain)
    run.run(config, str(workdir), "train")
    assert (workdir / "checkpoints" / "20").is_dir()
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 20 and np.isfinite(lines[-1]["loss"])


def test_another_config_is_refused(workdir):
    plain = config_lib.read(str(workdir))
    plain["mix"]["fill"] = "noise"
    with pytest.raises(ValueError, match=r"holds a run with mix\.fill='partner', not 'noise'"):
        run.check_same_run(plain, str(workdir))


def test_keys_by_their_old_names(workdir):
    path = workdir / "config.json"
    old = json.loads(path.read_text())
    assert "options" not in old["mix"]
    path.write_text(json.dumps(old | {"mix": old["mix"] | {"mixup_alpha": 0.2, "fmix_decay": 1.5}}))
    plain = config_lib.read(str(workdir))
    assert plain["mix"]["options"].items() >= {"mixup": {"alpha": 0.2}, "fmix": {"decay": 1.5}}.items()
    assert not {"mixup_alpha", "fmix_decay"} & plain["mix"].keys()
    run.check_same_run(plain, str(workdir))
    plain["mix"]["options"]["mixup"]["alpha"] = 0.3
    with pytest.raises(ValueError, match=r"holds a run with mix\.options\.mixup\.alpha=0\.2, not 0\.3"):
        run.check_same_run(plain, str(workdir))


@pytest.mark.parametrize("words", [["--config.mix.mixup_alpha=0.2"], ["-config.mix.mixup_alpha", "0.2"]])
def test_flags_by_their_old_names(words):
    shown = commands.run("gradmix_jax.show_config", "--config=digits_osr:mixup", *words)
    assert shown.returncode == 0, shown.stderr
    assert [line.split()[2] for line in shown.stdout.splitlines() if line.startswith("mix.options.mixup.alpha ")] == [
        "0.2"
    ], shown.stdout
