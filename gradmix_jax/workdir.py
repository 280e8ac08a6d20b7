"""Every file of a run: names, atomic writes, reading back, and the environment that its numbers belong to."""

import contextlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import IO, Any

import jax

CONFIG = "config.json"
ENVIRONMENT = "env.json"
PARAMETERS = "parameters.txt"
METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
CHECKPOINTS = "checkpoints"
RESULTS = "results.json"
FEATURES = "features.npz"
SCORES = "scores.npz"
GALLERY = "gallery.npz"
# Of a directory of runs.
SUMMARY = "summary.md"

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")


def path(workdir: str, name: str) -> str:
    """Where a run in `workdir` keeps the file `name`, one of the constants above."""
    return os.path.join(workdir, name)


@contextlib.contextmanager
def replacing(path: str, mode: str = "w") -> Iterator[IO]:
    """Atomic file write: a file that takes the place of `path` in one move at the end.

    On an error `path` stays as it was.

    Args:
      path: of the file.
      mode: "w" or "wb".
    """
    temporary = f"{path}.tmp"
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


def write_json(workdir: str, name: str, content: dict[str, Any]) -> None:
    """Write a JSON file of a run, atomically."""
    with replacing(path(workdir, name)) as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def read_json(workdir: str, name: str) -> dict[str, Any]:
    """Read a JSON file of a run.

    Raises:
      ValueError: the file is missing or damaged.
    """
    file_path = path(workdir, name)
    if not os.path.exists(file_path):
        raise ValueError(f"no {name} in {workdir}; give the workdir of a run that has written it.")
    try:
        with open(file_path, encoding="utf-8") as file:
            content = json.load(file)
        if not isinstance(content, dict):
            raise ValueError(f"expected an object, found a {type(content).__name__}")
    except ValueError as error:  # of JSON and of UTF-8
        raise ValueError(f"{file_path} is damaged: {error}.") from error
    return content


def commit() -> tuple[str, bool]:
    """(commit of this code, "" where nobody knows it; whether there are changes that are not committed)."""
    here = os.path.dirname(os.path.abspath(__file__))
    git = lambda *words: subprocess.run(["git", "-C", here, *words], capture_output=True, text=True).stdout.strip()
    try:
        head, changed = git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except OSError:
        head, changed = "", False
    if head:
        return head, changed
    # A copy without .git (a pod, an image) is told its commit by whoever made it, with a + where files had changed.
    told = os.environ.get("GRADMIX_JAX_COMMIT", "")
    return told.removesuffix("+"), told.endswith("+")


def environment() -> dict[str, Any]:
    """Versions, devices, commit and command line: what a number has to be read with."""
    head, changed = commit()
    return {
        "commit": head,
        "uncommitted_changes": changed,
        "command": sys.argv,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "cpu_count": os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # folders and IDX files need no TFDS
        return None
