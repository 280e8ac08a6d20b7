"""The cache of compiled programs is bounded and recovers from damage."""

import os
import pathlib
import subprocess
import sys

import commands
import pytest

from gradmix_jax.cli import program_cache


def _fill(folder, sizes):
    for age, (name, size) in enumerate(reversed(sizes.items())):
        (folder / name).write_bytes(bytes(size))
        os.utime(folder / name, (10**9 - age, 10**9 - age))


def test_least_recently_used_programs_are_removed(tmp_path):
    _fill(tmp_path, {"a": 400, "b": 100, "c": 300, "d": 200})  # the oldest first
    assert program_cache.bound(str(tmp_path), 1000) == 0
    assert program_cache.bound(str(tmp_path), 900) == 1
    assert sorted(os.listdir(tmp_path)) == ["b", "c", "d"]
    os.utime(tmp_path / "b", (10**9 + 9, 10**9 - 9))  # read recently
    assert program_cache.bound(str(tmp_path), 400) == 1
    assert sorted(os.listdir(tmp_path)) == ["b", "d"]
    assert program_cache.bound(str(tmp_path / "none"), 1) == 0


@pytest.mark.parametrize("size", ["0", "-1", "much", "nan", "inf"])
def test_an_invalid_size(size, tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("GRADMIX_JAX_CACHE_GB", size)
    monkeypatch.setattr(program_cache.jax.config, "update", lambda *_: None)
    said = f"^the environment variable GRADMIX_JAX_CACHE_GB must be a number of gigabytes above 0, got '{size}'.$"
    with pytest.raises(ValueError, match=said):
        program_cache.keep_programs()


CODE = """
import jax
from gradmix_jax.cli import program_cache
program_cache.keep_programs()
print(jax.jit(lambda x: x * 3 + 1)(7.0))
"""


def test_a_damaged_entry_is_replaced(tmp_path):
    env = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    run = lambda: subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, env=os.environ | env, cwd=commands.ROOT
    )
    assert run().stdout == "22.0\n"
    entries = sorted(path for path in pathlib.Path(tmp_path).iterdir() if path.name.endswith("-cache"))
    before = {path.name: path.read_bytes() for path in entries}
    assert before
    for path in entries:
        path.write_bytes(b"damaged")
    second = run()
    assert second.stdout == "22.0\n" and "warning: a damaged program was removed from the cache" in second.stderr
    assert all(path.read_bytes() != b"damaged" for path in entries)
    third = run()
    assert (third.stdout, third.stderr) == ("22.0\n", "")


def test_a_folder_that_cannot_hold_the_cache_is_named_once(tmp_path):
    (tmp_path / "file").write_text("x")
    env = {"XDG_CACHE_HOME": str(tmp_path / "file")}
    given = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    code = CODE + "print(jax.jit(lambda x: x * 5 + 1)(7.0))\n"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, env=given | env, cwd=commands.ROOT)
    assert result.stdout == "22.0\n36.0\n" and result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"warning: compiled programs are not cached in {tmp_path}/file/gradmix_jax/xla (")


@pytest.mark.parametrize(("given", "folder"), [("relative", "/home/me/.cache"), ("/given", "/given"), ("", None)])
def test_the_folder_of_the_cache(given, folder, monkeypatch, capsys):
    updated = {}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    # Of a user id without an entry in the system's list, nothing is known but the tilde.
    monkeypatch.setattr(program_cache.os.path, "expanduser", lambda path: path if folder is None else "/home/me")
    monkeypatch.setattr(program_cache.jax.config, "update", updated.__setitem__)
    program_cache.keep_programs()
    assert updated.get("jax_compilation_cache_dir") == (folder and f"{folder}/gradmix_jax/xla")
    assert ("are not cached; set HOME or XDG_CACHE_HOME" in capsys.readouterr().err) == (folder is None)
