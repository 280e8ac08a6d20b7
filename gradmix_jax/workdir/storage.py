"""Files and directories by name, on this machine or in a bucket (gs://BUCKET/FOLDER, s3://BUCKET/FOLDER).

An object store cannot append, rename or hold an empty directory; what is put there appears whole or not at all. So
buckets are written and read in whole files. They are reached by fsspec, which etils.epath wraps: the lock needs a file
that is created only if there is none, and listings have to show what another machine has changed since the last one.
"""

import contextlib
import errno
import os
import posixpath
import tempfile
import textwrap
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

# Of each scheme, the package of fsspec's that reaches it.
PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}


class NotInstalledError(ValueError):
    """The package that reaches a bucket is not installed."""


def is_remote(path: str) -> bool:
    """Whether a path is in a bucket."""
    return path.partition("://")[0] in PACKAGES and "://" in path


def expand(path: str, what: str = "the workdir", *, remote: bool = True) -> str:
    """A path as a user gave it, with ~ expanded, a file:// URL as the path it means, and the name in a bucket checked.

    Args:
      path: as given.
      what: what to call it in an error.
      remote: whether it may be in a bucket.

    Raises:
      ValueError: it is empty, of a scheme that is not known, or in a bucket that cannot be reached from here.
    """
    scheme, separator, rest = path.partition("://")
    if not path or (separator and (not remote or scheme not in PACKAGES) and scheme != "file"):
        buckets = ", gs://BUCKET/FOLDER or s3://BUCKET/FOLDER" if remote else " of this machine"
        raise ValueError(f"{what} must be a directory{buckets}, got {path!r}.")
    if not separator:
        return os.path.expanduser(path)
    if scheme == "file":
        url = urllib.parse.urlsplit(path)
        if url.netloc not in ("", "localhost") or not url.path:
            raise ValueError(f"{what} must be file:///FOLDER, of this machine, got {path!r}.")
        return urllib.request.url2pathname(url.path)
    name = posixpath.normpath(rest)
    if name.startswith((".", "/")) or "/" not in name:
        raise ValueError(f"{what} must be {scheme}://BUCKET/FOLDER, got {path!r}.")
    _check_installed(scheme)
    return f"{scheme}://{name}"


def exists(path: str) -> bool:
    """Whether there is a file or a directory; a directory of a bucket is there while it holds a file."""
    return os.path.exists(path) if not is_remote(path) else _info(path) is not None


def is_directory(path: str) -> bool:
    if not is_remote(path):
        return os.path.isdir(path)
    info = _info(path)
    return info is not None and info["type"] == "directory"


def make_directory(path: str) -> None:
    """Make a directory and those above it, where need be. A bucket needs none."""
    if not is_remote(path):
        os.makedirs(path, exist_ok=True)


def names(directory: str) -> list[str]:
    """The sorted names of the files and directories in a directory; [] where there is none."""
    if not is_remote(directory):
        return sorted(os.listdir(directory)) if os.path.isdir(directory) else []
    return sorted(_listed(directory))


def files_below(directory: str) -> list[str]:
    """The sorted paths of all files in a directory and those in it, relative to it; [] where there is none."""
    if not is_remote(directory):
        return sorted(
            os.path.relpath(os.path.join(parent, name), directory)
            for parent, _, inside in os.walk(directory)
            for name in inside
        )
    # Not fsspec's own walk, which takes a directory that cannot be listed for an empty one.
    found = []
    for name, kind in _listed(directory).items():
        inside = [f"{name}/{each}" for each in files_below(f"{directory}/{name}")] if kind == "directory" else [name]
        found += inside
    return sorted(found)


def read(path: str) -> bytes:
    """The content of a file. Raises OSError: FileNotFoundError where there is none."""
    if not is_remote(path):
        with open(path, "rb") as file:
            return file.read()
    with _reaching(path, absent=True):
        return _filesystem(path).cat_file(path)


def write(path: str, content: bytes, *, create: bool = False) -> None:
    """Write a file of a bucket.

    Args:
      path: of the file.
      content: all of it.
      create: whether to raise FileExistsError where there is one. Google Cloud Storage and Amazon S3 do so even where
        another machine is about to create it; other stores may not.
    """
    with _reaching(path):
        _filesystem(path).pipe_file(path, content, mode="create" if create else "overwrite")


def upload(local: str, path: str) -> None:
    """Copy a file of this machine into a bucket."""
    with _reaching(path):
        _filesystem(path).put_file(local, path)


def download(path: str, local: str) -> None:
    """Copy a file of a bucket to this machine. Raises OSError: FileNotFoundError where there is none."""
    os.makedirs(os.path.dirname(local), exist_ok=True)
    with _reaching(path, absent=True):
        _filesystem(path).get_file(path, local)


@contextlib.contextmanager
def local_copy(path: str) -> Iterator[str]:
    """The path of a file on this machine: of a copy that is deleted at the end where the file is in a bucket."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="gradmix_jax_") as folder:
        copy = os.path.join(folder, os.path.basename(path))
        download(path, copy)
        yield copy


def remove(path: str) -> None:
    """Delete a file. Raises OSError: FileNotFoundError where there is none, though S3 does not tell."""
    if not is_remote(path):
        return os.remove(path)
    with _reaching(path, absent=True):
        _filesystem(path).rm_file(path)


def remove_below(directory: str) -> None:
    """Delete all files in a directory of a bucket, and so the directory."""
    for name in files_below(directory):
        with contextlib.suppress(FileNotFoundError):
            remove(f"{directory}/{name}")


def _listed(directory: str) -> dict[str, str]:
    """{name: "file" or "directory"} of what is in a directory of a bucket."""
    with _reaching(directory):
        try:
            found = _filesystem(directory, fresh=True).ls(directory, detail=True)
        except FileNotFoundError:
            return {}
    below = directory.partition("://")[2].rstrip("/") + "/"
    # Some list an object that stands for the directory itself.
    entries = {each["name"].rstrip("/").removeprefix(below): each["type"] for each in found}
    return {name: kind for name, kind in entries.items() if name and "/" not in name}


def _info(path: str) -> dict[str, Any] | None:
    with _reaching(path):
        try:
            return _filesystem(path, fresh=True).info(path)
        except FileNotFoundError:
            return None


def _filesystem(path: str, *, fresh: bool = False) -> Any:
    """fsspec's file system of a path; `fresh`: without what it remembers of earlier listings."""
    import fsspec

    scheme = path.partition("://")[0]
    _check_installed(scheme)
    found = fsspec.filesystem(scheme)
    if fresh:
        found.invalidate_cache()
    return found


def _check_installed(scheme: str) -> None:
    import fsspec

    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        said = f"{scheme}:// needs {PACKAGES[scheme]}, which is not installed; pip install {PACKAGES[scheme]}."
        raise NotInstalledError(said) from error


@contextlib.contextmanager
def _reaching(path: str, *, absent: bool = False) -> Iterator[None]:
    """Turn whatever a store or its package raises into an OSError that names the path, in one line.

    Args:
      path: in a bucket.
      absent: whether FileNotFoundError means that there is no such file; otherwise it is the bucket that is missing.
    """
    try:
        yield
    except (FileExistsError, NotInstalledError):
        raise
    except Exception as error:
        if isinstance(error, FileNotFoundError) and absent:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
        said = textwrap.shorten(str(error), 200, placeholder=" ...")
        raise OSError(errno.EIO, f"the bucket cannot be used ({type(error).__name__}: {said})", path) from error
