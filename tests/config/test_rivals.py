"""Recipes of published methods: keys, settings, a traced step of each, negative classes, and the docs."""

import pathlib
import re
import runpy

import jax
import pytest
from programs import NUM_IMAGES, small_config, small_images, small_order
from stored_data import make_spec, write_folder

from gradmix_jax import assembly, objectives
from gradmix_jax import config as config_lib
from gradmix_jax import data as data_lib
from gradmix_jax import run as run_lib
from gradmix_jax.config import phase, rivals
from gradmix_jax.config.rivals import RIVALS, published
from gradmix_jax.training import step as step_lib

ROOT = pathlib.Path(__file__).parents[2]
AT_SCALE = ("cifar_osr", "cifar_plus10", "cifar_plus50", "svhn_osr", "mnist_osr", "tiny_imagenet_osr")
ANIMALS = ("ant", "bee", "cat", "dog", "eel")


def config_of(name, recipe):
    return runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"](recipe)


@pytest.mark.parametrize("name", ["digits_osr", *AT_SCALE])
def test_every_method_is_a_recipe_of_every_split(name):
    for recipe, rival in RIVALS.items():
        config = config_of(name, recipe)
        specs = config_lib.from_config(config, num_devices=8)
        assert all(dict(each.weights) == rival.weights for each in specs.phases) and config.name == recipe
        epochs = [each.epochs for each in specs.phases]
        assert (
            epochs == [60]
            if name == "digits_osr"
            else epochs == list(published(recipe, config.dataset.benchmark)["epochs"])
        )


def test_published_settings():
    """Numbers from the papers' code, stated independently."""
    tuned = {
        "mnist_osr": (0.1, 8, 0.0),
        "svhn_osr": (0.1, 18, 0.0),
        "cifar_osr": (0.1, 6, 0.0),
        "cifar_plus10": (0.1, 6, 0.0),
        "cifar_plus50": (0.1, 6, 0.0),
        "tiny_imagenet_osr": (0.01, 9, 0.9),
    }
    for name, (rate, magnitude, smoothing) in tuned.items():
        c = config_of(name, "mls")
        assert (c.optimizer.name, c.optimizer.learning_rate, c.train.batch_size) == ("sgd", rate, 128)
        assert (c.augment.policy, c.augment.num_ops, c.augment.magnitude) == ("randaugment", 1, magnitude)
        # The share of its label that the true class keeps, with 20 classes there.
        assert 1 - c.objective.label_smoothing * 19 / 20 == pytest.approx(1 - smoothing)
        assert [each.epochs for each in c.phases] == [200, 200, 200] and c.optimizer.warmup_epochs == 10
    assert config_of("cifar_osr", "arpl").augment.magnitude == 15
    for name in ("arpl", "gcpl"):
        c = config_of("tiny_imagenet_osr", name).optimizer
        assert (c.name, c.learning_rate, c.weight_decay) == ("adam", 1e-3, 0.0)
    assert config_of("tiny_imagenet_osr", "gcpl").objective.label_smoothing == 0
    c = config_of("cifar_osr", "gcpl")
    assert (c.augment.policy, c.augment.jitter_prob, c.augment.gray_prob) == ("standard", 0.0, 0.0)
    # Its loss is multiplied by the temperature of the epoch, divided by 0.07.
    c = config_of("cifar_osr", "negcossch").objective
    assert (c.temperature, c.base_temperature) == (0.1, 0.07)
    c = config_of("tiny_imagenet_osr", "sphor")
    # Half the rate and twice the decay, for the sum of two losses in place of their mean.
    assert (2 * c.optimizer.learning_rate, c.optimizer.weight_decay / 2, c.model.projection) == (0.5, 1e-4, 32)
    assert c.objective.options.sphor.orthogonality == 2 * 0.05  # once for each of the two
    assert [each.epochs for each in c.phases] == [5 + 10, 20, 40, 80, 160, 285] and c.optimizer.warmup_epochs == 5
    for name, magnitudes, smoothings in (("mls", (30, 15), (0.3, 0.2)), ("arpl", (30, 18), (0.2, 0.1))):
        for dataset, classes, magnitude, smoothing in zip(("cub", "aircraft"), (100, 50), magnitudes, smoothings):
            c = config_of("ssb", f"{dataset},{name}")
            assert (c.dataset.image_size, c.train.batch_size, c.optimizer.learning_rate) == (448, 32, 0.001)
            assert (c.model.name, c.model.stem) == ("resnet50", "imagenet")
            assert (c.augment.num_ops, c.augment.magnitude) == (2, magnitude)
            assert c.objective.label_smoothing * (classes - 1) / classes == pytest.approx(smoothing)
            config_lib.from_config(c, num_devices=8)
    c = config_of("tiny_imagenet_osr", "conosr")
    assert (c.objective.temperature, c.objective.options.soft_supcon.smoothing) == (0.1, 0.2)
    assert sum(each.epochs for each in c.phases) == 600 and c.mix.options.mixup.alpha == 1.0
    assert config_of("cifar_osr", "logitnorm").objective.options.logit_norm.temperature == 0.04
    c = config_of("cifar_osr", "outlier_exposure")
    assert c.phases[0].outlier_exposure == 0.5 and not c.optimizer.per_epoch  # its cosine moves at every step
    # The rotation is that of the authors of GradMix.
    assert config_of("mnist_osr", "layer").augment.rotation_degrees == 5.0
    assert {config_of("mnist_osr", recipe).augment.rotation_degrees for recipe in RIVALS} == {0.0}
    schedule = config_of("cifar_osr", "negcossch_ce").objective
    assert schedule.options.cross_entropy.temperature == 0.5
    assert schedule.options.cross_entropy.temperature * schedule.schedules.negative_cosine.ratio == 2.0


@pytest.mark.parametrize("name", ["ssb", "imagenet_osr", "openood", "cifar100_superclasses"])
def test_every_method_may_follow_a_variant(name):
    first = {"ssb": "cars", "imagenet_osr": "p2", "openood": "cifar100", "cifar100_superclasses": "macro"}[name]
    for recipe, rival in RIVALS.items():
        config = config_of(name, f"{first},{recipe}")
        if name == "openood" and recipe == "outlier_exposure":
            with pytest.raises(ValueError, match="leaves no class of .* for dataset.num_negative, got 2"):
                config_lib.from_config(config, num_devices=1)
            continue
        specs = config_lib.from_config(config, num_devices=1)
        assert all(dict(each.weights) == rival.weights for each in specs.phases)
        # Logits of a classifier that no loss trains would be those of random weights.
        contrastive = recipe in ("conosr", "negcossch", "sphor")
        assert specs.model.has_logits != contrastive and specs.train.num_views == (2 if contrastive else 1), recipe
    assert config_of("imagenet_osr", "p2,outlier_exposure").dataset.negative == ("published",)


def small_rival(recipe, mixing):
    """A small config of a method; `mixing` adds GradMix's maps, masks and fills."""
    config = small_config("input" if mixing else "none", (phase("only", epochs=2, supcon=1.0),))
    keep = config.mix.to_dict()
    config_lib.apply_recipe(config, recipe)
    if mixing:
        config.mix.update(keep)
        config.train.num_views, config.attribution.loss = 2, "training"
    return config


def traced(config, run=jax.eval_shape):
    """Names of the metrics of a step that is traced but not compiled."""
    specs = config_lib.from_config(config, num_devices=1)
    program = assembly.make_program(specs, num_classes=4, num_images=NUM_IMAGES)
    state = jax.eval_shape(lambda: assembly.initial_state(specs, program))
    images, labels = small_images()
    step = step_lib.make_train_step(program, axis_name=None)
    return set(jax.eval_shape(step, state, images.reshape(NUM_IMAGES, -1), labels, small_order(program, 0))[1])


@pytest.mark.parametrize("recipe", RIVALS)
def test_a_step_with_gradmix_has_the_losses_of_clean_and_mixed_images(recipe):
    with jax.debug_key_reuse(True):
        names = traced(small_rival(recipe, mixing=True))
    wanted = set(RIVALS[recipe].weights)
    mixed = {f"mixed_{name}" for name in wanted if name != "open_auc"}
    assert names == {*wanted, *mixed, "loss", "gradient_norm", "learning_rate", "kept_share"}


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    return write_folder(
        tmp_path_factory.mktemp("animals") / "set", train=dict.fromkeys(ANIMALS, 8), test=dict.fromkeys(ANIMALS, 3)
    )


def test_num_negative_takes_the_first_unknown_classes(animals):
    named = dict(name=animals, benchmark="named", known=("cat", "ant"), unknown=("eel", "dog", "bee"))
    data = data_lib.open_set(make_spec(**named, num_negative=2))
    assert set(data.negative.classes) == {"eel", "dog"} and set(data.test_unknown.classes) == {"bee"}
    assert len(data.for_training) == len(data.train) + 16 and (data.for_training.labels < 0).sum() == 16
    with pytest.raises(ValueError, match=r"dataset\.num_negative 3 takes every unknown class; leave one out"):
        data_lib.open_set(make_spec(**named, num_negative=3))
    with pytest.raises(ValueError, match=r"dataset\.num_negative must be at most 3, got 4"):
        data_lib.open_set(make_spec(**named, num_negative=4))
    with pytest.raises(ValueError, match=r"dataset\.num_negative must be 0 with dataset\.negative, got 1"):
        make_spec(**named, num_negative=1, negative=("dog",))


def test_num_negative_with_unknown_classes_of_another_dataset(animals, tmp_path):
    other = write_folder(tmp_path / "other", train={"fly": 2, "gnu": 2}, test={"fly": 2, "gnu": 2})
    spec = make_spec(name=animals, unknown_name=other, benchmark="named", known=("cat", "ant"), num_negative=2)
    data = data_lib.open_set(spec)
    assert set(data.negative.classes) == {"bee", "dog"} and set(data.test_unknown.classes) == {"fly", "gnu"}


METHODS = (ROOT / "docs" / "methods.md").read_text()


def test_the_docs_list_every_method_objective_and_schedule():
    assert set(re.findall(r"^\| `(\w+)` \|", METHODS, re.MULTILINE)) == {
        *RIVALS,
        *objectives.OBJECTIVES,
        *objectives.SCHEDULES,
    }
    for name, rival in RIVALS.items():
        row = next(line for line in METHODS.splitlines() if line.startswith(f"| `{name}` |") and rival.paper in line)
        assert rival.about in row and rival.settings in row
        assert rivals.CROPS in rival.differs  # said once, above the table
        assert all(each in row for each in rival.differs if each != rivals.CROPS)
    assert METHODS.count(rivals.CROPS) == 1
    for name, entry in objectives.OBJECTIVES.items():
        row = next(line for line in METHODS.splitlines() if line.startswith(f"| `{name}` |"))
        assert all(f"`{option}`" in METHODS for option in entry.options), row


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RIVALS)
def test_a_digits_run_learns(recipe, tmp_path):
    """The runs of results/rivals.md, whose lowest accuracy is .975 and lowest AUROC .859."""
    config = config_of("digits_osr", recipe)
    config.evaluate.scores = (config.evaluate.score,)
    results = run_lib.run(config, str(tmp_path))
    assert results["accuracy"] > 0.95 and results["auroc"] > 0.8
