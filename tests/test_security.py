"""No file that is read is executed, except the user's experiment file; names are escaped wherever printed."""

import ast
import html
import pathlib
import re
import shlex
import subprocess

import commands
import pytest

from gradmix_jax import config as config_lib
from gradmix_jax.report import formats

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "gradmix_jax"
# Functions that can execute what they are given, and where each is allowed.
RUNS_CODE = {
    "eval": (),
    "exec": ("cli/config_file.py",),
    "compile": ("cli/config_file.py",),
    "__import__": (),
    "pickle.load": (),
    "pickle.loads": (),
    "pickle.Unpickler": (),
    "pickle._Unpickler": ("models/torch_file.py",),  # whose classes and functions are a list of its own
    "marshal.loads": (),
    "shelve.open": (),
    "joblib.load": (),
    "torch.load": (),
    "yaml.load": (),
    "yaml.unsafe_load": (),
    "os.system": (),
    "os.popen": (),
    "runpy.run_path": (),
}


def sources():
    return sorted(PACKAGE.rglob("*.py"))


def calls(path):
    """(dotted name, call) of every call in a file; base classes count too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node
        elif isinstance(node, ast.ClassDef):
            for base in node.bases:
                yield ast.unparse(base), None


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_runs_what_it_reads(path):
    for name, call in calls(path):
        allowed = RUNS_CODE.get(name)
        assert allowed is None or str(path.relative_to(PACKAGE)) in allowed, f"{name} in {path}"
        for keyword in call.keywords if call else ():
            value = ast.unparse(keyword.value)
            assert (keyword.arg, value) not in {("allow_pickle", "True"), ("shell", "True")}, f"{name} in {path}"
            assert keyword.arg != "weights_only", f"{name} in {path}: no file is given to PyTorch"


def test_the_list_of_names_finds_something():
    found = {name for path in sources() for name, _ in calls(path)}
    assert {"exec", "compile", "pickle._Unpickler"} <= found


HOSTILE = ["<script>alert(1)</script>", "a\"b'c", "$(touch x)`y`", "\\input{/etc/passwd}", "a|b|c"]
HOSTILE += ["#1 %2 &3 _4 ^5 ~6 {7}"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_text_in_every_format(name):
    assert html.unescape(formats.escape_html(name)) == name and not set(formats.escape_html(name)) & set("<>\"'")
    written = formats.escape_markdown(name)
    assert not re.search(r"(?<!\\)[|<`]", written), written
    latex = formats.escape_latex(name)
    assert r"\input" not in latex and not re.search(r"(?<!\\)[#%&_$]", latex), latex


@pytest.mark.parametrize("name", HOSTILE)
def test_printed_commands_give_a_shell_the_same_words(name, tmp_path):
    words = ["--config=digits_osr", f"--config.name={name}", f"--workdir=runs/{name}", "--trials=0", "--print_commands"]
    (line,) = commands.run("gradmix_jax.protocol", *words).stdout.splitlines()
    shown = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, cwd=tmp_path)
    assert shown.stdout.split("\0")[:-1] == shlex.split(line) and not list(tmp_path.iterdir())
    assert f"--config.name={name}" in shlex.split(line) and f"--workdir=runs/{name}/trial0_seed0" in shlex.split(line)


def test_the_config_is_read_as_data():
    assert config_lib.to_plain(config_lib.default_config())["name"] == ""
