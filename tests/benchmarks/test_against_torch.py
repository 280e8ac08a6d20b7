"""The PyTorch steps of `benchmarks/against_torch.py` do the same work as ours: same weights in, same numbers out."""

import sys
import types

import pytest

torch = pytest.importorskip("torch")

import against_torch
import jax
import jax.numpy as jnp
import numpy as np
import torch_gradmix

from gradmix_jax import assembly, augment, objectives
from gradmix_jax.method import attribution, masks, mix
from gradmix_jax.training import step as step_lib
from gradmix_jax.training.forward import apply_model
from gradmix_jax.training.program import Context

IMAGES = 8
ROWS = 2 * IMAGES
STAGES = ("stage3", "stage4")


@pytest.fixture(scope="module")
def specs():
    return against_torch.experiment_of(width=4, batch=IMAGES, dtype="float32", group_size=IMAGES)


@pytest.fixture(scope="module")
def keep():
    return np.random.default_rng(1).uniform(0.5, 0.9, ROWS).astype(np.float32)


@pytest.fixture(scope="module")
def batches(specs, keep):
    """What our step computes from the views of three batches: one compiled program."""
    program = assembly.make_program(specs, num_classes=6, num_images=64)
    state = assembly.initial_state(specs, program)
    weights = {"simclr": jnp.ones(())}
    params, batch_stats, keys = state.params, state.batch_stats, {"map": jax.random.key(4), "mix": jax.random.key(5)}

    @jax.jit
    def everything(views):
        context = Context(program, None, keys, params, batch_stats, jnp.zeros(IMAGES, jnp.int32), weights)
        half = step_lib.clean_half(context, views)
        gradient, new_stats, metrics = step_lib.gradients(context, views)
        mixed_z, _, _ = apply_model(program, params, batch_stats, half.mixed.images)
        made = dict(z=half.clean.outputs.z, mixed_z=mixed_z, **half.mixed._asdict())
        return made | dict(gradient=gradient, batch_stats=new_stats, loss=metrics["loss"])

    def batch(seed):
        # Coarse blocks of color, so that positions differ.
        coarse = np.random.default_rng(seed).random((ROWS, 8, 8, 3), dtype=np.float32)
        views = coarse.repeat(4, axis=1).repeat(4, axis=2)
        first = dict(params=jax.device_get(params), first_stats=jax.device_get(batch_stats))
        return types.SimpleNamespace(views=views, **first, **jax.device_get(everything(jnp.asarray(views))))

    with pytest.MonkeyPatch.context() as patch:
        # The same keep shares on both sides; shares of a whole batch (shape ()) are drawn as well, but unused.
        patch.setattr(mix, "draw_keep", lambda key, shape, keep_range: jnp.asarray(keep) if shape else jnp.zeros(()))
        return [batch(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def ours(batches):
    return batches[0]


@pytest.fixture(scope="module")
def views(ours):
    """float32 [ROWS, 32, 32, 3] in [0, 1]."""
    return ours.views


def nchw(images):
    return torch.tensor(images).permute(0, 3, 1, 2).contiguous()


def step_of(kind, specs, ours):
    model = torch_gradmix.network(specs, ours.params, ours.first_stats, device="cpu")
    return kind(model, np.zeros((IMAGES, 32, 32, 3), np.uint8), specs)


def maps_of(kind, specs, ours, views):
    """Maps as this kind of step computes them, [ROWS, 32, 32]."""
    step = step_of(kind, specs, ours)
    if kind is torch_gradmix.Eager:
        return step.maps(nchw(views))
    z, activations = step.model(nchw(views))
    return step.maps(torch_gradmix.simclr(z, specs.objective), activations, 32).numpy()


BOTH = pytest.mark.parametrize("kind", [torch_gradmix.Eager, torch_gradmix.Shared])


@BOTH
def test_the_projections_are_ours(specs, ours, views, kind):
    z, _ = step_of(kind, specs, ours).model(nchw(views))
    np.testing.assert_allclose(z.detach().numpy(), ours.z, atol=1e-4)


def test_the_model_adds_no_parameters(specs, ours):
    names = dict(torch_gradmix.Network(specs).named_parameters())
    assert names.keys() == torch_gradmix.from_jax(ours.params).keys()


@BOTH
def test_the_maps_are_ours(specs, ours, views, kind):
    np.testing.assert_allclose(maps_of(kind, specs, ours, views), ours.maps, atol=1e-3)


def test_upsampled_maps_are_those_of_layer_cam():
    random = np.random.default_rng(2)
    activations, gradients = random.random((5, 4, 4, 3), dtype=np.float32), random.normal(size=(5, 4, 4, 3))
    gradients = gradients.astype(np.float32)
    gradients[4] = 0.0  # a constant map
    wanted = attribution.layer_cam(jnp.asarray(activations), jnp.asarray(gradients), image_size=16)
    batched = torch_gradmix.layer_maps([nchw(activations)], [nchw(gradients)], 16)
    np.testing.assert_allclose(batched.numpy(), wanted, atol=1e-5)
    for i in range(5):
        single = [x[i].transpose(2, 0, 1) for x in (activations, gradients)]
        np.testing.assert_allclose(torch_gradmix.map_on_host(*([x] for x in single), 16), wanted[i], atol=1e-5)


def some_maps(ours):
    """Maps with plateaus, ties and near ties, with peaks at the border, and a constant one."""
    random = np.random.default_rng(3)
    maps = [*ours.maps, *random.random((ROWS, 32, 32), dtype=np.float32)]
    maps += [np.zeros((32, 32)), np.pad(np.ones((3, 4)), ((0, 29), (28, 0))), np.pad(np.ones((2, 2)), 15)]
    nearly_tied = np.zeros((32, 32))
    nearly_tied[10, 10], nearly_tied[20, 25] = 1.0, 1.0 - 5e-7
    maps = np.stack([*maps, nearly_tied]).astype(np.float32)
    return maps, random.uniform(0.5, 0.9, len(maps)).astype(np.float32)


def test_the_boxes_are_ours(ours):
    maps, keep = some_maps(ours)
    wanted = np.asarray(masks.box(jnp.asarray(maps), jnp.asarray(keep)))
    box = torch_gradmix.boxes(torch.tensor(maps), torch.tensor(keep))
    np.testing.assert_array_equal(torch_gradmix.box_mask(box, 32).numpy(), wanted)
    assert len({mask.sum() for mask in wanted}) > 10, "boxes of many sizes"
    for map_HxW, share, mask in zip(maps, keep, wanted):
        top, bottom, left, right = torch_gradmix.box_on_host(map_HxW, float(share))
        assert mask[top:bottom, left:right].all()
        assert mask.sum() == (bottom - top) * (right - left)


@BOTH
def test_the_mixed_images_are_ours(specs, ours, views, keep, kind):
    images, partner = nchw(views), torch.tensor(ours.partner).long()
    if kind is torch_gradmix.Eager:
        mixed, weight = step_of(kind, specs, ours).mix(images, ours.maps, partner, torch.tensor(keep))
    else:
        box = torch_gradmix.boxes(torch.tensor(ours.maps), torch.tensor(keep))
        mixed, weight = torch_gradmix.mix(images, box, partner)
    np.testing.assert_allclose(mixed.permute(0, 2, 3, 1).numpy(), ours.images, atol=1e-5)
    np.testing.assert_allclose(weight.numpy(), ours.weight, atol=1e-6)


def test_the_losses_are_ours(specs, ours):
    z, mixed_z, weight = (torch.tensor(x) for x in (ours.z, ours.mixed_z, ours.weight))
    batch = objectives.make_batch(jnp.asarray(ours.z), jnp.asarray(ours.z), jnp.zeros(IMAGES, jnp.int32), views=2)
    wanted = objectives.simclr(batch, specs.objective)
    np.testing.assert_allclose(torch_gradmix.simclr(z, specs.objective), wanted, rtol=1e-5)
    wanted = objectives.mixed_simclr(batch, jnp.asarray(ours.mixed_z), jnp.asarray(ours.weight), specs.objective)
    np.testing.assert_allclose(torch_gradmix.mixed_simclr(z, mixed_z, weight, specs.objective), wanted, rtol=1e-5)


@BOTH
def test_the_gradient_of_the_whole_step_is_ours(specs, batches, keep, kind):
    distances = {}
    for ours in batches:
        step = step_of(kind, specs, ours)
        drawn = nchw(ours.views), torch.tensor(ours.partner).long(), torch.tensor(keep)
        if kind is torch_gradmix.Eager:
            loss = step.backward(*drawn)
            gradients = [parameter.grad for parameter in step.model.parameters()]
        else:
            loss, gradients = step.gradients(*drawn)
        np.testing.assert_allclose(float(loss), ours.loss, rtol=1e-4)
        wanted = torch_gradmix.from_jax(ours.gradient)
        for (name, _), gradient in zip(step.model.named_parameters(), gradients):
            distance = torch.linalg.norm(gradient - wanted[name]) / torch.linalg.norm(wanted[name])
            distances.setdefault(name, []).append(float(distance))
    # Of a million ReLUs, one may be so close to its kink that rounding opens it on one side only, which moves the rest
    # by about 0.01, but not in every batch.
    assert {name: values for name, values in distances.items() if min(values) > 1e-3} == {}
    assert max(map(max, distances.values())) < 0.05


def test_running_statistics_come_from_the_clean_views_only(specs, ours, views, keep):
    step = step_of(torch_gradmix.Shared, specs, ours)
    step.gradients(nchw(views), torch.tensor(ours.partner).long(), torch.tensor(keep))
    buffers = dict(step.model.named_buffers())
    for name, wanted in torch_gradmix.from_jax({}, ours.batch_stats).items():
        np.testing.assert_allclose(buffers[name].numpy(), wanted.numpy(), atol=1e-5, err_msg=name)


def test_the_crops_are_ours(specs, views):
    spec, keys = specs.augment, jax.random.split(jax.random.key(1), ROWS)
    draw = lambda key: jax.random.uniform(key, (2 * augment.CROP_ATTEMPTS + 2,))
    box_of = lambda key: augment.crop_box(key, (32, 32), scale=spec.crop_scale, ratio=spec.crop_ratio)
    wanted = np.asarray(jax.vmap(box_of)(keys))
    boxes = torch_gradmix.crop_boxes(torch.tensor(np.asarray(jax.vmap(draw)(keys))), 32, spec)
    np.testing.assert_array_equal(boxes.numpy(), wanted)
    crops = jax.vmap(augment.resized_crop)(jnp.asarray(views), jnp.asarray(wanted))
    made = torch_gradmix.resized_crop(nchw(views), boxes).permute(0, 2, 3, 1)
    np.testing.assert_allclose(made.numpy(), crops, atol=1e-5)


def test_a_crop_that_never_fits_is_the_whole_image(specs):
    # With ten times the largest area and the most elongated ratio, no box fits.
    boxes = torch_gradmix.crop_boxes(torch.ones(2, 22), 32, specs.augment)
    np.testing.assert_array_equal(boxes.numpy(), [[0, 0, 32, 32]] * 2)


def test_views_are_crops_of_both_kinds_of_the_right_images(specs):
    images = (torch.arange(64, dtype=torch.uint8)[:, None, None, None] * 3).expand(64, 3, 32, 32)
    made = torch_gradmix.make_views(images, specs.augment)
    np.testing.assert_allclose(made.mean((1, 2, 3)) * 255, 3.0 * (np.arange(128) % 64), atol=1e-3)
    ramp = torch.linspace(0, 255, 32).to(torch.uint8).expand(64, 3, 32, 32)
    made = torch_gradmix.make_views(ramp, specs.augment)
    flipped = (made[:, 0, 0, 0] > made[:, 0, 0, -1]).float().mean()
    assert 0.3 < flipped < 0.7


def test_partners_are_other_images_of_the_other_view():
    partner = torch_gradmix.draw_partners(IMAGES, "cpu").numpy()
    assert sorted(partner) == list(range(ROWS))
    assert ((partner < IMAGES) == (np.arange(ROWS) >= IMAGES)).all()
    assert (partner % IMAGES != np.arange(ROWS) % IMAGES).all()
    assert (partner[:IMAGES] % IMAGES == partner[IMAGES:]).all()


@BOTH
def test_a_step_updates_every_parameter(specs, ours, kind):
    model = torch_gradmix.network(specs, ours.params, ours.first_stats, device="cpu")
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    step = kind(model, images, specs)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert np.isfinite(float(step()))
    assert [name for name, value in model.state_dict().items() if torch.equal(value, before[name])] == []


def test_the_captured_graph_redraws_and_equals_the_step(specs, ours, monkeypatch):
    model = torch_gradmix.network(specs, ours.params, ours.first_stats, device="cpu")
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    step = torch_gradmix.Shared(model, images, specs)
    # Captures the graph without spending minutes compiling it.
    monkeypatch.setattr(torch, "compile", lambda graph, **options: graph)
    torch.manual_seed(0)
    wanted_loss, wanted = step.loss_and_gradients()
    step.compile("default")
    before = model.encoder.stem_bn.running_mean.clone()
    torch.manual_seed(0)
    loss, gradients = step.loss_and_gradients()
    np.testing.assert_allclose(float(loss), float(wanted_loss), rtol=1e-5)
    for gradient, other in zip(gradients, wanted):
        assert torch.linalg.norm(gradient - other) < 1e-3 * torch.linalg.norm(other)
    assert not torch.equal(model.encoder.stem_bn.running_mean, before)
    another_loss, _ = step.loss_and_gradients()
    assert float(another_loss) != float(loss)


def test_the_script_prints_one_row_for_each_step(capsys, monkeypatch):
    # Compiling takes minutes. A failing compiler must not affect the other rows.
    def compile_graph(graph, *, mode, **_):
        if mode == "max-autotune":
            raise RuntimeError("no such kernel\nand much more")
        return graph

    monkeypatch.setattr(torch, "compile", compile_graph)
    flags = ["--width=2", "--batch=16", "--repeats=2", "--device=cpu"]
    assert against_torch.main([*flags, "--modes=max-autotune,default"]) == 1
    printed = capsys.readouterr().out
    rows = [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("| ")]
    assert rows == ["step", "eager", "shared", "ours", "step", "compiled, default", "ours"]
    assert "compiled, max-autotune: failed (RuntimeError: no such kernel)\n" in printed
    assert f"torch {torch.__version__}" in printed


def test_an_unknown_mode_is_rejected(capsys):
    with pytest.raises(SystemExit) as refused:
        against_torch.main(["--modes=default,fastest"])
    assert refused.value.code == 2
    assert "--modes must be from default, reduce-overhead" in capsys.readouterr().err


def test_without_torch_the_message_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert against_torch.main([]) == 2
    assert "pip install torch" in capsys.readouterr().err


def test_ratios_are_taken_within_each_turn():
    times = {"eager": [4.0, 8.0, 4.0], "ours": [1.0, 2.0, 1.0]}
    printed = against_torch.table(times, {"eager": 1.0, "ours": 1.0}, 64)
    assert "| eager | 4000.0 (4000.0 to 8000.0) | 16 | 0.250 (0.250 to 0.250) | 1.000 |" in printed
