"""A new mixing method, map or objective needs only a table entry to be trained, evaluated and reported.

The entries are added from outside the package.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import small_config, small_images, small_order, small_program, small_state

from gradmix_jax import config as config_lib
from gradmix_jax import objectives, report
from gradmix_jax import run as run_lib
from gradmix_jax.config import phase
from gradmix_jax.fields import Key
from gradmix_jax.method import attribution, mix
from gradmix_jax.training import step as step_lib


def swap(key, images_BxHxWxC, maps_BxHxW, *, views, share):
    """The left `share` of the columns, darkened where the map is large."""
    partner_B = mix.partners(key, len(images_BxHxWxC), views=views)
    columns = jnp.arange(images_BxHxWxC.shape[2]) < share * images_BxHxWxC.shape[2]
    own = images_BxHxWxC * (1 - maps_BxHxW[..., None])
    mixed = jnp.where(columns[None, None, :, None], images_BxHxWxC[partner_B], own)
    return mixed, jnp.full(len(mixed), 1 - jnp.mean(columns)), partner_B


def brightness(source, spec):
    """The views themselves, weighted by the gradient at the last stage."""
    gradient_Bx1x1 = jnp.mean(jnp.abs(source.gradients[spec.stages[-1]]), axis=(1, 2, 3))[:, None, None]
    return attribution.min_max(jnp.mean(source.images_BxHxWxC, axis=-1) * gradient_Bx1x1)


def center_init(key, model, embedding, spec):
    return {"center": jnp.zeros(embedding)}


def center_update(state, update):
    z_BxD = update.forward(update.model)
    mean_D = jnp.mean(z_BxD, axis=0)
    mean_D = mean_D if update.axis_name is None else jax.lax.pmean(mean_D, update.axis_name)
    rate = update.spec.options["center"]["rate"]
    return state["center"], {"center": (1 - rate) * state["center"] + rate * jax.lax.stop_gradient(mean_D)}


def away(z_BxD, given, weight_B=1.0):
    """A loss that pushes features away from their past mean."""
    return jnp.mean(weight_B * (z_BxD @ given.carried)) + 1e-3 * jnp.mean((z_BxD - given.carried[None]) ** 2)


CENTER = objectives.Objective(
    clean=lambda given: away(given.batch.anchors_NxD, given),
    mixed=lambda given, mixed: away(mixed.z, given, mixed.weight),
    state=objectives.State(center_init, center_update),
    options={"rate": Key(0.5, "how fast the center follows", above=0, most=1)},
)


@pytest.fixture
def plugins(monkeypatch):
    method = mix.Method(swap, needs_map=True, takes=(), options={"share": Key(0.5, "of the columns", above=0)})
    monkeypatch.setitem(mix.METHODS, "swap", method)
    monkeypatch.setitem(attribution.MAPS, "brightness", attribution.Map(brightness, taps="stages"))
    monkeypatch.setitem(objectives.OBJECTIVES, "center", CENTER)


OVERRIDES = {
    "mix.method": "swap",
    "mix.options": {"swap": {"share": 0.25}},
    "attribution.method": "brightness",
    "attribution.loss": "center",
    "objective.ssl": "center",
    "objective.options": {"center": {"rate": 0.25}},
}


def test_entries_train_are_evaluated_and_reported(plugins, tmp_path):
    phases = (phase("both", epochs=2, ssl=1.0, simclr=0.5), phase("by its name", epochs=1, center=1.0))
    config = small_config("input", phases, **OVERRIDES)
    config.dataset.channels = 1
    config.normalization.mean, config.normalization.std = (0.5,), (0.25,)
    config.train.batch_size = 128
    config.evaluate.scores = ("topk_cosine",)
    workdir = tmp_path / "run"
    results = run_lib.run(config, str(workdir))
    assert 0 <= results["auroc"] <= 1 and results["step"] > 2
    last = config_lib.read(str(workdir))
    assert last["mix"]["options"]["swap"] == {"share": 0.25}
    metrics = (workdir / "metrics.jsonl").read_text()
    assert '"center"' in metrics and '"mixed_center"' in metrics and '"mixed_simclr"' in metrics
    pages = report.write([str(workdir)], str(tmp_path / "report"))
    pages = [page for page in map(str, pages) if page.endswith(".html")]
    with open(pages[0]) as page:
        assert "swap" in page.read()


def test_entries_work_as_defined_inside_the_step(plugins):
    specs, program = small_program("input", **OVERRIDES)
    assert program.objective_names == ("supcon", "center") and program.carrying == ("center",)
    images, labels = small_images()
    step = jax.jit(step_lib.make_train_step(program, axis_name=None))
    state = small_state(specs, program)
    state, metrics = step(state, jnp.asarray(images.reshape(len(images), -1)), labels, small_order(program, 0))
    assert float(metrics["kept_share"]) == pytest.approx(0.75)
    # A quarter of the way from 0 to the mean of the unit vectors.
    assert 0 < float(np.linalg.norm(state.extra["center"])) <= 0.25


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"mix.options": {"swap": {"share": 0.0}}}, r"mix\.options\.swap\.share must be a positive number, got 0\.0"),
        ({"objective.options": {"center": {"rate": 2.0}}}, r"objective\.options\.center\.rate must be a number"),
        ({"objective.ssl": "simclr"}, r"attribution\.loss 'center' needs a phase that gives center a weight"),
    ],
)
def test_their_options_are_config_keys(plugins, overrides, message):
    with pytest.raises(ValueError, match=message):
        small_program("input", **OVERRIDES | overrides)
