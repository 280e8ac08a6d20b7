"""Configs: every experiment file is valid; every mistake gives one clear sentence before data or compilation."""

import json
import math
import pathlib
import runpy

import numpy as np
import pytest
from programs import PHASES, small_config

from gradmix_jax import config as config_lib
from gradmix_jax import fields, models
from gradmix_jax import run as run_lib
from gradmix_jax import workdir as workdir_lib
from gradmix_jax.config import phase

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))

CLASSIFIED = (phase("classes", epochs=1, cross_entropy=1.0),)


def build(config, num_devices=1):
    return run_lib.from_config(config_lib.to_plain(config), num_devices=num_devices)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("recipe", sorted(config_lib.RECIPES))
def test_every_experiment_is_valid_in_every_recipe(path, recipe):
    module = runpy.run_path(str(path))
    config = module["get_config"](recipe)
    specs = build(config)
    assert specs.train.batch_size % 8 == 0
    assert "python -m gradmix_jax.main" in module["__doc__"]
    assert config.mix.method == config_lib.RECIPES[recipe]["mix"]["method"]


@pytest.mark.parametrize("recipe", ["tokens", "layer", "mls", "logitnorm"])
def test_a_network_of_a_recipe_has_its_published_width(recipe):
    for path in CONFIGS:
        config = runpy.run_path(str(path))["get_config"](recipe)
        published = models.ENCODERS[config.model.name].width
        if path.stem not in ("digits_osr", "digits_ssl", "folder_osr"):  # small networks, for a CPU
            assert (config.model.width or published) == published, path


def test_the_papers_recipe():
    c = runpy.run_path(str(next(path for path in CONFIGS if path.stem == "cifar_osr")))["get_config"]("layer")
    assert [(p.epochs, p.supcon, p.ssl) for p in c.phases] == [(600, 0.0, 1.0), (10, 1.0, 1.2)]
    assert (c.optimizer.name, c.optimizer.learning_rate, c.optimizer.final_fraction) == ("adam", 1e-3, 0.512)
    assert (c.train.batch_size, c.objective.temperature, c.model.width, c.model.hidden) == (256, 0.05, 0, 512)
    assert (c.attribution.method, c.mix.mask, c.mix.fill) == ("layer", "box", "partner_resized")


@pytest.mark.parametrize(
    "key, value, sentence",
    [
        ("mix.fil", "partner", r"unknown config key mix\.fil; did you mean mix\.fill\?"),
        ("mix.fill", "parner", r"mix\.fill must be one of partner, .*, got 'parner'; did you mean 'partner'\?"),
        ("mix.fill", 3, r"mix\.fill must be a string, got 3; put it in quotes"),
        ("mix.keep_range", (0.9, 0.5), r"mix\.keep_range must be \(low, high\) with low <= high, got \(0\.9, 0\.5\)"),
        ("mix.keep_range", ("a", 0.5), r"each element of mix\.keep_range must be a number from 0 to 1, got 'a'"),
        ("mix.group_size", 5, r"mix\.group_size must divide the 32 images of one device, got 5"),
        ("mix.method", "gradmx", r"mix\.method must be one of .*, got 'gradmx'"),
        (
            "attribution.stages",
            ("stage9",),
            r"each element of attribution\.stages must be one of stage1, .*, got 'stage9'",
        ),
        ("attribution.method", "gradcam", r"attribution\.method must be one of .*, got 'gradcam'"),
        ("attribution.sign", 0, r"attribution\.sign must be 1 or -1, got 0"),
        ("attribution.loss", "ce", r"attribution\.loss must be one of simclr, .*, got 'ce'"),
        ("attribution.loss", "cross_entropy", r"attribution\.loss 'cross_entropy' needs a model\.classifier"),
        ("attribution.every", 0, r"attribution\.every must be a positive integer, got 0"),
        ("attribution.smoothing", 2, r"attribution\.smoothing must be an odd number of pixels, got 2"),
        ("objective.temperature", 0.0, r"objective\.temperature must be a positive number, got 0\.0"),
        ("optimizer.name", "adamm", r"optimizer\.name must be one of adam, .*, got 'adamm'"),
        ("optimizer.learning_rate", -1.0, r"optimizer\.learning_rate must be a positive number, got -1\.0"),
        ("optimizer.per_epoch", 1, r"optimizer\.per_epoch must be True or False, got 1"),
        ("train.batch_size", -1, r"train\.batch_size must be an integer at least 0, got -1"),
        ("train.num_views", 1, r"phases\[0\]\.ssl needs train\.num_views of at least 2, got 1"),
        ("normalization.mean", (0.5,), r"normalization\.mean must have 3 elements, one per channel, got \(0\.5,\)"),
        ("evaluate.feature", "pixels", r"evaluate\.feature must be one of projection, .*, got 'pixels'"),
        ("model.name", "resnet19", r"model\.name must be one of .*, got 'resnet19'"),
        ("dataset.name", "cifar11", r"cifar11"),
        ("dataset.benchmark", "cifar11", r"cifar11"),
        ("dataset.trial", 7, r"7"),
        ("dataset.image_size", 0.5, r"dataset\.image_size must be an integer at least 0, got 0\.5"),
    ],
)
def test_a_wrong_value_is_named(key, value, sentence):
    config = small_config("layer", **{key: value})
    with pytest.raises(ValueError, match=sentence):
        build(config)


@pytest.mark.parametrize(
    ("method", "grid", "message"),
    [
        ("puzzlemix", 3, "divide dataset.image_size 8, got 3"),
        ("attentive_cutmix", 9, "be at most dataset.image_size 8, got 9"),
    ],
)
def test_a_grid_that_images_do_not_fit_is_named_before_training(method, grid, message):
    overrides = {"mix.method": method, "mix.options": {method: {"grid": grid}}}
    with pytest.raises(ValueError, match=rf"mix\.options\.{method}\.grid must {message}"):
        build(small_config(**overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"evaluate.stages": ("stage9",)},
            r"each element of evaluate\.stages must be one of stage1, stage2, .*, got 'stage9'",
        ),
        (
            {"evaluate.score": "ensemble", "dataset.validation_fraction": 0.0},
            r"evaluate\.score 'ensemble' does not work: dataset\.validation_fraction 0 .*; use one of topk_cosine, ",
        ),
        (
            {"evaluate.feature": "logits", "evaluate.score": "vim", "model.classifier": "cosine"},
            r"evaluate\.score 'vim' does not work: model\.classifier 'cosine' is .*; use one of msp, max_logit, ",
        ),
        (
            {"evaluate.feature": "logits", "evaluate.score": "react", "model.classifier": "cosine"},
            r"evaluate\.score 'react' does not work: .*; use one of msp, ",
        ),
        (
            {"evaluate.score": "odin", "evaluate.feature": "logits"},
            r"evaluate\.score 'odin' does not work: model\.classifier 'none' has no logits .*; use one of msp, ",
        ),
        ({"evaluate.near": ("mnist", "digits")}, r"evaluate\.near must be other data than the known classes' 'digits'"),
        ({"evaluate.far": ("digits",)}, r"evaluate\.far must be other data than the known classes' 'digits'"),
        (
            {"evaluate.corruptions": "regenerated", "dataset.image_size": 7},
            r"evaluate\.corruptions 'regenerated' needs dataset\.image_size of at least 8, got 7",
        ),
        (
            {"evaluate.corruptions": "cifar10_corrupted", "dataset.unknown_name": "mnist"},
            r"evaluate\.corruptions must be none or regenerated where known classes are of 'digits'",
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
        {"evaluate.scores": ("ensemble",), "dataset.validation_fraction": 0.0},  # the table leaves it out
        {"evaluate.feature": "logits", "evaluate.score": "vim"},  # of the linear probe
        {"evaluate.feature": "logits", "evaluate.score": "vim", "model.classifier": "linear"},
        {"evaluate.feature": "logits", "evaluate.score": "msp", "model.classifier": "cosine"},
        {"evaluate.corruptions": "regenerated"},
        {"evaluate.corruptions": "cifar10_corrupted"},
        {"evaluate.probes": ("digits",)},
    ],
)
def test_an_evaluation_that_works(overrides):
    build(small_config(phases=CLASSIFIED if "model.classifier" in overrides else PHASES, **overrides))


def test_a_head_needs_an_objective_that_trains_it():
    head = {"model.classifier": "linear"}
    for phases in (PHASES, (phase("first", epochs=0, cross_entropy=1.0), phase("second", epochs=1, soft_supcon=1.0))):
        with pytest.raises(ValueError, match=r"model\.classifier must be 'none' without an objective that trains it"):
            build(small_config(phases=phases, **head))
        build(small_config(phases=phases, **head, **{"model.init_from": "weights.pth"}))  # which may have it
    build(small_config(phases=(*PHASES, *CLASSIFIED), **head))
    build(small_config(phases=(phase("none", epochs=0, ssl=1.0),), **head))


@pytest.mark.parametrize(
    "bounds, right, wrong, allowed",
    [
        (dict(), (-1, 0.5, np.float32(2)), ("1", None, True, math.nan, math.inf), "a number"),
        (dict(least=1, whole=True), (1, np.int64(7)), (0, 1.0, True), "a positive integer"),
        (dict(above=0), (1e-9, 3), (0, -1, math.nan), "a positive number"),
        (dict(least=0, most=1), (0, 0.5, 1), (-0.1, 1.1), "a number from 0 to 1"),
        (dict(least=0, below=1), (0, 0.99), (1, -0.1), "a number at least 0 and below 1"),
        (dict(above=0, most=1), (0.1, 1), (0, 1.1), "a number above 0 and at most 1"),
    ],
)
def test_a_number_is_checked_against_its_bounds(bounds, right, wrong, allowed):
    for value in right:
        fields.check_number("a.b", value, **bounds)
    for value in wrong:
        with pytest.raises(ValueError) as caught:
            fields.check_number("a.b", value, **bounds)
        assert str(caught.value) == f"a.b must be {allowed}, got {value!r}."


def test_a_close_choice_is_suggested():
    fields.check_choice("a.b", "red", ("red", "green"))
    for value, hint in (("gren", "; did you mean 'green'?"), ("blue", "."), (3, ".")):
        with pytest.raises(ValueError) as caught:
            fields.check_choice("a.b", value, {"red": 1, "green": 2})
        assert str(caught.value) == f"a.b must be one of red, green, got {value!r}{hint}"


def test_a_batch_that_devices_cannot_share():
    with pytest.raises(ValueError, match=r"train\.batch_size must be a multiple of the 7 devices, got 32"):
        build(small_config(), num_devices=7)


def test_phases_are_checked():
    broken = small_config()
    broken.phases = ()
    with pytest.raises(ValueError, match=r"phases must be a tuple of at least one phase, got \[\]"):
        build(broken)
    with pytest.raises(ValueError, match=r"phases\[0\] must be a phase .*, got 3"):
        build(small_config(phases=(3,)))
    with pytest.raises(ValueError, match=r"'idle' has no objective"):
        build(small_config(phases=(config_lib.phase("idle", epochs=1),)))
    with pytest.raises(ValueError, match=r"phases\[0\]\.cross_entropy needs a model\.classifier"):
        build(small_config(phases=(config_lib.phase("ce", epochs=1, cross_entropy=1.0),)))
    with pytest.raises(ValueError, match=r"no phase has a loss of mixed images"):
        build(small_config(phases=(config_lib.phase("supcon", epochs=1, supcon=1.0),)))


def test_unknown_recipe():
    with pytest.raises(ValueError, match="the recipe must be one of input, layer, .*, got 'layers'"):
        config_lib.apply_recipe(config_lib.default_config(), "layers")


def test_a_config_older_than_a_key_gets_its_default(tmp_path):
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
        ({"objective.ssl": "dino"}, r"objective\.ssl must be one of simclr, moco, barlow_twins, got 'dino'"),
        (
            {"objective.ssl": "moco", "objective.options.moco.queue_size": 100},
            r"objective\.options\.moco\.queue_size must be a multiple of the 64 views of a step, got 100",
        ),
        (
            {"objective.options.moco.momentum": 1.0},
            r"objective\.options\.moco\.momentum must be a number at least 0 and below 1, got 1\.0",
        ),
        (
            {"objective.ssl": "barlow_twins", "train.num_views": 3},
            r"phases\[0\]\.ssl needs train\.num_views 2 for barlow_twins, got 3",
        ),
        ({"attribution.loss": "moco"}, r"attribution\.loss 'moco' needs a phase that gives moco a weight"),
        ({"optimizer.ema": 1.0}, r"optimizer\.ema must be a number at least 0 and below 1, got 1\.0"),
    ],
)
def test_self_supervised_mistakes(overrides, message):
    with pytest.raises(ValueError, match=message):
        build(small_config("input", **overrides))


@pytest.mark.parametrize(
    ("content", "said"),
    [(b'{"seed": 1', "Expecting"), (b"[1]", "expected an object, found a list"), (b"\xff\xfe", "decode"), (b"", "Exp")],
)
def test_a_damaged_file_of_a_run_is_named(content, said, tmp_path):
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"results\.json is damaged: .*{said}"):
        workdir_lib.read_json(str(tmp_path), "results.json")


def test_random_maps_need_no_gradient():
    # Whatever attribution.loss says.
    build(small_config("random", **{"attribution.loss": "cross_entropy"}))
    build(small_config("random", **{"attribution.loss": "moco"}))
    with pytest.raises(ValueError, match=r"attribution\.loss 'cross_entropy' needs a model\.classifier"):
        build(small_config("input", **{"attribution.loss": "cross_entropy"}))
