"""If output cannot be written, however short, the command ends with an exit status and at most one line."""

import os
import subprocess
import sys

import commands
import pytest

CODE = "from gradmix_jax import cli; cli.run(lambda argv: print('short'))"


def run(stdout):
    # Python buffers the output, and writes what is short when it ends.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-W", "ignore", "-c", CODE]
    options = dict(stderr=subprocess.PIPE, text=True, env=environment, cwd=commands.ROOT)
    return subprocess.run(command, stdout=stdout, **options)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is always full")
def test_a_full_disk():
    with open("/dev/full", "w") as full:
        result = run(full)
    assert (result.returncode, result.stderr) == (5, "error: No space left on device.\n")


def test_a_reader_that_has_left():
    reading, writing = os.pipe()
    os.close(reading)
    result = run(writing)
    os.close(writing)
    assert (result.returncode, result.stderr) == (141, "")
