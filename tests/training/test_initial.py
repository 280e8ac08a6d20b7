"""Runs that start from existing weights: what is loaded, what is frozen, and that nothing else changes."""

import copy
import shutil

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from marks import slow_but
from programs import small_config

from gradmix_jax import assembly, models, run_many
from gradmix_jax import config as config_lib
from gradmix_jax import data as data_lib
from gradmix_jax import run as run_lib
from gradmix_jax import workdir as workdir_lib
from gradmix_jax.config import phase
from gradmix_jax.data import splits
from gradmix_jax.evaluation import fitting
from gradmix_jax.models import pretrained, safetensors_file
from gradmix_jax.models.parts import expanded, part_of
from gradmix_jax.portable import from_run
from gradmix_jax.training import initial, loop, mapping, optimizer
from gradmix_jax.training import state as state_lib
from gradmix_jax.training.checkpoint import Checkpoints

MODEL = {"model.name": "classifier32", "model.width": 4, "model.classifier": "linear"}


def digits(epochs=1, **overrides):
    """Digits in color, because published encoders have three input channels; one batch per device."""
    config = small_config("none", phases=(phase("joint", epochs=epochs, supcon=1.0),), **MODEL | overrides)
    config.dataset.channels = 3
    config.normalization.mean, config.normalization.std = (0.5,) * 3, (0.25,) * 3
    config.train.batch_size = 256
    config.evaluate.scores = ("topk_cosine",)
    config.evaluate.stages = ()
    return config


def fit(config, workdir):
    plain = config_lib.to_plain(config)
    return run_lib.train(run_lib.from_config(plain, num_devices=jax.device_count()), plain, str(workdir))


def state_at(config, workdir, step=None):
    specs = run_lib.from_config(config_lib.to_plain(config), num_devices=8)
    program = assembly.make_program(specs, num_classes=6, num_images=256)
    checkpoints = Checkpoints(str(workdir), of=None, read_only=True)
    state = checkpoints.restore(jax.eval_shape(lambda: assembly.initial_state(specs, program)), step)
    checkpoints.close()
    return state


def leaves(state):
    tree = {"params": state.params, "batch_stats": state.batch_stats}
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(tree, sep="/").items()}


def changed(before, after):
    """The parts in which any array differs."""
    return {part_of(tuple(path.split("/")[1:])) for path in before if not np.array_equal(before[path], after[path])}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """(safetensors file, its variables): an encoder with a classifier of 6 classes and no projection."""
    spec = run_lib.from_config(config_lib.to_plain(digits(epochs=0)), num_devices=8).model
    module = models.create(spec, num_classes=6)
    shapes = jax.eval_shape(
        lambda key: module.init(key, np.zeros((1, 8, 8, 3), np.float32), train=False), jax.random.key(0)
    )
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.uniform(0.5, 1, leaf.shape).astype(np.float32), dict(shapes))
    path = str(tmp_path_factory.mktemp("source") / "weights0.safetensors")
    safetensors_file.write(path, pretrained.to_state_dict(variables))
    return path, variables


@pytest.fixture(scope="module")
def untrained(source, tmp_path_factory):
    """(config, workdir) of a run of no epochs from the file: its first state, saved."""
    config = digits(epochs=0, **{"model.init_from": source[0].replace("0.", "{trial}.")})
    workdir = tmp_path_factory.mktemp("untrained")
    assert fit(config, workdir) == (0, 0)
    return config, workdir


def test_a_run_starts_from_the_file_and_initializes_the_rest(source, untrained, tmp_path):
    fit(digits(epochs=0), tmp_path)
    ours, loaded, random = (
        leaves(state_at(*untrained)),
        flatten_dict(source[1], sep="/"),
        leaves(state_at(digits(epochs=0), tmp_path)),
    )
    for path, leaf in ours.items():
        wanted = random if path.startswith("params/projection") else loaded
        np.testing.assert_array_equal(leaf, wanted[path])


def test_a_run_starts_from_another_run(untrained, tmp_path, caplog):
    config = digits(epochs=0, **{"model.init_from": str(untrained[1])})
    config.seed = 5
    fit(config, tmp_path)
    assert not caplog.records
    assert changed(leaves(state_at(*untrained)), leaves(state_at(config, tmp_path))) == set()


def test_a_run_that_starts_from_another_class_split_is_warned(untrained, tmp_path, capsys):
    """Its unknown classes are not new to the weights, whether they are trained on or only evaluated."""
    config = digits(epochs=0, **{"model.init_from": str(untrained[1])})
    fit(config, tmp_path / "same")
    assert "warning" not in capsys.readouterr().err
    config.dataset.trial = 1
    known, unknown = (splits.BENCHMARKS["mnist"][trial] for trial in (0, 1))
    both = sorted(str(number) for number in set(known.known) & set(unknown.unknown))
    fit(config, tmp_path / "other")
    said = f"was trained on classes that are unknown here ({', '.join(both)}), so they are not new to this model"
    assert said in capsys.readouterr().err
    experiment = run_lib.from_config(config_lib.to_plain(config), num_devices=jax.device_count())
    fitting.restore(experiment.setup, str(tmp_path / "evaluated"))
    assert said in capsys.readouterr().err


def test_an_export_of_another_class_split_is_warned_of(source, tmp_path, capsys):
    weights = {path: np.asarray(leaf) for path, leaf in flatten_dict(source[1], sep="/").items()}
    safetensors_file.write(str(tmp_path / workdir_lib.EXPORTED_WEIGHTS), weights)
    template = jax.tree.map(np.zeros_like, source[1])
    dataset = run_lib.from_config(config_lib.to_plain(digits(epochs=0)), num_devices=8).dataset
    data = data_lib.open_set(dataset)
    unknown, known = splits.BENCHMARKS["mnist"][0].unknown[0], splits.BENCHMARKS["mnist"][0].known[0]
    of = {"name": "digits", "negative": [str(unknown)]}
    for about, said in (
        ({"class_names": [str(unknown), str(known)], "config": {"dataset": {"name": "digits"}}}, True),
        ({"class_names": [str(known)], "config": {"dataset": of}}, True),
        ({"class_names": [str(known)], "config": {"dataset": {"name": "digits"}}}, False),
        ({"class_names": [str(unknown)], "config": {"dataset": {"name": "mnist"}}}, False),
        ({"class_names": None, "config": []}, False),
    ):
        workdir_lib.write_json(str(tmp_path), workdir_lib.EXPORTED_METADATA, about)
        initial.warn_of_unknown(initial.load(str(tmp_path), 0, template)[1], dataset, data)
        warned = f"was trained on classes that are unknown here ({unknown})" in capsys.readouterr().err
        assert warned == said, about


def test_a_run_starts_from_an_export(source, tmp_path):
    """From its folder or its file, both of which use our own names."""
    weights = {path: np.asarray(leaf) for path, leaf in flatten_dict(source[1], sep="/").items()}
    path = str(tmp_path / workdir_lib.EXPORTED_WEIGHTS)
    safetensors_file.write(path, weights)
    template = jax.tree.map(np.zeros_like, source[1])
    for given in (str(tmp_path), path):
        merged, report = initial.load(given, 0, template)
        assert report.source == path and set(report.loaded) == set(weights) and not report.kept
        np.testing.assert_equal(flatten_dict(merged, sep="/"), weights)


def test_the_classifier_of_another_number_of_classes_is_not_loaded(untrained, source):
    variables = jax.tree.map(np.asarray, source[1])
    template = variables | {"params": variables["params"] | {"classifier": {"dense": {"kernel": np.zeros((8, 3))}}}}
    merged, report = initial.load(str(untrained[1]), 0, template)
    assert report.kept == ("params/classifier/dense/kernel",)
    assert set(report.ignored) == {"params/classifier/dense/kernel", "params/classifier/dense/bias"}
    assert merged["params"]["encoder"]["stage1_layer1_conv"]["kernel"].shape == (3, 3, 3, 4)


def test_a_run_of_another_encoder_does_not_fit(untrained):
    _, workdir = untrained
    template = {"params": {"encoder": {"stage1_layer1_conv": {"kernel": np.zeros((3, 3, 3, 5))}, "new": np.zeros(1)}}}
    with pytest.raises(
        ValueError, match=r"missing: params/encoder/new; unexpected: .*; wrong shapes: .* 3x3x3x4 instead"
    ):
        initial.load(str(workdir), 0, template)


@pytest.mark.parametrize("method", ["supcon", "moco"])
def test_average_and_key_encoder_start_from_the_same_weights(method):
    both = {"params": {"a": 1}, "batch_stats": {}}
    state = state_lib.TrainState(0, 0, {"a": 0}, {}, (), {"average": None, "momentum": None, "queue": 3})
    state = state_lib.with_weights(state, both)
    assert state.params == {"a": 1} and state.extra == {"average": both, "momentum": both, "queue": 3}


def test_frozen_parts_stay_as_they_are(untrained, source, tmp_path):
    """On 8 devices: parameters and running averages stay to the bit, without optimizer state; the rest trains."""
    assert jax.device_count() == 8
    config = digits(**{"model.init_from": source[0], "model.freeze": ("stage1", "stage2", "classifier")})
    fit(config, tmp_path)
    state, before = state_at(config, tmp_path), leaves(state_at(*untrained))
    assert changed(before, leaves(state)) == {"stage3", "projection"}
    trained = sum(leaf.size for path, leaf in before.items() if path.startswith("params/") and "stage3" in path)
    trained += sum(leaf.size for path, leaf in before.items() if path.startswith("params/projection"))
    assert sum(np.size(leaf) for leaf in jax.tree.leaves(state.opt_state)) < 2 * trained + 10


@pytest.mark.parametrize("name", slow_but(["pmap"], mapping.MAPPINGS))
def test_a_frozen_encoder_keeps_its_features(untrained, source, tmp_path, name):
    config = digits(**{"model.init_from": source[0], "model.freeze": ("encoder",), "train.mapping": name})
    fit(config, tmp_path)
    assert changed(leaves(state_at(*untrained)), leaves(state_at(config, tmp_path))) == {"projection"}


def test_resume_needs_no_source_and_gives_the_same_bits(source, tmp_path, monkeypatch):
    options = {"model.freeze": ("stage1",), "model.loaded_learning_rate_factor": 0.1}
    path = shutil.copy(source[0], tmp_path / "copy.safetensors")
    config = digits(epochs=2, **options | {"model.init_from": str(path)})
    fit(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        run = loop.run
        stopping = {"should_stop": lambda step: step == 1}
        patch.setattr(loop, "run", lambda state, **given: run(state, **given | stopping))
        assert fit(config, tmp_path / "resumed")[0] == 1
    (tmp_path / "copy.safetensors").unlink()
    fit(config, tmp_path / "resumed")
    whole, resumed = state_at(config, tmp_path / "whole"), state_at(config, tmp_path / "resumed")
    assert int(whole.step) == int(resumed.step) > 1
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(whole), jax.device_get(resumed))


def test_evaluation_without_a_checkpoint_uses_the_loaded_weights(untrained, tmp_path):
    config, workdir = untrained
    results = run_lib.run(config, str(tmp_path / "eval"), "eval")
    of_checkpoint = run_lib.evaluate(config_lib.to_plain(config), str(workdir))
    assert results["step"] == 0 and results["auroc"] == of_checkpoint["auroc"]
    assert config_lib.read(str(tmp_path / "eval"))["model"]["init_from"] == config.model.init_from
    assert not (tmp_path / "eval" / "checkpoints").exists()
    assert "projection" in of_checkpoint["by_score"] and "features" in results["by_score"]
    assert "projection" not in results["by_score"] and "projection" not in results["diversity"]


def test_a_run_without_a_checkpoint_that_starts_from_another_run_is_exported(untrained, tmp_path):
    """Its features are cached, so no test images are opened."""
    config = digits(epochs=0, **{"model.init_from": str(untrained[1])})
    run_lib.run(config, str(tmp_path), "eval")
    assert from_run.load(str(tmp_path)).metadata["step"] == 0


def test_a_head_that_is_not_loaded_cannot_be_the_headline(untrained, tmp_path):
    config = copy.deepcopy(untrained[0])
    config.evaluate.feature = "projection"
    with pytest.raises(ValueError, match="evaluate.feature='projection' is the output of a head that .* lacks"):
        run_lib.evaluate(config, str(tmp_path))


def test_logits_of_a_head_that_is_neither_loaded_nor_trained(source, tmp_path):
    """Six classes in the file, three here: contrastive training would leave the head as it was drawn."""
    keys = {"model.init_from": source[0], "dataset.benchmark": "random", "dataset.num_known": 3}
    for run in (fit, lambda config, workdir: run_lib.evaluate(config, str(workdir))):
        with pytest.raises(
            ValueError, match=r"model\.classifier must be 'none' where neither .* got 'linear': .* has no"
        ):
            run(digits(**keys), tmp_path)


@pytest.mark.parametrize(
    "name, options", [("adam", {"weight_decay": 0.1}), ("sgd", {}), ("lars", {"weight_decay": 0.1})]
)
def test_the_factor_is_one_of_the_encoders_learning_rate(name, options):
    rng = np.random.default_rng(0)
    tree = lambda: {part: {"kernel": rng.normal(size=(3, 2)).astype(np.float32)} for part in ("encoder", "classifier")}
    params, gradients = tree(), [tree(), tree()]
    spec = optimizer.OptimizerSpec(name=name, **options)

    def updates(rate, **given):
        transform, found = optimizer.optimizer(spec, optax.constant_schedule(rate), **given), []
        state = transform.init(params)
        for gradient in gradients:
            update, state = transform.update(gradient, state, params)
            found.append(update)
        return found

    scaled, slow, fast = updates(0.5, encoder_factor=0.2), updates(0.1), updates(0.5)
    for ours, encoder, head in zip(scaled, slow, fast, strict=True):
        np.testing.assert_allclose(ours["encoder"]["kernel"], encoder["encoder"]["kernel"], rtol=1e-5)
        np.testing.assert_array_equal(ours["classifier"]["kernel"], head["classifier"]["kernel"])


def test_parts():
    assert part_of(("encoder", "stage1_block2", "bn1", "scale")) == "stage1"
    assert part_of(("encoder", "stem_bn")) == part_of(("encoder", "class_token")) == "stem"
    assert part_of(("encoder", "norm", "scale")) == "stage4"
    assert part_of(("projection", "hidden", "bias")) == "projection"
    assert expanded(("encoder", "stem", "classifier"), ("stage1", "stage2")) == (
        "stem",
        "stage1",
        "stage2",
        "classifier",
    )


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            {"freeze": ("stage9",)},
            "each element of model.freeze must be one of encoder, stem, stage1, .*, got 'stage9'",
        ),
        ({"loaded_learning_rate_factor": 0.1}, "model.loaded_learning_rate_factor must be 1 without model.init_from"),
        ({"init_from": "x", "loaded_learning_rate_factor": -1.0}, "must be a number at least 0, got -1"),
    ],
)
def test_the_model_section_rejects_what_does_not_work(fields, message):
    with pytest.raises(ValueError, match=message):
        models.Spec(**fields)


def test_a_missing_source_is_found_before_any_trial_runs(source, tmp_path):
    config = digits(**{"model.init_from": source[0].replace("0.", "{trial}.")})
    with pytest.raises(ValueError, match=r"model.init_from '.*weights1.safetensors' does not exist"):
        run_many.check_runs(config, str(tmp_path), [0, 1], [0], num_devices=jax.device_count())
    with pytest.raises(ValueError, match="does not exist"):
        fit(digits(**{"model.init_from": str(tmp_path / "nowhere")}), tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no checkpoint in"):
        initial.load(str(tmp_path / "empty"), 0, {})
