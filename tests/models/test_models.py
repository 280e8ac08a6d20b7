"""Encoders and heads against NumPy, published parameter counts, and taps."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradmix_jax import models
from gradmix_jax.models.classifier32 import Classifier32
from gradmix_jax.models.heads import Projection, l2_normalize
from gradmix_jax.models.layers import conv_init, dense_init
from gradmix_jax.models.preact_resnet import PreActResNet
from gradmix_jax.models.resnet import BasicBlock, Bottleneck, ResNet
from gradmix_jax.models.vit import ViT, positions


def spec_of(name="small_cnn", **fields):
    fields = {"stem": "cifar", "width": 4, "hidden": 8, "projection": 6, "classifier": "none"} | fields
    return models.Spec(name=name, **({"dtype": "float32"} | fields))


def random_variables(module, images, seed=0, **kwargs):
    """Variables drawn with NumPy, so no initializer is compiled and no scale, bias or statistic is 0 or 1."""
    shapes = jax.eval_shape(partial(module.init, train=False, **kwargs), jax.random.key(0), images)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        deviation = 1.4 / np.sqrt(max(1, np.prod(leaf.shape[:-1]))) if len(leaf.shape) > 1 else 0.1
        return rng.normal(0, deviation, leaf.shape).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def random_images(batch, size, channels=3, seed=1):
    return np.random.default_rng(seed).normal(size=(batch, size, size, channels)).astype(np.float32)


def no_tap(name, x):
    return x


# --- the float64 reference


def conv_numpy(x, kernel, stride=1):
    size = kernel.shape[0]
    x = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("bhwcij,ijcf->bhwf", windows, kernel)


def norm_numpy(x, parameters, mean, var):
    return (x - mean) / np.sqrt(var + 1e-5) * parameters["scale"] + parameters["bias"]


def relu_numpy(x):
    return np.maximum(x, 0)


class Reference:
    """Looks up conv and norm of an encoder's variables by name, in evaluation mode."""

    def __init__(self, variables):
        as_float64 = partial(jax.tree.map, lambda leaf: np.asarray(leaf, np.float64))
        self.parameters = as_float64(variables["params"])
        self.statistics = as_float64(variables["batch_stats"])

    def inside(self, name):
        return Reference({"params": self.parameters[name], "batch_stats": self.statistics[name]})

    def conv(self, name, x, stride=1):
        return conv_numpy(x, self.parameters[name]["kernel"], stride)

    def norm(self, name, x):
        statistics = self.statistics[name]
        return norm_numpy(x, self.parameters[name], statistics["mean"], statistics["var"])

    def residual_block(self, x, stride, convolutions):
        """`convolutions` 2: basic; 3: bottleneck, stride on the second."""
        y = x
        strided = 1 if convolutions == 2 else 2
        for index in range(1, convolutions + 1):
            y = self.conv(f"conv{index}", y, stride if index == strided else 1)
            y = self.norm(f"bn{index}", y)
            y = relu_numpy(y) if index < convolutions else y
        if "shortcut_conv" in self.parameters:
            x = self.norm("shortcut_bn", self.conv("shortcut_conv", x, stride))
        return relu_numpy(x + y)

    def preact_block(self, x, stride, activated):
        y = x if activated else relu_numpy(self.norm("bn1", x))
        shortcut = self.conv("shortcut_conv", y, stride) if "shortcut_conv" in self.parameters else x
        y = relu_numpy(self.norm("bn2", self.conv("conv1", y, stride)))
        return shortcut + self.conv("conv2", y)


def normalized_numpy(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def projection_numpy(parameters, features):
    dense = lambda name, x: x @ np.asarray(parameters[name]["kernel"], np.float64) + parameters[name]["bias"]
    return normalized_numpy(dense("projection", relu_numpy(dense("hidden", features))))


@pytest.mark.parametrize("train", [False, True])
def test_small_cnn_and_head_match_numpy(train):
    module = models.create(spec_of(), num_classes=3)
    images = random_images(4, 8)
    variables = random_variables(module, images)
    z, out, updates = jax.jit(partial(forward, module, train=train))(variables, images)
    reference = Reference({k: variables[k]["encoder"] for k in ("params", "batch_stats")})
    x = images.astype(np.float64)
    for stage, (stride, size) in enumerate(((1, 8), (2, 4), (2, 2), (1, 2)), start=1):
        x = reference.conv(f"stage{stage}_conv", x, stride)
        running = reference.statistics[f"stage{stage}_bn"]
        mean, var = running["mean"], running["var"]
        if train:
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            running = {"mean": 0.9 * running["mean"] + 0.1 * mean, "var": 0.9 * running["var"] + 0.1 * var}
        updated = updates["batch_stats"]["encoder"][f"stage{stage}_bn"]
        for key in ("mean", "var"):
            np.testing.assert_allclose(updated[key], running[key], rtol=1e-5, atol=1e-6)
        x = relu_numpy(norm_numpy(x, reference.parameters[f"stage{stage}_bn"], mean, var))
        assert x.shape == (4, size, size, 4 * 2 ** (stage - 1))
        np.testing.assert_allclose(out[f"stage{stage}"], x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out["features"], x.mean((1, 2)), rtol=1e-4, atol=1e-5)
    expected = projection_numpy(variables["params"]["projection"], x.mean((1, 2)))
    np.testing.assert_allclose(z, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block, stem", [(BasicBlock, "cifar"), (Bottleneck, "imagenet")])
def test_resnet_matches_numpy(block, stem):
    """Even sizes everywhere: 'SAME' padding of the strided layers would fail here."""
    encoder = ResNet(width=2, stem=stem, dtype=jnp.float32, axis_name=None, block=block, blocks=(1, 2, 1, 1))
    images = random_images(2, 16 if stem == "cifar" else 64)
    variables = random_variables(encoder, images, tap=no_tap)
    features = jax.jit(partial(encoder.apply, train=False, tap=no_tap))(variables, images)
    reference = Reference(variables)
    x = reference.conv("stem_conv", images.astype(np.float64), 1 if stem == "cifar" else 2)
    x = relu_numpy(reference.norm("stem_bn", x))
    if stem == "imagenet":
        x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::2, ::2].max((-2, -1))
    for stage, number in enumerate((1, 2, 1, 1), start=1):
        for index in range(1, number + 1):
            stride = 2 if stage > 1 and index == 1 else 1
            inside = reference.inside(f"stage{stage}_block{index}")
            x = inside.residual_block(x, stride, 2 if block is BasicBlock else 3)
    assert x.shape == (2, 2, 2, 16 if block is BasicBlock else 64)
    np.testing.assert_allclose(features, x.mean((1, 2)), rtol=1e-4, atol=1e-5)


def test_preact_resnet_matches_numpy():
    encoder = PreActResNet(width=4, stem="cifar", dtype=jnp.float32, axis_name=None, blocks=(2, 1), stem_channels=3)
    images = random_images(2, 8)
    variables = random_variables(encoder, images, tap=no_tap)
    features = jax.jit(partial(encoder.apply, train=False, tap=no_tap))(variables, images)
    reference = Reference({"batch_stats": {}} | variables)
    x = reference.conv("stem_conv", images.astype(np.float64))
    x = reference.inside("stage1_block1").preact_block(x, 1, activated=False)
    x = reference.inside("stage1_block2").preact_block(x, 1, activated=False)
    x = relu_numpy(reference.norm("stage1_bn", x))
    x = reference.inside("stage2_block1").preact_block(x, 2, activated=True)
    x = relu_numpy(reference.norm("stage2_bn", x))
    np.testing.assert_allclose(features, x.mean((1, 2)), rtol=1e-4, atol=1e-5)


def test_classifier32_matches_numpy():
    encoder = Classifier32(width=2, stem="cifar", dtype=jnp.float32, axis_name=None)
    images = random_images(2, 16)
    variables = random_variables(encoder, images, tap=no_tap)
    features = jax.jit(partial(encoder.apply, train=False, tap=no_tap))(variables, images)
    reference, x = Reference(variables), images.astype(np.float64)
    for layer in range(9):
        name = f"stage{layer // 3 + 1}_layer{layer % 3 + 1}"
        x = reference.norm(f"{name}_bn", reference.conv(f"{name}_conv", x, 2 if layer % 3 == 2 else 1))
        x = np.where(x > 0, x, 0.2 * x)
    assert x.shape == (2, 2, 2, 4)
    np.testing.assert_allclose(features, x.mean((1, 2)), rtol=1e-4, atol=1e-5)


def test_transformer_matches_numpy():
    encoder = ViT(width=128, stem="cifar", dtype=jnp.float32, axis_name=None, blocks_per_stage=1)
    images = random_images(2, 12)[:, :8]  # 2 x 3 patches
    variables = random_variables(encoder, images, tap=no_tap)
    features = jax.jit(partial(encoder.apply, train=False, tap=no_tap))(variables, images)
    parameters = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])

    def layer_norm(p, x):
        return norm_numpy(x, p, x.mean(-1, keepdims=True), x.var(-1, keepdims=True) - 1e-5 + 1e-6)

    def dense(p, x):
        return x @ p["kernel"] + p["bias"]

    def attention(p, x):
        query, key, value = (
            np.einsum("bnf,fhd->bhnd", x, p[name]["kernel"]) + p[name]["bias"][None, :, None]
            for name in ("query", "key", "value")
        )
        assert query.shape == (2, 2, 6, 64)
        weights = np.exp(query @ key.swapaxes(-1, -2) / 8)
        mixed = weights / weights.sum(-1, keepdims=True) @ value
        return np.einsum("bhnd,hdf->bnf", mixed, p["out"]["kernel"]) + p["out"]["bias"]

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    patches = images.astype(np.float64).reshape(2, 2, 4, 3, 4, 3)
    x = np.einsum("bhiwjc,ijcf->bhwf", patches, parameters["stem_conv"]["kernel"])
    x = (x + parameters["stem_conv"]["bias"] + np.asarray(positions(2, 3, 128))).reshape(2, 6, 128)
    for stage in range(1, 5):
        p = parameters[f"stage{stage}_block1"]
        x = x + attention(p["attention"], layer_norm(p["norm1"], x))
        x = x + dense(p["dense2"], gelu(dense(p["dense1"], layer_norm(p["norm2"], x))))
    np.testing.assert_allclose(features, layer_norm(parameters["norm"], x).mean(1), rtol=1e-3, atol=1e-4)


# --- sizes


@pytest.mark.parametrize(
    "name, stem, num_classes, published",
    [
        ("resnet18", "imagenet", 1000, 11_689_512),  # torchvision
        ("resnet34", "imagenet", 1000, 21_797_672),
        ("resnet50", "imagenet", 1000, 25_557_032),
        ("resnet18", "cifar", 10, 11_173_962),  # kuangliu/pytorch-cifar
        # Unlike kuangliu's, the paper's has a batch norm before the pooling (section 4, "activation").
        ("preact_resnet18", "cifar", 10, 11_171_146 + 2 * 512),
        ("wide_resnet28", "cifar", 10, 36_479_194),  # WRN-28-10
        ("wide_resnet40", "cifar", 10, 2_243_546),  # WRN-40-2
        ("classifier32", "cifar", 10, 999_104 + 128 * 10 + 10),  # 9 convolutions and 9 batch norms, by hand
        # DeiT-Ti without its class token and learned positions (1 + 197 vectors of 192).
        ("vit_tiny", "imagenet", 1000, 5_717_416 - 198 * 192),
    ],
)
def test_parameter_counts_are_the_published_ones(name, stem, num_classes, published):
    spec = spec_of(name, stem=stem, width=0, classifier="linear")
    module = models.create(spec, num_classes=num_classes)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params = dict(jax.eval_shape(partial(module.init, train=False), jax.random.key(0), image)["params"])
    params.pop("projection")
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == published


@pytest.mark.parametrize(
    "name, stem, image_size, expected",
    [
        ("small_cnn", "cifar", 8, [(8, 8, 32), (4, 4, 64), (2, 2, 128), (2, 2, 256)]),
        ("resnet18", "cifar", 32, [(32, 32, 64), (16, 16, 128), (8, 8, 256), (4, 4, 512)]),
        ("resnet18", "imagenet", 224, [(56, 56, 64), (28, 28, 128), (14, 14, 256), (7, 7, 512)]),
        ("wide_resnet40", "cifar", 32, [(32, 32, 32), (16, 16, 64), (8, 8, 128)]),
        ("classifier32", "cifar", 28, [(14, 14, 128), (7, 7, 128), (4, 4, 128)]),
        ("vit_tiny", "cifar", 32, [(8, 8, 192)] * 4),
    ],
)
def test_stage_shapes(name, stem, image_size, expected):
    spec = spec_of(name, stem=stem, width=0)
    names = models.available_stages(spec)
    assert names == tuple(f"stage{index}" for index in range(1, len(expected) + 1))
    assert models.stage_shapes(spec, image_size) == dict(zip(names, expected, strict=True))


# --- taps


def loss_of(z):
    """A smooth function without any symmetry."""
    target = jnp.cos(jnp.arange(z.size, dtype=jnp.float32)).reshape(z.shape)
    return jnp.sum(z * target)


def forward(module, variables, images, perturbations=None, train=True):
    taps = {} if perturbations is None else {"perturbations": perturbations}
    (z, out), updates = module.apply({**variables, **taps}, images, train=train, mutable=["batch_stats"])
    return z, out, updates


def zeros_of(spec, images, stages):
    shapes = models.stage_shapes(spec, images.shape[1])
    return {name: jnp.zeros((len(images), *shapes[name]), jnp.float32) for name in stages}


@pytest.mark.parametrize(
    "name, width, stages",
    [
        ("resnet18", 2, ("stage3", "stage4")),
        ("classifier32", 2, ("stage3",)),
        ("preact_resnet18", 2, ("stage3", "stage4")),
        ("vit_tiny", 4, ("stage3", "stage4")),
        ("vit_small", 4, ("stage3", "stage4")),
    ],
)
def test_every_encoder_gives_the_gradients_at_its_taps(name, width, stages):
    spec = spec_of(name, width=width)
    module = models.create(spec, num_classes=3)
    images = random_images(3, 8 if name != "classifier32" else 16)
    variables = random_variables(module, images)
    zeros = zeros_of(spec, images, stages)

    @jax.jit
    def tapped(variables, zeros):
        run = lambda taps: forward(module, variables, images, taps, train=False)[:2]
        head = lambda features: loss_of(Projection(8, 6).apply({"params": variables["params"]["projection"]}, features))
        z, pullback, out = jax.vjp(run, zeros, has_aux=True)
        (gradients,) = pullback(jax.grad(loss_of)(z))
        return out, gradients, jax.grad(head)(out["features"])

    out, gradients, features_gradient = tapped(variables, zeros)
    assert sorted(out) == sorted(["features", *models.available_stages(spec)])
    assert sorted(gradients) == sorted(stages)
    for stage in stages:
        assert gradients[stage].shape == out[stage].shape
        assert np.all(np.isfinite(gradients[stage])) and np.any(gradients[stage] != 0)
    if "vit" not in name:  # other features average over the positions of the last stage
        last = stages[-1]
        h, w = gradients[last].shape[1:3]
        expected = np.broadcast_to(features_gradient[:, None, None] / (h * w), gradients[last].shape)
        np.testing.assert_allclose(gradients[last], expected, rtol=1e-5, atol=1e-8)


def test_zero_taps_leave_every_output_bit_identical():
    spec = spec_of(classifier="linear")
    module = models.create(spec, num_classes=3)
    images = random_images(3, 8)
    variables = random_variables(module, images)
    apply = jax.jit(partial(forward, module))
    zeros = zeros_of(spec, images, ["stage1", "stage3", "stage4"])
    jax.tree.map(np.testing.assert_array_equal, apply(variables, images, zeros), apply(variables, images))


@pytest.mark.parametrize("train", [False, True])
def test_tap_gradient_is_that_of_the_rest_of_the_network(train):
    """Against jax.grad of a function that takes the activations of stage 3 as its input."""
    spec = spec_of()
    module = models.create(spec, num_classes=3)
    images = random_images(3, 8)
    variables = random_variables(module, images)
    params, statistics = variables["params"]["encoder"], variables["batch_stats"]["encoder"]["stage4_bn"]

    def rest(x):
        padding = ((1, 1), (1, 1))
        x = jax.lax.conv_general_dilated(
            x, params["stage4_conv"]["kernel"], (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        mean, var = statistics["mean"], statistics["var"]
        if train:
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        scale, bias = params["stage4_bn"]["scale"], params["stage4_bn"]["bias"]
        with jax.numpy_rank_promotion("allow"):
            features = nn.relu((x - mean) / jnp.sqrt(var + 1e-5) * scale + bias).mean((1, 2))
        return loss_of(Projection(8, 6).apply({"params": variables["params"]["projection"]}, features))

    def loss(taps):
        z, out, _ = forward(module, variables, images, taps, train=train)
        return loss_of(z), out["stage3"]

    gradients, stage3 = jax.jit(jax.grad(loss, has_aux=True))(zeros_of(spec, images, ["stage3"]))
    expected = jax.jit(jax.grad(rest))(stage3)
    assert list(gradients) == ["stage3"] and np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(gradients["stage3"], expected, rtol=1e-4, atol=1e-6)


def test_a_perturbation_is_added_to_its_stage_and_reaches_only_later_ones():
    spec = spec_of()
    module = models.create(spec, num_classes=3)
    images = random_images(2, 8)
    variables = random_variables(module, images)
    apply = jax.jit(partial(forward, module, train=False))
    shift = np.random.default_rng(3).normal(size=zeros_of(spec, images, ["stage2"])["stage2"].shape)
    shift = shift.astype(np.float32)
    z, out, _ = apply(variables, images)
    z_shifted, shifted, _ = apply(variables, images, {"stage2": shift})
    np.testing.assert_array_equal(shifted["stage1"], out["stage1"])
    np.testing.assert_allclose(shifted["stage2"], out["stage2"] + shift, rtol=1e-6, atol=1e-6)
    assert np.abs(shifted["stage3"] - out["stage3"]).max() > 1e-2
    assert np.abs(z_shifted - z).max() > 1e-3


def test_a_tap_costs_one_addition_and_no_tap_costs_nothing():
    spec = spec_of()
    module = models.create(spec, num_classes=3)
    images = random_images(2, 8)
    variables = random_variables(module, images)

    def additions(perturbations):
        jaxpr = str(jax.make_jaxpr(partial(forward, module, variables, images))(perturbations))
        return jaxpr.count(" add ") + jaxpr.count(" add_any ")

    assert additions(zeros_of(spec, images, ["stage3"])) == additions(None) + 1
    assert additions(zeros_of(spec, images, ["stage1", "stage4"])) == additions(None) + 2


def test_wrong_perturbations_are_named():
    spec = spec_of()
    module = models.create(spec, num_classes=3)
    images = random_images(2, 8)
    variables = random_variables(module, images)
    with pytest.raises(ValueError, match=r"unknown stage 'layer4'.*stage1, stage2, stage3, stage4"):
        forward(module, variables, images, {"layer4": jnp.zeros((2, 2, 2, 32))})
    with pytest.raises(ValueError, match=r"perturbation of stage3 .*\(1, 2, 2, 16\).*\(2, 2, 2, 16\)"):
        jax.eval_shape(partial(forward, module, variables, images), {"stage3": jnp.zeros((1, 2, 2, 16))})


# --- initialization, batch norm, precision


def test_init_needs_no_axis_and_makes_no_perturbations(key):
    module = models.create(spec_of(classifier="linear"), num_classes=3, axis_name="batch")
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    for train in (False, True):
        variables = jax.eval_shape(partial(module.init, train=train), key, image)
        assert sorted(variables) == ["batch_stats", "params"]
        assert sorted(variables["params"]) == ["classifier", "encoder", "projection"]


def test_initializers_are_those_of_torchvision(key):
    kernel = np.asarray(conv_init(key, (3, 3, 16, 64)))
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (3 * 3 * 64)), rtol=0.03)
    assert np.abs(kernel).max() > 3 * kernel.std()  # normal, not truncated at 2 standard deviations
    dense = np.asarray(dense_init(key, (64, 200)))
    assert 0.99 / 8 < np.abs(dense).max() <= 1 / 8
    np.testing.assert_allclose(dense.std(), 1 / 8 / np.sqrt(3), rtol=0.03)


def test_batch_norm_over_8_devices_equals_one_device_with_the_whole_batch():
    spec = spec_of(classifier="linear")
    images = random_images(16, 8)
    single, mapped = (models.create(spec, num_classes=3, axis_name=axis) for axis in (None, "batch"))
    variables = random_variables(single, images)

    def step(module, variables, images, targets):
        def loss(params):
            z, out, updates = forward(module, {**variables, "params": params}, images)
            return jnp.mean(jnp.sum(z * targets, axis=-1)), (z, out["logits"], updates)

        gradients, aux = jax.grad(loss, has_aux=True)(variables["params"])
        return *aux, gradients

    targets = np.random.default_rng(4).normal(size=(16, 6)).astype(np.float32)

    def mapped_step(variables, images, targets):
        z, logits, updates, gradients = step(mapped, variables, images, targets)
        return z, logits, updates, jax.lax.pmean(gradients, "batch")

    shard = lambda x: x.reshape(8, 2, *x.shape[1:])
    pmapped = jax.pmap(mapped_step, axis_name="batch", in_axes=(None, 0, 0))
    parallel = pmapped(variables, shard(images), shard(targets))
    whole = jax.jit(partial(step, single))(variables, images, targets)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    close(parallel[0].reshape(16, -1), whole[0])
    close(parallel[1].reshape(16, -1), whole[1])
    for key, many, one in zip(("updates", "gradients"), parallel[2:], whole[2:], strict=True):
        jax.tree.map(partial(close, err_msg=key), many, jax.tree.map(lambda x: np.stack([x] * 8), one))


def test_evaluation_uses_running_statistics_alone():
    module = models.create(spec_of(), num_classes=3, axis_name="batch")  # no such axis here
    images = random_images(4, 8)
    variables = random_variables(module, images)
    apply = jax.jit(partial(module.apply, train=False))
    z, _ = apply(variables, images)
    others = np.concatenate([images[:1], 5 + random_images(3, 8, seed=9)])
    np.testing.assert_allclose(apply(variables, others)[0][0], z[0], rtol=1e-5, atol=1e-6)
    doubled = {**variables, "batch_stats": jax.tree.map(lambda x: 2 * x, variables["batch_stats"])}
    assert np.abs(apply(doubled, images)[0] - z).max() > 1e-2


def test_bfloat16_keeps_parameters_statistics_and_outputs_in_float32():
    images = random_images(4, 8)
    modules = {
        dtype: models.create(spec_of(dtype=dtype, classifier="linear"), num_classes=3)
        for dtype in ("float32", "bfloat16")
    }
    variables = random_variables(modules["bfloat16"], images)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(variables))

    @jax.jit
    def run(variables, images, zeros):
        low, exact = modules["bfloat16"], modules["float32"]
        tapped = forward(low, variables, images, zeros)
        return forward(low, variables, images), forward(exact, variables, images), tapped

    zeros = zeros_of(spec_of(), images, ["stage2"])
    (z, out, updates), (z_exact, out_exact, _), (z_tapped, out_tapped, _) = run(variables, images, zeros)
    assert z.dtype == out["features"].dtype == out["logits"].dtype == jnp.float32
    assert {out[f"stage{s}"].dtype for s in (1, 2, 3, 4)} == {jnp.dtype(jnp.bfloat16)}
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(updates))
    np.testing.assert_allclose(np.linalg.norm(z, axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(z, z_exact, atol=0.05)
    assert np.any(np.asarray(out["features"]) != np.asarray(out_exact["features"]))
    # A float32 tap must not promote what comes after it.
    assert out_tapped["stage2"].dtype == out_tapped["stage4"].dtype == jnp.bfloat16
    np.testing.assert_allclose(z_tapped, z, atol=1e-6)


# --- heads


def test_l2_normalize_and_its_gradient_at_zero():
    x = np.random.default_rng(5).normal(size=(4, 6)).astype(np.float32) * np.float32([[1e-3], [1], [1e3], [1e6]])
    np.testing.assert_allclose(l2_normalize(x), normalized_numpy(x.astype(np.float64)), rtol=1e-5)
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(l2_normalize(x))))(jnp.zeros((2, 6)))
    assert np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(l2_normalize(jnp.zeros((2, 6))), 0)


def test_dead_features_give_finite_gradients():
    params = jax.eval_shape(Projection(4, 3).init, jax.random.key(0), jnp.zeros((2, 5)))
    params = jax.tree.map(jnp.zeros_like, params)
    loss = lambda params, features: loss_of(Projection(4, 3).apply(params, features))
    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, jnp.zeros((2, 5)))
    assert value == 0 and all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("classifier", ["none", "linear", "cosine"])
def test_logits_come_from_the_features(classifier):
    module = models.create(spec_of(classifier=classifier), num_classes=3)
    images = random_images(2, 8)
    variables = random_variables(module, images)
    _, out = jax.jit(partial(module.apply, train=False))(variables, images)
    if classifier == "none":
        assert "logits" not in out and "classifier" not in variables["params"]
        return
    head, features = variables["params"]["classifier"], np.asarray(out["features"], np.float64)
    if classifier == "linear":
        expected = features @ head["dense"]["kernel"] + head["dense"]["bias"]
    else:
        expected = head["scale"] * normalized_numpy(features) @ normalized_numpy(head["weights"]).T
    assert out["logits"].shape == (2, 3) and out["logits"].dtype == jnp.float32
    np.testing.assert_allclose(out["logits"], expected, rtol=1e-5, atol=1e-5)


# --- transformer specifics and errors


def test_positions_tell_tokens_apart():
    grid = np.asarray(positions(3, 5, 8))
    assert grid.shape == (1, 3, 5, 8) and np.abs(grid).max() <= 1
    np.testing.assert_allclose(grid[0, 2, 4, [0, 2, 4, 6]], [np.sin(2), np.cos(2), np.sin(4), np.cos(4)], rtol=1e-6)
    np.testing.assert_allclose(grid[0, 2, 4, [1, 3]], [np.sin(2e-4), np.cos(2e-4)], rtol=1e-6)
    assert len(np.unique(grid.reshape(15, 8).round(4), axis=0)) == 15


@pytest.mark.parametrize(
    "width, image_size, message",
    [(8, 10, "10x10 pixels.*multiples of its patch size 4"), (6, 8, "model.width is 6.*multiple of 4")],
)
def test_the_transformer_rejects_sizes_that_do_not_fit(width, image_size, message):
    with pytest.raises(ValueError, match=message):
        models.stage_shapes(spec_of("vit_tiny", width=width), image_size)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"name": "resnet19"}, "model.name must be one of small_cnn, .*, got 'resnet19'; did you mean 'resnet18'"),
        ({"stem": "imagenet"}, "model.stem of small_cnn must be one of cifar, got 'imagenet'"),
        ({"classifier": "mlp"}, "model.classifier must be one of none, linear, cosine, .*, got 'mlp'"),
        ({"dtype": "float16"}, "model.dtype must be one of float32, bfloat16, got 'float16'"),
        ({"width": -1}, "model.width must be an integer at least 0, got -1"),
        ({"width": 4.5}, "model.width must be an integer at least 0, got 4.5"),
        ({"hidden": 0}, "model.hidden must be a positive integer, got 0"),
        ({"projection": 0}, "model.projection must be a positive integer, got 0"),
    ],
)
def test_spec_errors_name_key_value_and_choices(fields, message):
    with pytest.raises(ValueError, match=message):
        spec_of(**fields)
