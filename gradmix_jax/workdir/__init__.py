"""The files of a run: their names, atomic writes and reading, and the environment behind the run's numbers."""

import contextlib
import hashlib
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import IO, Any

import jax

from gradmix_jax.workdir import storage, temporary

CONFIG = "config.json"
ENVIRONMENT = "env.json"
PARAMETERS = "parameters.txt"
METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
# The ids of the run in trackers.
TRACKED = "trackers.json"
CHECKPOINTS = "checkpoints"
RESULTS = "results.json"
# Why a run of a protocol or a sweep has no results.
FAILED = "failed.json"
FEATURES = "features.npz"
SCORES = "scores.npz"
GALLERY = "gallery.npz"
# Files of an export.
EXPORTED_WEIGHTS, EXPORTED_METADATA = "model.safetensors", "metadata.json"
# A file of a directory of runs.
SUMMARY = "summary.md"

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")


def resolve(path: str, what: str = "--workdir", *, remote: bool = True) -> str:
    """The absolute path of a user-given directory of runs, see `storage.expand`; a path in a bucket stays as it is.

    Args:
      path: the path as given.
      what: its name in error messages.
      remote: whether it may be in a bucket.

    Raises:
      ValueError: as in `storage.expand` and `check_directory`, or it has characters that Orbax or fsspec reads as a
        pattern.
    """
    expanded = storage.expand(path, what, remote=remote)
    resolved = expanded if storage.is_remote(expanded) else os.path.abspath(expanded)
    check_directory(path, what)
    special = sorted(set(resolved) & set("[]*?"))
    if special:
        # Orbax looks for checkpoints by a pattern that begins with this path, and would find none.
        raise ValueError(f"{what} must not have {' '.join(special)} in its absolute path, got {resolved!r}.")
    return resolved


def check_directory(path: str, what: str) -> None:
    """Raises ValueError if no directory can be made there, because a file or a dangling link is in the way.

    Args:
      path: the path as given, see `storage.expand`.
      what: its name in the error message.
    """
    expanded = storage.expand(path, what)
    if storage.is_remote(expanded):
        return
    wanted = found = os.path.abspath(expanded)
    while not os.path.lexists(found) and os.path.dirname(found) != found:
        found = os.path.dirname(found)
    if not os.path.isdir(found):
        kind = "file" if os.path.exists(found) else "dangling link"
        got = f"the {kind} {path!r}" if found == wanted else f"{path!r}, which is below the {kind} {found!r}"
        raise ValueError(f"{what} must be a directory, got {got}.")


def path(workdir: str, name: str) -> str:
    """Where a run in `workdir` keeps the file `name`, one of the constants above."""
    return os.path.join(workdir, name)


@contextlib.contextmanager
def replacing(path: str, mode: str = "w") -> Iterator[IO]:
    """Atomic file write: yields a file that replaces `path` at the end, in one move or one upload.

    On an error, `path` stays unchanged. Names of files that are not UTF-8 are written with question marks.

    Args:
      path: path of the file.
      mode: "w" or "wb".
    """
    encoding, errors = (None, None) if "b" in mode else ("utf-8", "replace")
    if storage.is_remote(path):
        with temporary.directory() as folder:
            written = os.path.join(folder, "file")
            with open(written, mode, encoding=encoding, errors=errors) as file:
                yield file
            storage.upload(written, path)
        return
    written = f"{path}.tmp"
    try:
        with open(written, mode, encoding=encoding, errors=errors) as file:
            yield file
        os.replace(written, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(written)
        raise


def write_json(workdir: str, name: str, content: dict[str, Any]) -> None:
    """Write a JSON file of a run, atomically."""
    with replacing(path(workdir, name)) as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def read_json(workdir: str, name: str) -> dict[str, Any]:
    """Read a JSON file of a run.

    Raises:
      ValueError: the file is missing or damaged; storage.UnavailableError where it cannot be read now.
    """
    file_path = path(workdir, name)
    try:
        content = json.loads(storage.read(file_path).decode())
        if not isinstance(content, dict):
            raise ValueError(f"expected an object, found a {type(content).__name__}")
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"no {name} in {workdir}; give the workdir of a run that has written it.") from None
    except storage.NotInstalledError:
        raise
    except (ValueError, RecursionError) as error:  # of JSON and of UTF-8
        raise ValueError(f"{file_path} is damaged: {str(error).rstrip('.')}.") from error
    except OSError as error:
        kind = storage.UnavailableError if storage.may_pass(error) else ValueError
        raise kind(f"{file_path} cannot be read: {error.strerror}.") from error
    return content


def commit() -> tuple[str, bool]:
    """(commit of this code, "" if unknown; whether there are uncommitted changes).

    GRADMIX_JAX_COMMIT takes precedence: whoever makes a copy without .git (on a pod, in an image) sets it to the
    commit, followed by a + if files had changed. A repository counts only if it tracks this very file, because the
    package may be installed inside another project's repository.
    """
    told = os.environ.get("GRADMIX_JAX_COMMIT", "")
    if told:
        return told.removesuffix("+"), told.endswith("+")
    here = os.path.dirname(os.path.abspath(__file__))
    git = lambda *words: subprocess.run(["git", "-C", here, *words], capture_output=True, text=True)
    try:
        if git("ls-files", "--error-unmatch", os.path.basename(__file__)).returncode:
            return "", False
        return git("rev-parse", "HEAD").stdout.strip(), bool(git("status", "--porcelain", "-uno").stdout.strip())
    except OSError:  # git is not installed
        return "", False


def code_hash() -> str:
    """16 hex digits that differ between two copies of this package with different Python files."""
    digest, here = hashlib.sha256(), pathlib.Path(__file__).parents[1]
    for file in sorted(here.rglob("*.py")):
        digest.update(f"{file.relative_to(here)} {file.stat().st_size} ".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def environment() -> dict[str, Any]:
    """Versions, devices, commit and command line behind the numbers of a run."""
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
