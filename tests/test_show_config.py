"""`gradmix config`: every key with value, default and comment; experiment files by name."""

import commands
import pytest

from gradmix_jax import cli
from gradmix_jax import config as config_lib


def test_every_key_is_described_once():
    config = config_lib.default_config()
    described = config_lib.described(config)
    flat = config_lib.flatten(config.to_dict())
    assert sorted(key for key, *_ in described) == sorted(flat)
    assert all(comment.strip() for *_, comment in described)
    for key, value, default, _ in described:
        assert value == default, key


def test_comments_list_the_names_that_a_key_takes():
    comments = {key: comment for key, *_, comment in config_lib.described(config_lib.default_config())}
    for name in ("gradmix", "cutmix", "none"):
        assert name in comments["mix.method"]
    assert "resnet18" in comments["model.name"]


def test_the_command_prints_what_a_config_changes():
    result = commands.run(
        "gradmix_jax", "config", "--config=cifar_osr:layer", "--changed", "--config.train.batch_size=64"
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert "dataset.name = 'cifar10'  (default 'digits')" in lines
    assert "mix.mask = 'box'  (default 'threshold')" in lines and "train.batch_size = 64  (default 128)" in lines
    assert not any(line.startswith("mix.keep_range") for line in lines)
    whole = commands.run("gradmix_jax", "config", "--config", "cifar_osr:layer")
    assert "mix.keep_range = (0.5, 0.9)" in whole.stdout.splitlines()


@pytest.mark.parametrize("name", ["configs/digits_osr.py", "configs/digits_osr.py:layer", "/elsewhere/own.py"])
def test_a_path_stays_as_it_is(name):
    assert cli.config_path_of(name) == name


def test_a_name_is_a_config_of_the_package():
    path = cli.config_path_of("digits_osr:layer")
    assert path == f"{commands.ROOT / 'configs' / 'digits_osr.py'}:layer"
    with pytest.raises(
        ValueError, match="--config must be one of cifar100_superclasses, .*got 'digits_ocr'; did you mean 'digits_osr'"
    ):
        cli.config_path_of("digits_ocr")


def test_an_unknown_subcommand_is_one_line():
    result = commands.run("gradmix_jax", "trian")
    assert result.returncode == 2 and result.stderr == "error: unknown command 'trian'; did you mean 'train'?\n"
    result = commands.run("gradmix_jax", "zzz")
    assert result.returncode == 2 and result.stderr.startswith("error: unknown command 'zzz'; use one of train, eval")


def test_the_version_names_packages_and_devices():
    result = commands.run("gradmix_jax", "--version")
    assert result.returncode == 0 and result.stdout.startswith("gradmix_jax 0.") and "jax 0." in result.stdout
    assert "8 x cpu (cpu)" in result.stdout
