"""Files and directories by path, on this machine or in a bucket (gs://BUCKET/FOLDER, s3://BUCKET/FOLDER).

An object store cannot append, rename or hold an empty directory, and a file appears there whole or not at all. So
buckets are read and written in whole files. The code calls fsspec directly, not through etils.epath, because the lock
needs to create a file only if it does not exist, and listings must show recent changes by other machines.
"""

import contextlib
import errno
import os
import posixpath
import textwrap
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

from gradmix_jax.workdir import temporary

# The fsspec package for each scheme.
PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
# Errors of a disk or a network, not of a name: the same command may succeed later, or on another machine.
_PASSING = {
    *(errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE, errno.ENODEV, errno.EBUSY),
    *(errno.EAGAIN, errno.ENOLCK, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT, errno.ENETDOWN, errno.ENETUNREACH),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.ENOTCONN),
}


class NotInstalledError(ValueError):
    """The package for the scheme of a bucket is not installed."""


class UnavailableError(ValueError):
    """A disk, a bucket or a workdir cannot be used now."""


def may_pass(error: BaseException) -> bool:
    """Whether an error is of storage that cannot be used now: no mistake of the user's, and worth another try."""
    passing = isinstance(error, OSError) and error.errno in _PASSING
    return passing or isinstance(error, UnavailableError) or is_full(error)


def is_full(error: BaseException) -> bool:
    """Whether TensorStore says that the disk is full, which is a ValueError there."""
    return isinstance(error, ValueError) and "No space left on device" in str(error)


def is_remote(path: str) -> bool:
    """Whether a path is in a bucket."""
    return path.partition("://")[0] in PACKAGES and "://" in path


def expand(path: str, what: str = "the workdir", *, remote: bool = True) -> str:
    """A user-given path with ~ expanded, a file:// URL converted to a path, and a path in a bucket checked.

    Args:
      path: the path as given.
      what: its name in error messages.
      remote: whether it may be in a bucket.

    Raises:
      ValueError: it is empty, has an unknown scheme, or starts with the home directory of nobody, or the package for
        its bucket is not installed.
    """
    scheme, separator, rest = path.partition("://")
    if not path or (separator and (not remote or scheme not in PACKAGES) and scheme != "file"):
        buckets = ", gs://BUCKET/FOLDER or s3://BUCKET/FOLDER" if remote else " on this machine"
        raise ValueError(f"{what} must be a directory{buckets}, got {path!r}.")
    if not separator:
        expanded = os.path.expanduser(path)
        if expanded.startswith("~"):  # which would become the name of a folder
            home = path.partition(os.sep)[0]
            raise ValueError(f"{what} must be a directory, got {path!r}: there is no home directory {home}.")
        return expanded
    if scheme == "file":
        url = urllib.parse.urlsplit(path)
        if url.netloc not in ("", "localhost") or not url.path:
            raise ValueError(f"{what} must be file:///FOLDER on this machine, got {path!r}.")
        return urllib.request.url2pathname(url.path)
    name = posixpath.normpath(rest)
    if name.startswith((".", "/")) or "/" not in name:
        raise ValueError(f"{what} must be {scheme}://BUCKET/FOLDER, got {path!r}.")
    _check_installed(scheme)
    return f"{scheme}://{name}"


def exists(path: str) -> bool:
    """Whether a file or directory exists; a directory of a bucket exists while it holds a file."""
    return os.path.exists(path) if not is_remote(path) else _info(path) is not None


def is_directory(path: str) -> bool:
    if not is_remote(path):
        return os.path.isdir(path)
    info = _info(path)
    return info is not None and info["type"] == "directory"


def make_directory(path: str) -> None:
    """Create a directory and its parents if necessary; buckets need no directories."""
    if not is_remote(path):
        os.makedirs(path, exist_ok=True)


def names(directory: str) -> list[str]:
    """The sorted names of the files and directories in a directory; [] if the directory does not exist."""
    if not is_remote(directory):
        return sorted(os.listdir(directory)) if os.path.isdir(directory) else []
    return sorted(_listed(directory))


def files_below(directory: str) -> list[str]:
    """The sorted relative paths of all files below a directory; [] if the directory does not exist."""
    if not is_remote(directory):
        return sorted(
            os.path.relpath(os.path.join(parent, name), directory)
            for parent, _, inside in os.walk(directory)
            for name in inside
        )
    # Not by fsspec's own walk, which treats a directory that cannot be listed as empty.
    found = []
    for name, kind in _listed(directory).items():
        inside = [f"{name}/{each}" for each in files_below(f"{directory}/{name}")] if kind == "directory" else [name]
        found += inside
    return sorted(found)


def read(path: str) -> bytes:
    """The content of a file. Raises OSError: FileNotFoundError if the file does not exist."""
    if not is_remote(path):
        with open(path, "rb") as file:
            return file.read()
    with _reaching(path, absent=True):
        return _filesystem(path).cat_file(path)


def write(path: str, content: bytes, *, create: bool = False) -> None:
    """Write a file of a bucket.

    Args:
      path: path of the file.
      content: its whole content.
      create: whether to raise FileExistsError if the file exists. Google Cloud Storage and Amazon S3 ensure this even
        if another machine creates the file at the same time; other stores may not.
    """
    with _reaching(path):
        _filesystem(path).pipe_file(path, content, mode="create" if create else "overwrite")


def upload(local: str, path: str) -> None:
    """Copy a local file to a bucket."""
    with _reaching(path):
        _filesystem(path).put_file(local, path)


def download(path: str, local: str) -> None:
    """Copy a file of a bucket to this machine. Raises OSError: FileNotFoundError if the file does not exist."""
    os.makedirs(os.path.dirname(local), exist_ok=True)
    with _reaching(path, absent=True):
        _filesystem(path).get_file(path, local)


@contextlib.contextmanager
def local_copy(path: str) -> Iterator[str]:
    """A local path to a file; for a file in a bucket, to a copy that is deleted at the end."""
    if not is_remote(path):
        yield path
        return
    with temporary.directory() as folder:
        copy = os.path.join(folder, os.path.basename(path))
        download(path, copy)
        yield copy


def remove(path: str) -> None:
    """Delete a file if it exists."""
    with contextlib.suppress(FileNotFoundError):
        if not is_remote(path):
            return os.remove(path)
        with _reaching(path, absent=True):
            _filesystem(path).rm_file(path)


def remove_below(directory: str) -> None:
    """Delete a directory of a bucket with all files below it."""
    for name in files_below(directory):
        remove(f"{directory}/{name}")


def _listed(directory: str) -> dict[str, str]:
    """{name: "file" or "directory"} for the entries of a directory of a bucket."""
    with _reaching(directory):
        try:
            found = _filesystem(directory, fresh=True).ls(directory, detail=True)
        except FileNotFoundError:
            return {}
    below = directory.partition("://")[2].rstrip("/") + "/"
    # Some stores also list an object that stands for the directory itself.
    entries = {each["name"].rstrip("/").removeprefix(below): each["type"] for each in found}
    return {name: kind for name, kind in entries.items() if name and "/" not in name}


def _info(path: str) -> dict[str, Any] | None:
    with _reaching(path):
        try:
            return _filesystem(path, fresh=True).info(path)
        except FileNotFoundError:
            return None


def _filesystem(path: str, *, fresh: bool = False) -> Any:
    """fsspec's file system for a path; `fresh` discards its cache of earlier listings."""
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
    """Turn any error of a store or its package into an OSError that names the path, in one line.

    Args:
      path: a path in a bucket.
      absent: whether FileNotFoundError means that the file does not exist; otherwise, that the bucket does not.
    """
    try:
        yield
    except (FileExistsError, NotInstalledError):
        raise
    except Exception as error:
        if isinstance(error, FileNotFoundError) and absent:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
        said = textwrap.shorten(str(error), 200, placeholder=" ...")
        refused = isinstance(error, PermissionError) or said.startswith("Forbidden")  # gcsfs has no class for it
        kind = errno.EACCES if refused else errno.ENOENT if isinstance(error, FileNotFoundError) else errno.EIO
        raise OSError(kind, f"the bucket cannot be used ({type(error).__name__}: {said})", path) from error
