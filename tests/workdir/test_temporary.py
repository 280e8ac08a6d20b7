"""Temporary directories: deleted when their process ends, or by the next process."""

import os
import signal
import subprocess
import sys
import tempfile

import commands
import pytest

from gradmix_jax.workdir import temporary


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    temporary._of_this_process.cache_clear()
    yield tmp_path
    temporary._of_this_process.cache_clear()


def test_they_are_deleted_when_they_are_let_go(folder):
    with temporary.directory() as first, temporary.directory() as second:
        assert os.path.isdir(first) and os.path.dirname(first) == os.path.dirname(second) != str(folder)
    assert not os.path.exists(first) and not os.path.exists(second)


CODE = """
import os, sys
from gradmix_jax.workdir import temporary
made = temporary.directory()
print(made.name, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["killed", "ended"])
def test_those_of_a_process_stay_while_it_lives_and_no_longer(folder, end):
    (folder / ".gradmix_jax-runs.tmp").mkdir()
    (folder / "gradmix_jax_12345678").mkdir()
    options = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=commands.ROOT)
    environment = os.environ | {"TMPDIR": str(folder)}
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", CODE], env=environment, **options) as process:
        made = process.stdout.readline().strip()
        assert made.startswith(str(folder))
        temporary.directory().cleanup()
        assert os.path.isdir(made), "its process lives"
        if end == "killed":
            process.send_signal(signal.SIGKILL)
        else:
            process.stdin.close()
        process.wait()
    assert os.path.exists(made) == (end == "killed")
    temporary._of_this_process.cache_clear()
    temporary.directory().cleanup()
    assert not os.path.exists(os.path.dirname(made))
    assert {".gradmix_jax-runs.tmp", "gradmix_jax_12345678"} <= set(os.listdir(folder))
