"""Run the package's commands as users run them, without a new interpreter for each.

A server process imports the package once and forks for every command; the fork looks for its devices itself. What a
command prints, its exit status, its working directory and its environment are its own.
"""

import atexit
import functools
import json
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import traceback
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run(module: str, *arguments: str, env: dict[str, str] | None = None, cwd: pathlib.Path = ROOT) -> Result:
    """`python -m module arguments` in `cwd`, with `env` added to the environment.

    A module that reads the environment when it is imported has done so before `env` is set.
    """
    server = _server()
    words = [str(word) for word in arguments]
    server.stdin.write(json.dumps([module, words, env or {}, str(cwd)]) + "\n")
    server.stdin.flush()
    return Result(*json.loads(server.stdout.readline()))


@functools.cache
def _server() -> subprocess.Popen:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    atexit.register(server.kill)
    return server


def _serve() -> None:
    # Imported once, here; none of it asks JAX for a device, which is left to the forks.
    import gradmix_jax.evaluation.paired  # SciPy's statistics, half a second
    import gradmix_jax.main
    import gradmix_jax.protocol
    import gradmix_jax.sweep  # noqa: F401

    for line in sys.stdin:
        module, words, env, cwd = json.loads(line)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if not child:
                _become(module, words, env, cwd, out.fileno(), err.fileno())
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
        sys.stdout.write(json.dumps([status, *texts]) + "\n")
        sys.stdout.flush()


def _become(module, words, env, cwd, out, err) -> None:
    """Run the command in this fork, then exit."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    status = 1
    try:
        os.chdir(cwd)
        os.environ.update(env)
        sys.path[0] = str(cwd)
        sys.argv = [module, *words]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
