"""Mistakes in an experiment file give one line with the file, the line and what is wrong."""

import pytest
from absl import flags

from gradmix_jax.cli import config_file

GOOD = "from gradmix_jax import config\ndef get_config(recipe='input'):\n    c = config.default_config()\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("def get_config(:\n", "{0}, line 1: SyntaxError: "),
        ("\n\nfoo\n", "{0}, line 3: NameError: name 'foo' is not defined."),
        ("import nothing_like_this\n", "{0}, line 1: ModuleNotFoundError: No module named 'nothing_like_this'."),
        ("x = 1\n", r"{0} has no function get_config; define `def get_config\(recipe='input'\)` in it.$"),
        ("get_config = 5\n", "{0} has no function get_config; "),
        ("def get_config():\n    return 5\n", "get_config of {0} must return a config as .*, got 5."),
        ("def get_config():\n    return {}\n", "get_config of {0} must return a config as .*, got {{}}."),
        ("def get_config():\n    pass\n", "get_config of {0} must return a config as .*, got None."),
        ("def get_config(a, b):\n    pass\n", r"{0}: TypeError: get_config\(\) missing 2 required"),
        ("import sys\nsys.exit(0)\n", "{0}, line 2: SystemExit: it ends the command with 0 instead of returning a"),
        ("import sys\ndef get_config():\n    sys.exit()\n", "{0}, line 3: SystemExit: it ends the command with None"),
        ("def get_config():\n    open('/nowhere/a')\n", "{0}, line 2: FileNotFoundError: .*No such file.*/nowhere/a"),
        ("def get_config():\n    return {}['mix']\n", "{0}, line 2: KeyError: mix."),
        (GOOD + "    return c.mix.fil\n", "{0}, line 4: AttributeError: .*fil"),
        (GOOD + "    c.mix.keep_range = 'a'\n    return c\n", "{0}, line 4: TypeError: "),
        (
            GOOD + "    return config.apply_recipe(c, 'layers')\n",
            r"{0}, line 4: the recipe must be one of input, .*, logitnorm, got 'layers'; did you mean 'layer'\?$",
        ),
        ("def get_config():\n    raise MemoryError\n", "{0}, line 2: MemoryError: no reason given."),
        ("\0\n", r"{0}(, line \d+)?: (SyntaxError|source code string cannot contain null bytes)"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(tmp_path, content, said):
    path = tmp_path / "own.py"
    path.write_text(content)
    with pytest.raises(config_file.ConfigFileError) as raised:
        config_file.load(str(path))
    assert "\n" not in str(raised.value)
    with pytest.raises(config_file.ConfigFileError, match="^" + said.format(str(path))):
        config_file.load(str(path))


def test_missing_files(tmp_path):
    with pytest.raises(config_file.ConfigFileError, match=f"^No such file or directory: {tmp_path}/a.py.$"):
        config_file.load(f"{tmp_path}/a.py:layer")
    with pytest.raises(
        config_file.ConfigFileError, match=f"^--config must be a file, got the directory '{tmp_path}'.$"
    ):
        config_file.load(str(tmp_path))


def test_ctrl_c_in_the_file_is_not_swallowed(tmp_path):
    (tmp_path / "own.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        config_file.load(str(tmp_path / "own.py"))


def test_a_file_may_define_dataclasses_and_receives_the_recipe(tmp_path):
    (tmp_path / "own.py").write_text(
        "from __future__ import annotations\nimport dataclasses\nfrom gradmix_jax import config\n"
        "@dataclasses.dataclass\nclass A:\n    x: int = 3\n"
        "def get_config(recipe='input'):\n    c = config.default_config()\n    c.name, c.seed = recipe, A().x\n"
        "    return c\n"
    )
    found = config_file.load(f"{tmp_path / 'own.py'}:a:b")
    assert (found.name, found.seed) == ("a:b", 3)


def _parsed(monkeypatch, *words):
    given = flags.FlagValues()
    monkeypatch.setattr("sys.argv", ["main", *words])
    config_file.define_flag("config", "", flag_values=given)
    given(["main", *words])
    return given.config


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["(0.1, 0.2)"], (0.1, 0.2)),
        (["(0.1, 0.2)", "(0.3, 0.4)"], (0.3, 0.4)),
        (["0.1,0.2"], (0.1, 0.2)),
        (["[0.1, 0.2]"], (0.1, 0.2)),
    ],
)
def test_the_last_of_repeated_tuple_flags_wins(monkeypatch, words, expected):
    config = _parsed(monkeypatch, "--config=configs/digits_osr.py", *(f"--config.mix.keep_range={w}" for w in words))
    assert config.mix.keep_range == expected
