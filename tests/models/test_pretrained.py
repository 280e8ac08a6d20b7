"""Weights from PyTorch: activations match PyTorch's, names match its libraries', and anything else is rejected.

The references are made by tests/models/references/make_torch_references.py.
"""

import dataclasses
import json
import pathlib
import sys
from functools import partial

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from gradmix_jax import models
from gradmix_jax.models import layouts, pretrained, safetensors_file

HERE = pathlib.Path(__file__).parent
sys.path.append(str(HERE / "references"))

from drawn_weights import images, state_of

NAMES = json.loads((HERE / "references" / "torch_names.json").read_text())
CHECKPOINTS = HERE.parents[2] / "shared" / "data" / "mls_tinyimagenet"


def spec_of(name, stem="cifar", classifier="linear", width=0):
    fields = dict(hidden=8, projection=6, dtype="float32")
    return models.Spec(name=name, stem=stem, width=width, classifier=classifier, **fields)


def template_of(spec, size, num_classes=7):
    """Variables of NaN, made without compiling an initializer, so that anything not loaded is noticed."""
    module = models.create(spec, num_classes=num_classes)
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    shapes = jax.eval_shape(partial(module.init, train=False), jax.random.key(0), image)
    return module, jax.tree.map(lambda leaf: np.full(leaf.shape, np.nan, leaf.dtype), dict(shapes))


@pytest.fixture(scope="module")
def outputs():
    with np.load(HERE / "references" / "torch_outputs.npz") as stored:
        return dict(stored)


# --- activations

CASES = {
    "resnet18_imagenet": spec_of("resnet18", "imagenet"),
    "resnet18_cifar": spec_of("resnet18"),
    "resnet34_cifar": spec_of("resnet34"),
    "resnet50_imagenet": spec_of("resnet50", "imagenet"),
    "classifier32": spec_of("classifier32", classifier="linear_without_bias"),
    "vit": spec_of("vit_small", width=128),
    "dinov2_smaller": spec_of("dinov2_small", "imagenet", "none", width=128),
    "dinov2_registers_larger": spec_of("dinov2_small_registers", "imagenet", "none", width=128),
}


@pytest.mark.parametrize("name", CASES)
def test_activations_agree_with_pytorch(name, outputs):
    size, shapes = NAMES["drawn"][name]["size"], NAMES["drawn"][name]["shapes"]
    module, template = template_of(CASES[name], size)
    variables, report = pretrained.merge(state_of(shapes), template, source="drawn")
    assert all(path.startswith("params/projection/") for path in report.kept)
    _, out = jax.jit(partial(module.apply, train=False))(variables, images(size))
    found = {"features": out["features"], "logits": out.get("logits")}
    for stage in ("stage1", "stage2", "stage3", "stage4"):
        if stage in out:
            found[f"{stage}/positions"], found[f"{stage}/channels"] = out[stage].mean(-1), out[stage].mean((1, 2))
    compared = 0
    for key, value in found.items():
        if value is not None:
            wanted = outputs[f"{name}/{key}"]
            np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-4 * max(1, np.abs(wanted).max()))
            compared += 1
    assert compared == sum(key.startswith(f"{name}/") for key in outputs)


def test_position_resizing_keeps_a_grid_of_the_same_size():
    grid = np.random.default_rng(0).normal(size=(3, 3, 2)).astype(np.float32)
    np.testing.assert_array_equal(layouts.resized_positions(grid, (3, 3)), grid)
    assert layouts.resized_positions(grid, (2, 5)).shape == (2, 5, 2)


# --- names and shapes, in both directions


@pytest.mark.parametrize("name", NAMES["full"])
def test_names_and_shapes_of_an_export_are_those_of_torchvision_and_timm(name):
    published = {key: tuple(shape) for key, shape in NAMES["full"][name].items()}
    classifier = "none" if name.startswith("dinov2") else "linear"
    _, template = template_of(spec_of(name, "imagenet", classifier), 224, num_classes=1000)
    exported = pretrained.to_state_dict(template)
    assert {key: array.shape for key, array in exported.items()} == published


@pytest.mark.parametrize("name", CASES)
def test_exported_weights_load_again(name):
    size, shapes = NAMES["drawn"][name]["size"], NAMES["drawn"][name]["shapes"]
    _, template = template_of(CASES[name], size)
    variables, _ = pretrained.merge(state_of(shapes), template, source="drawn")
    variables["params"]["projection"] = jax.tree.map(np.ones_like, template["params"]["projection"])
    exported = pretrained.to_state_dict(variables, projection=True)
    again, report = pretrained.merge(exported, template, source="exported")
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    assert report.kept == () and report.ignored == ()


def test_an_export_with_pytorch_s_names_keeps_our_projection():
    """As `gradmix export --layout=torch` writes it."""
    spec = spec_of("resnet18", width=4)
    _, template = template_of(spec, 8)
    variables = jax.tree.map(lambda leaf: np.arange(leaf.size, dtype=np.float32).reshape(leaf.shape), template)
    heads = {path: x for path, x in flatten_dict(variables, sep="/").items() if "/projection/" in path}
    state = pretrained.to_state_dict(variables) | heads
    again, report = pretrained.merge(state, template, source="export")
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    assert report.kept == () and report.ignored == ()
    _, report = pretrained.merge(state, template_of(dataclasses.replace(spec, projection=9), 8)[1], source="export")
    assert set(report.kept) == set(report.ignored) == set(heads)


def test_safetensors_of_our_variables(tmp_path):
    _, template = template_of(spec_of("classifier32", width=4), 8)
    variables = jax.tree.map(lambda leaf: np.arange(leaf.size, dtype=np.float32).reshape(leaf.shape), template)
    path = str(tmp_path / "ours.safetensors")
    safetensors_file.write(path, pretrained.to_state_dict(variables, projection=True))
    loaded, _ = pretrained.load_variables(path, template)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


# --- wrappers and heads


def resnet_state(width=4, num_classes=7):
    _, template = template_of(spec_of("resnet18", width=width), 8, num_classes)
    shapes = {name: array.shape for name, array in pretrained.to_state_dict(template).items()}
    return state_of(shapes), template


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "encoder.",
        "backbone.",
        "model.",
        "module.encoder_q.",
        "encoder.module.",
        "module.base_encoder.",
        "_orig_mod.module.",
    ],
)
def test_wrapper_prefixes_are_dropped(prefix):
    state, template = resnet_state()
    variables, report = pretrained.merge(prefixed(prefix, state), template, source="wrapped")
    np.testing.assert_array_equal(
        variables["params"]["encoder"]["stem_conv"]["kernel"], state["conv1.weight"].transpose(2, 3, 1, 0)
    )
    assert {path.split("/")[1] for path in report.kept} == (
        {"projection"} if "encoder_q" not in prefix else {"projection", "classifier"}
    )


def heads(first, second, features=32, hidden=8, size=6):
    return {
        f"{first}.weight": np.ones((hidden, features), np.float32),
        f"{first}.bias": np.ones(hidden, np.float32),
        f"{second}.weight": np.ones((size, hidden), np.float32),
        f"{second}.bias": np.ones(size, np.float32),
    }


def without_classifier(state):
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


def test_a_moco_checkpoint():
    state, template = resnet_state()
    body = without_classifier(state)
    moco = prefixed("module.encoder_q.", body | heads("fc.0", "fc.2")) | prefixed("module.encoder_k.", body)
    moco |= {"module.queue": np.zeros((6, 16), np.float32), "module.queue_ptr": np.zeros(1, np.int64)}
    variables, report = pretrained.merge(moco, template, source="moco")
    assert np.all(variables["params"]["projection"]["hidden"]["kernel"] == 1)
    assert report.kept == ("params/classifier/dense/bias", "params/classifier/dense/kernel")
    assert len(report.ignored) == len(body) + 2 and all("encoder_k" in n or "queue" in n for n in report.ignored)


def test_a_supcon_checkpoint_with_its_own_names_of_shortcuts():
    state, template = resnet_state()
    state = {name.replace("downsample", "shortcut"): tensor for name, tensor in without_classifier(state).items()}
    supcon = prefixed("encoder.module.", state) | heads("head.0", "head.2")
    variables, report = pretrained.merge(supcon, template, source="supcon")
    assert np.all(variables["params"]["projection"]["projection"]["bias"] == 1)
    assert {path.split("/")[1] for path in report.kept} == {"classifier"} and report.ignored == ()


def test_a_projection_of_another_size_is_ignored():
    state, template = resnet_state()
    supcon = without_classifier(state) | heads("head.0", "head.2", size=5)
    variables, report = pretrained.merge(supcon, template, source="supcon")
    assert np.all(np.isnan(variables["params"]["projection"]["hidden"]["kernel"]))
    assert len(report.kept) == 6 and len(report.ignored) == 4


def test_a_classifier_of_other_classes_keeps_its_initialization():
    state, _ = resnet_state(num_classes=9)
    _, template = resnet_state(num_classes=7)
    variables, report = pretrained.merge(state, template, source="other")
    assert variables["params"]["classifier"]["dense"]["kernel"].shape[1] == 7
    assert "params/classifier/dense/kernel" in report.kept and report.ignored == ("fc.weight", "fc.bias")
    assert "newly initialized: params/classifier/dense/bias, params/classifier/dense/kernel" in str(report)


def test_the_bias_of_a_classifier_must_be_on_both_sides():
    state, template = resnet_state()
    without = {name: tensor for name, tensor in state.items() if name != "fc.bias"}
    with pytest.raises(ValueError, match=r"missing: fc.bias \(model.classifier='linear_without_bias' has none\)\.$"):
        pretrained.merge(without, template, source="x")
    _, template = template_of(spec_of("resnet18", classifier="linear_without_bias", width=4), 8)
    with pytest.raises(ValueError, match=r"unexpected: fc.bias \(model.classifier='linear' has one\)\.$"):
        pretrained.merge(state, template, source="x")


# --- what does not fit


def test_one_error_lists_missing_unexpected_and_misshaped_tensors():
    state, template = resnet_state()
    state["layer9.0.conv1.weight"] = state.pop("layer2.0.conv1.weight")
    state["bn1.bias"] = np.zeros(5, np.float32)
    wanted = (
        "x does not fit the model: missing: layer2.0.conv1.weight; unexpected: layer9.0.conv1.weight; "
        r"wrong shapes: bn1.bias 5 instead of 4\.$"
    )
    with pytest.raises(ValueError, match=wanted):
        pretrained.merge(state, template, source="x")


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_token"])
def test_weights_of_the_other_stem_name_it(name):
    _, variables = template_of(spec_of(name, stem="imagenet", width=12), 32)
    state = pretrained.to_state_dict(variables)
    _, template = template_of(spec_of(name, width=12), 32)
    with pytest.raises(ValueError, match=r"\(model.stem='imagenet'\) instead of 12x3x"):
        pretrained.merge(state, template, source="x")


def test_layers_that_our_encoder_lacks_are_not_mistaken_for_heads():
    """For example squeeze-and-excitation, without which the same weights give different features."""
    state, template = resnet_state()
    state["layer1.0.se.fc.weight"] = np.zeros((4, 4), np.float32)
    with pytest.raises(ValueError, match=r"unexpected: layer1.0.se.fc.weight\.$"):
        pretrained.merge(state, template, source="x")


def test_the_error_has_a_bounded_length():
    state, _ = resnet_state(width=4)
    _, template = resnet_state(width=8)
    with pytest.raises(ValueError, match="and [0-9]+ more") as caught:
        pretrained.merge(state | {"z" * 10_000: np.zeros(1)}, template, source="x")
    assert len(str(caught.value)) < 2000


def test_another_depth_does_not_fit():
    state, _ = resnet_state()
    _, template = template_of(spec_of("resnet34", width=4), 8)
    with pytest.raises(ValueError, match=r"missing: layer1\.2\."):
        pretrained.merge(state, template, source="x")


@pytest.mark.parametrize(
    "name, message",
    [
        ("classifier32", "x is a ResNet with torchvision's names, but model.name is the classifier32"),
        ("vit_small", "x is a ResNet with torchvision's names, but model.name is a vision transformer"),
        ("small_cnn", "model.name is an encoder that has no counterpart"),
        ("vit_tiny", "x is a ResNet .* has no counterpart .*; docs/any_model.md"),
    ],
)
def test_another_architecture_does_not_fit(name, message):
    _, template = template_of(spec_of(name, width=64), 16)
    with pytest.raises(ValueError, match=message):
        pretrained.merge(resnet_state()[0], template, source="x")


def test_an_unknown_architecture():
    _, template = resnet_state()
    with pytest.raises(ValueError, match=r"x is of an unknown architecture \(what\), but model.name is a ResNet"):
        pretrained.merge({"what": np.zeros(3)}, template, source="x")


def test_two_models_in_one_file():
    state, template = resnet_state()
    with pytest.raises(ValueError, match=r"holds both (\S+) and module\.\1;"):
        pretrained.merge(state | prefixed("module.", state), template, source="x")


def test_a_small_cnn_cannot_be_exported():
    _, template = template_of(spec_of("small_cnn"), 8)
    with pytest.raises(ValueError, match="no counterpart"):
        pretrained.to_state_dict(template)


# --- the state dict inside a checkpoint


def test_where_a_checkpoint_keeps_its_state_dict():
    x, y = np.zeros(1), np.ones(1)
    find = partial(pretrained._state_dict, depth=4)
    assert find({"a": x, "b": y}).keys() == {"a", "b"}
    assert find({"epoch": 3, "model": {"a": x}, "best": y}).keys() == {"a"}
    assert find({"model": {"b": y}, "state_dict": {"a": x}}).keys() == {"a"}
    assert find({"state_dict": {"model": {"a": x}}}).keys() == {"a"}
    assert find({"epoch": 3, "model_ema": {"a": x}, "best": y}).keys() == {"a"}
    assert find({"epoch": 3}) is None and find([x]) is None
    itself = {}
    itself["model"] = itself
    assert find(itself) is None


def test_a_missing_file_and_a_file_without_a_state_dict(tmp_path):
    _, template = resnet_state()
    with pytest.raises(ValueError, match="nothing.pth does not exist"):
        pretrained.load_variables(str(tmp_path / "nothing.pth"), template)


@pytest.mark.parametrize("trial", range(5))
def test_the_published_classifier32(trial):
    path = CHECKPOINTS / f"tinyimagenet_{trial}.pth"
    if not path.exists():
        pytest.skip("needs ../shared/data/mls_tinyimagenet, the published checkpoints of arXiv 2110.06207")
    spec = spec_of("classifier32", classifier="linear_without_bias")
    _, template = template_of(spec, 64, num_classes=20)
    variables, report = pretrained.load_variables(str(path), template)
    assert {path.split("/")[1] for path in report.kept} == {"projection"}
    encoder = {"params": variables["params"]["encoder"], "batch_stats": variables["batch_stats"]["encoder"]}
    leaves = flatten_dict(encoder, sep="/")
    assert len(leaves) == 9 * 5 and all(np.isfinite(leaf).all() for leaf in leaves.values())
    assert variables["params"]["classifier"]["dense"]["kernel"].shape == (128, 20)
