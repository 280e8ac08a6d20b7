"""Configs: every experiment file is valid, and every mistake is one clear sentence before data or compilation."""

import json
import math
import pathlib
import runpy

import numpy as np
import pytest
from programs import small_config

from gradmix_jax import config as config_lib
from gradmix_jax import experiment

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))


def build(config, num_devices=1):
    config_lib.validate(config)
    return experiment.from_config(config_lib.to_plain(config), num_devices=num_devices)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("recipe", sorted(config_lib.RECIPES))
def test_every_experiment_is_valid_in_every_recipe(path, recipe):
    module = runpy.run_path(str(path))
    config = module["get_config"](recipe)
    specs = build(config)
    assert specs.train.batch_size % 8 == 0
    assert "python -m gradmix_jax.main" in module["__doc__"]
    assert config.mix.method == config_lib.RECIPES[recipe]["mix"]["method"]


def test_the_papers_recipe():
    c = runpy.run_path(str(next(path for path in CONFIGS if path.stem == "cifar_osr")))["get_config"]("layer")
    assert [(p.epochs, p.supcon, p.ssl) for p in c.phases] == [(600, 0.0, 1.0), (10, 1.0, 1.2)]
    assert (c.optimizer.name, c.optimizer.learning_rate, c.optimizer.final_fraction) == ("adam", 1e-3, 0.512)
    assert (c.train.batch_size, c.objective.temperature, c.model.width, c.model.hidden) == (256, 0.05, 64, 512)
    assert (c.attribution.method, c.mix.mask, c.mix.fill) == ("layer", "box", "partner_resized")


@pytest.mark.parametrize(
    "key, value, sentence",
    [
        ("mix.fil", "partner", r"unknown config key mix\.fil; allowed here: .*fill"),
        ("mix.fill", "parner", r"mix\.fill is 'parner'; allowed: partner, "),
        ("mix.fill", 3, r"mix\.fill is 3; allowed: a value of type str"),
        ("mix.keep_range", (0.9, 0.5), r"mix\.keep_range is \(0\.9, 0\.5\); allowed"),
        ("mix.keep_range", ("a", 0.5), r"element of mix\.keep_range is 'a'; allowed: a value of type float"),
        ("mix.group_size", 5, r"mix\.group_size is 5; allowed: a divisor of the 32 images"),
        ("mix.method", "gradmx", r"mix\.method is 'gradmx'; allowed"),
        ("attribution.stages", ("stage9",), r"an element of attribution\.stages is 'stage9'; allowed: stage1"),
        ("attribution.method", "gradcam", r"attribution\.method is 'gradcam'; allowed"),
        ("attribution.sign", 0, r"attribution\.sign is 0; allowed: 1 or -1"),
        ("attribution.loss", "ce", r"attribution\.loss is 'ce'; allowed: simclr"),
        ("attribution.loss", "cross_entropy", r"only with a model\.classifier"),
        ("attribution.every", 0, r"attribution\.every is 0; allowed: a whole number, 1 or more"),
        ("attribution.smoothing", 2, r"attribution\.smoothing is 2; allowed: an odd number"),
        ("objective.temperature", 0.0, r"objective\.temperature is 0\.0; allowed: a number above 0"),
        ("optimizer.name", "adamm", r"optimizer\.name is 'adamm'; allowed: adam"),
        ("optimizer.learning_rate", -1.0, r"optimizer\.learning_rate is -1\.0; allowed"),
        ("optimizer.per_epoch", 1, r"optimizer\.per_epoch is 1; allowed: a value of type bool"),
        ("train.batch_size", 0, r"train\.batch_size is 0; allowed: a whole number, 1 or more"),
        ("train.num_views", 1, r"phases\[0\]\.ssl is 1\.0; allowed: 0 with train\.num_views below 2"),
        ("normalization.mean", (0.5,), r"normalization\.mean is \(0\.5,\); allowed: 3 number"),
        ("evaluate.feature", "pixels", r"evaluate\.feature is 'pixels'; allowed: projection"),
        ("model.name", "resnet19", r"model\.name is 'resnet19'"),
        ("dataset.name", "cifar11", r"cifar11"),
        ("dataset.benchmark", "cifar11", r"cifar11"),
        ("dataset.trial", 7, r"7"),
        ("dataset.image_size", 0, r"dataset\.image_size is 0"),
    ],
)
def test_a_wrong_value_is_named(key, value, sentence):
    config = small_config("layer", **{key: value})
    with pytest.raises(ValueError, match=sentence):
        build(config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"evaluate.stages": ("stage9",)}, r"an element of evaluate\.stages is 'stage9'; allowed: stage1, stage2, "),
        (
            {"evaluate.score": "ensemble", "dataset.validation_fraction": 0.0},
            r"evaluate\.score is 'ensemble'; allowed: topk_cosine, [a-z0-9_, ]*feature_norm \(dataset\.validation_frac",
        ),
        (
            {"evaluate.feature": "logits", "evaluate.score": "vim", "model.classifier": "cosine"},
            r"evaluate\.score is 'vim'; allowed: msp, max_logit, energy, entropy, kl_matching \(model\.classifier 'cos",
        ),
        (
            {"evaluate.feature": "logits", "evaluate.score": "react", "model.classifier": "cosine"},
            r"evaluate\.score is 'react'; allowed: msp, ",
        ),
        ({"evaluate.near": ("mnist", "digits")}, r"evaluate\.near is \('mnist', 'digits'\); allowed: other data sets"),
        ({"evaluate.far": ("digits",)}, r"evaluate\.far is \('digits',\); allowed: other data sets than .* 'digits'"),
        (
            {"evaluate.corruptions": "regenerated", "dataset.image_size": 7},
            r"evaluate\.corruptions is 'regenerated'; allowed: none with dataset\.image_size 7",
        ),
        (
            {"evaluate.corruptions": "cifar10_corrupted", "dataset.unknown_name": "mnist"},
            r"evaluate\.corruptions is 'cifar10_corrupted'; allowed: none, regenerated \(known classes are of 'digits'",
        ),
    ],
)
def test_an_evaluation_that_would_fail_after_training(overrides, message):
    with pytest.raises(ValueError, match=message):
        build(small_config(**overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        {"evaluate.score": "ensemble"},
        {"evaluate.scores": ("ensemble",), "dataset.validation_fraction": 0.0},  # left out of the comparison
        {"evaluate.feature": "logits", "evaluate.score": "vim"},  # of the linear probe
        {"evaluate.feature": "logits", "evaluate.score": "vim", "model.classifier": "linear"},
        {"evaluate.feature": "logits", "evaluate.score": "msp", "model.classifier": "cosine"},
        {"evaluate.corruptions": "regenerated"},
        {"evaluate.corruptions": "cifar10_corrupted"},
        {"evaluate.probes": ("digits",)},
    ],
)
def test_an_evaluation_that_works(overrides):
    build(small_config(**overrides))


@pytest.mark.parametrize(
    "bounds, right, wrong, allowed",
    [
        (dict(), (-1, 0.5, np.float32(2)), ("1", None, True, math.nan, math.inf), "a number"),
        (dict(least=1, whole=True), (1, np.int64(7)), (0, 1.0, True), "a whole number, 1 or more"),
        (dict(above=0), (1e-9, 3), (0, -1, math.nan), "a number above 0"),
        (dict(least=0, most=1), (0, 0.5, 1), (-0.1, 1.1), "a number from 0 to 1"),
        (dict(least=0, below=1), (0, 0.99), (1, -0.1), "0 <= value < 1"),
        (dict(above=0, most=1), (0.1, 1), (0, 1.1), "0 < value <= 1"),
    ],
)
def test_a_number_is_checked_against_its_bounds(bounds, right, wrong, allowed):
    for value in right:
        config_lib.check_number("a.b", value, **bounds)
    for value in wrong:
        with pytest.raises(ValueError) as caught:
            config_lib.check_number("a.b", value, **bounds)
        assert str(caught.value) == f"a.b is {value!r}; allowed: {allowed}."


def test_a_choice_is_guessed_where_it_is_near():
    config_lib.check_choice("a.b", "red", ("red", "green"))
    for value, hint in (("gren", " (did you mean 'green'?)"), ("blue", ""), (3, "")):
        with pytest.raises(ValueError) as caught:
            config_lib.check_choice("a.b", value, {"red": 1, "green": 2})
        assert str(caught.value) == f"a.b is {value!r}; allowed: red, green{hint}."


def test_a_batch_that_devices_cannot_share():
    with pytest.raises(ValueError, match=r"train\.batch_size is 32; allowed: a multiple of the 7 devices"):
        build(small_config(), num_devices=7)


def test_phases_are_checked():
    broken = small_config()
    broken.phases = ()
    with pytest.raises(ValueError, match=r"phases is \[\]"):
        build(broken)
    with pytest.raises(ValueError, match=r"phases\[0\] is 3; allowed: a phase"):
        build(small_config(phases=(3,)))
    with pytest.raises(ValueError, match=r"'idle' has no objective"):
        build(small_config(phases=(config_lib.phase("idle", epochs=1),)))
    with pytest.raises(ValueError, match=r"phases\[0\]\.cross_entropy is 1\.0 but model\.classifier"):
        build(small_config(phases=(config_lib.phase("ce", epochs=1, cross_entropy=1.0),)))
    with pytest.raises(ValueError, match=r"no phase has a loss of mixed images"):
        build(small_config(phases=(config_lib.phase("supcon", epochs=1, supcon=1.0),)))


def test_unknown_recipe():
    with pytest.raises(ValueError, match="recipe 'layers' is unknown; allowed: input, layer"):
        config_lib.apply_recipe(config_lib.default_config(), "layers")


def test_a_config_from_before_a_key_has_its_default(tmp_path):
    old = config_lib.to_plain(small_config())
    del old["objective"]["ssl"], old["optimizer"]["ema"]
    old["mix"]["fill"] = "noise"
    (tmp_path / "config.json").write_text(json.dumps(old))
    read = config_lib.read(str(tmp_path))
    assert read["objective"]["ssl"] == "simclr" and read["optimizer"]["ema"] == 0.0
    assert read["mix"]["fill"] == "noise" and read["phases"] == old["phases"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"objective.ssl": "dino"}, r"objective\.ssl is 'dino'; allowed: simclr, moco, barlow_twins"),
        ({"objective.ssl": "moco", "objective.queue_size": 100}, r"queue_size is 100; allowed: a multiple of the 64"),
        ({"objective.momentum": 1.0}, r"objective\.momentum is 1\.0; allowed: 0 <= value < 1"),
        ({"objective.ssl": "barlow_twins", "train.num_views": 3}, r"num_views is 3; allowed: 2 with"),
        ({"attribution.loss": "moco"}, r"attribution\.loss is 'moco'; allowed: only with the same objective\.ssl"),
        ({"optimizer.ema": 1.0}, r"optimizer\.ema is 1\.0; allowed"),
    ],
)
def test_self_supervised_mistakes(overrides, message):
    with pytest.raises(ValueError, match=message):
        build(small_config("input", **overrides))


@pytest.mark.parametrize(
    ("content", "said"),
    [(b'{"seed": 1', "Expecting"), (b"[1]", "it holds a list"), (b"\xff\xfe", "decode"), (b"", "Exp")],
)
def test_a_damaged_file_of_a_run_is_named(content, said, tmp_path):
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"results\.json is damaged \(.*{said}.*\); allowed"):
        config_lib.read(str(tmp_path), "results.json")


def test_random_maps_are_made_of_no_gradient():
    # Whatever the loss says that their gradient would be of.
    build(small_config("random", **{"attribution.loss": "cross_entropy"}))
    build(small_config("random", **{"attribution.loss": "moco"}))
    with pytest.raises(ValueError, match=r"attribution\.loss is 'cross_entropy'; allowed: only with a model"):
        build(small_config("input", **{"attribution.loss": "cross_entropy"}))
