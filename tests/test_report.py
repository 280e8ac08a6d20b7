"""Tables of many runs."""

import json

import pytest
from programs import small_config

from gradmix_jax import config as config_lib
from gradmix_jax import report
from gradmix_jax.config import phase


def write_run(folder, recipe, *, trial=0, seed=0, step=10, auroc=0.9, **overrides):
    config = small_config(recipe, phases=(phase("ssl", epochs=1, ssl=1.0),), **{"dataset.trial": trial, **overrides})
    config.seed = seed
    folder.mkdir(parents=True)
    values = dict.fromkeys(report.ROWS, 0.5) | {"auroc": auroc}
    environment = {
        "devices": ["cpu"],
        "cpu_count": 2,
        "packages": {"jax": "0.10.2", "flax": "0.12.8"},
        "commit": "abcdef0123456789",
        "uncommitted_changes": False,
    }
    by_feature = {"projection": values, "features": values | {"auroc": auroc - 0.1}}
    results = {"by_feature": by_feature, "step": step, "score": "cosine", "environment": environment}
    (folder / "config.json").write_text(json.dumps(config_lib.to_plain(config)))
    (folder / "results.json").write_text(json.dumps(results))
    return str(folder)


def test_mean_and_deviation_over_trials_and_seeds(tmp_path):
    runs = [
        write_run(tmp_path / "a", "input", trial=0, auroc=0.8),
        write_run(tmp_path / "b", "input", trial=1, auroc=0.9),
        write_run(tmp_path / "c", "input", trial=1, seed=1, auroc=1.0),
        write_run(tmp_path / "d", "layer", auroc=0.7),
        write_run(tmp_path / "e", "input", step=0, auroc=0.55),
    ]
    lines = report.summary(runs).splitlines()
    # numpy.std([.8, .9, 1.], ddof=1) is .1
    assert lines[2].startswith("| input | projection | 0.5000 ± 0.0000 | 0.9000 ± 0.1000 |")
    assert lines[3].startswith("| input | features | 0.5000 ± 0.0000 | 0.8000 ± 0.1000 |")
    assert lines[2].endswith("| 3 |")
    assert "| layer | projection | 0.5000 | 0.7000 |" in lines[4] and lines[4].endswith("| 1 |")
    assert lines[6].startswith("| untrained | projection | 0.5000 | 0.5500 |")
    text = "\n".join(lines)
    assert "trials 0, 1" in text and "seeds 0, 1" in text and "abcdef012345" in text and "jax 0.10.2" in text


def test_recipes_are_told_apart(tmp_path):
    runs = [write_run(tmp_path / name, name) for name in config_lib.RECIPES]
    labels = [line.split("|")[1].strip() for line in report.summary(runs).splitlines()[2 : 2 + 2 * len(runs) : 2]]
    assert labels == list(config_lib.RECIPES)


def test_what_cannot_be_averaged_is_refused(tmp_path):
    first = write_run(tmp_path / "a", "input")
    with pytest.raises(ValueError, match="same trial and seed"):
        report.summary([first, write_run(tmp_path / "b", "input")])
    with pytest.raises(ValueError, match=r"differ in model\.width \(4 and 8\)"):
        report.summary([first, write_run(tmp_path / "c", "input", trial=1, **{"model.width": 8})])
    with pytest.raises(ValueError, match="there is no config.json"):
        report.summary([str(tmp_path / "nothing")])
