"""Config keys derived from the data: what is derived, what is recorded, and that a resumed run keeps it."""

import copy
import json
import runpy

import commands
import jax
import numpy as np
import pytest
from PIL import Image
from programs import small_config
from stored_data import write_folder

from gradmix_jax import config as config_lib
from gradmix_jax import data as data_lib
from gradmix_jax import run, run_many
from gradmix_jax.config import derive
from gradmix_jax.data import measure


def own_config(name, **dataset):
    c = runpy.run_path(str(commands.ROOT / "configs" / "folder_osr.py"))["get_config"]()
    c.dataset.name = name
    c.dataset.update(dataset)
    return c


def plain(name, **dataset):
    return config_lib.to_plain(own_config(name, **dataset))


def write_colors(root, *, size=(40, 30), gray=False, count=40, classes=("cat", "dog", "owl", "pig", "ship")):
    """root/<class>/*.png of noise; returns the dataset's name."""
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for place in range(count):
            random = np.random.default_rng([number, place])
            pixels = random.integers(0, 256, (size[1], size[0], 1 if gray else 3), np.uint8)
            Image.fromarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3))).save(root / name / f"{place}.png")
    return f"folder:{root}"


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    return write_colors(tmp_path_factory.mktemp("colors") / "set")


def test_everything_is_derived_from_the_path(colors):
    found = derive.from_data(plain(colors), num_devices=1)
    values = {key: value for key, (value, _) in found.items()}
    assert set(values) == set(derive.OPEN)
    assert (values["dataset.benchmark"], values["dataset.num_known"]) == ("random", 3)
    assert (values["dataset.image_size"], values["dataset.channels"], values["train.batch_size"]) == (32, 3, 16)
    config = derive.with_values(plain(colors), values)
    assert not derive.missing(config)
    data = data_lib.open_set(config_lib.from_config(config, num_devices=1).dataset)
    pixels = data_lib.read_all(data.train).astype(np.float64) / 255
    assert len(pixels) < measure.SAMPLE  # so all of them were measured
    np.testing.assert_allclose(values["normalization.mean"], pixels.mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(values["normalization.std"], pixels.std((0, 1, 2)), atol=1e-4)
    assert f"known: {', '.join(data.class_names)}; unknown:" in found["dataset.benchmark"].reason


def test_gray_images_have_one_channel(tmp_path):
    name = write_colors(tmp_path / "set", gray=True, classes=("a", "b", "c"), size=(100, 70))
    values = {key: value for key, (value, _) in derive.from_data(plain(name), num_devices=1).items()}
    assert values["dataset.channels"] == 1 and len(values["normalization.mean"]) == 1
    assert values["dataset.image_size"] == 64 and values["dataset.num_known"] == 2


def test_given_keys_are_not_derived(colors):
    config = plain(colors, known=("dog", "ship"), image_size=24, channels=1)
    config["normalization"]["std"] = [0.2]
    found = derive.from_data(config, num_devices=1)
    assert set(found) == {"dataset.benchmark", "normalization.mean", "train.batch_size"}
    assert found["dataset.benchmark"] == ("named", "known: dog, ship; unknown: cat, owl, pig")
    assert len(found["normalization.mean"].value) == 1


def test_unknown_images_of_another_folder(colors, tmp_path):
    other = write_folder(tmp_path / "other", train={}, test={"fly": 2, "gnu": 1})
    found = derive.from_data(plain(colors, unknown_name=other), num_devices=1)
    assert found["dataset.benchmark"] == ("all", "known: cat, dog, owl, pig, ship; unknown: fly, gnu")
    assert "dataset.num_known" not in found


@pytest.mark.parametrize("num_images, devices, expected", [(100, 1, 16), (600, 1, 64), (5000, 1, 128), (300, 8, 128)])
def test_batches_are_shared_by_devices_and_groups(num_images, devices, expected):
    assert (
        derive._batch_size(config_lib.to_plain(small_config()) | {"mix": {"group_size": 16}}, num_images, devices)[0]
        == expected
    )


@pytest.mark.parametrize("side, size", [(8, 16), (28, 32), (32, 32), (39, 32), (41, 48), (500, 64)])
def test_sizes(side, size):
    assert measure.size_for(side) == size


def test_channels_against_numpy():
    images = np.random.default_rng(0).integers(0, 256, (7, 5, 5, 3), np.uint8)
    images[..., 2] = 9
    found, scaled = measure.channels(images), images.astype(np.float64) / 255
    np.testing.assert_allclose(found.mean, scaled.mean((0, 1, 2)), atol=5e-5)
    np.testing.assert_allclose(found.std[:2], scaled.std((0, 1, 2))[:2], atol=5e-5)
    assert found.std[2] == measure.LEAST_STD


def test_failures_to_derive_give_one_line(tmp_path):
    two = write_colors(tmp_path / "two", classes=("a", "b"), count=3)
    with pytest.raises(ValueError, match="must have at least 3 classes to keep some unknown, got a, b; add classes"):
        derive.from_data(plain(two), num_devices=1)
    few = write_colors(tmp_path / "few", classes=("a", "b", "c"), count=4)
    with pytest.raises(ValueError, match=r"a batch needs 16 training images of known classes .*, got 4; add images"):
        derive.from_data(plain(few), num_devices=1)
    with pytest.raises(ValueError, match="dataset.image_size, channels and benchmark must be set"):
        data_lib.open_set(data_lib.Spec(**plain(few)["dataset"]))
    for key in ("image_size", "channels"):
        with pytest.raises(ValueError, match="dataset.image_size, channels and benchmark must be set"):
            data_lib.open_set(data_lib.Spec(**{"name": few, "benchmark": "random", "num_known": 2, key: 0}))
    (tmp_path / "few" / "a" / "0.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="a/0.png .* cannot be read; repair or remove it"):
        derive.from_data(plain(few, known=("a", "b"), test_fraction=0.01), num_devices=1)


def test_bad_paths_fail_before_a_workdir_is_made(tmp_path, colors):
    path = colors.removeprefix("folder:")
    for name, said in (
        ("folder:nowhere", "dataset 'folder:nowhere' does not exist; give the path of a folder."),
        (path, f"dataset.name must say how to read a path, got '{path}'; did you mean '{colors}'?"),
    ):
        words = ["train", "--config=folder_osr", f"--config.dataset.name={name}", f"--workdir={tmp_path / 'run'}"]
        result = commands.run("gradmix_jax", *words)
        assert (result.returncode, result.stderr.splitlines()) == (2, [f"error: {said}"])
    assert not (tmp_path / "run").exists()


def test_a_run_records_and_keeps_what_was_derived(colors, tmp_path, capsys):
    """An untrained network is saved and evaluated; the evaluation derives nothing again."""
    workdir, c = tmp_path / "run", own_config(colors)
    c.model.width, c.model.hidden, c.model.projection = 4, 16, 8
    c.phases[0].epochs = 0
    c.mix.group_size = 2
    c.dataset.image_size = 8
    again = copy.deepcopy(c)
    run.run(c, str(workdir), "train")
    printed = capsys.readouterr().err
    assert "derived: dataset.channels = 3 (not all of" in printed
    assert "derived: normalization.mean = (" in printed
    recorded = json.loads((workdir / "config.json").read_text())
    assert not derive.missing(recorded) and recorded["dataset"]["channels"] == 3
    assert recorded["train"]["batch_size"] % jax.device_count() == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(derive, "from_data", None)
        assert run.finished(again, str(workdir), num_devices=1) == recorded
        run.check_same_run(run.finished(again, str(workdir), num_devices=1), str(workdir))
    assert "derived" not in capsys.readouterr().err
    again.dataset.known = ("cat", "dog")
    with pytest.raises(ValueError, match="holds a run with dataset.benchmark='random', not 'named'"):
        run.run(again, str(workdir))


def test_a_protocol_derives_keys_per_trial_and_plans_without_data(colors, tmp_path):
    c = own_config(colors)
    c.normalization.mean = (0.5, 0.5, 0.5)
    planned = run_many.check_runs(c, str(tmp_path), [0, 1], [0], num_devices=1)
    finished = [config_lib.to_plain(one) for one, _ in planned]
    assert not any(map(derive.missing, finished))
    assert [one["dataset"]["trial"] for one in finished] == [0, 1]
    assert finished[0]["normalization"] != finished[1]["normalization"], "measured on the known classes of each trial"
    c.dataset.name = "folder:elsewhere"
    assert len(run_many.check_runs(c, str(tmp_path), [0], [0], num_devices=1, from_data=False)) == 1
    with pytest.raises(ValueError, match="'folder:elsewhere' does not exist"):
        run_many.check_runs(c, str(tmp_path), [0], [0], num_devices=1)
