"""A bucket in a local directory, limited to the operations of an object store.

`python -m fake_bucket FOLDER KILL MODULE ...` runs a command of the package, with a bucket in FOLDER for gs:// and s3://.
SIGKILL ends it before the first put of an object whose name has a match of the pattern KILL, unless that is "".

Objects are put and read whole, and can be created only if they do not exist. There are no directories, no appending and
no renaming. A put object appears at once or, if the store fails, not at all.
"""

import contextlib
import os
import pathlib
import re
import runpy
import signal
import sys
import tempfile
import urllib.parse
from unittest import mock

import fsspec
from fsspec.registry import _registry as fsspec_registry

SCHEMES = ("gs", "s3")


class FakeBucket(fsspec.AbstractFileSystem):
    """Objects as files of `root`, with quoted names; processes that share `root` share the bucket.

    Attributes:
      root: directory of the objects.
      fail: called with ("put", "read", "list" or "delete", name of the object) before each operation; may raise.
    """

    protocol = SCHEMES
    cachable = False
    root: str = ""
    fail = staticmethod(lambda operation, name: None)

    def _file(self, path: str) -> pathlib.Path:
        return pathlib.Path(self.root, urllib.parse.quote(self._strip_protocol(path), safe=""))

    def _names(self) -> list[str]:
        found = [name for name in os.listdir(self.root) if not name.startswith("~")]
        return sorted(map(urllib.parse.unquote, found))

    def ls(self, path, detail=True, **_):
        path = self._strip_protocol(path)
        self.fail("list", path)
        found = {}
        for name in self._names():
            if name == path:
                found[name] = {"name": name, "size": self._file(name).stat().st_size, "type": "file"}
            elif name.startswith(path + "/"):
                first = path + "/" + name.removeprefix(path + "/").split("/")[0]
                is_file = first == name
                size = self._file(name).stat().st_size if is_file else 0
                found[first] = {"name": first, "size": size, "type": "file" if is_file else "directory"}
        if not found:
            raise FileNotFoundError(path)
        return list(found.values()) if detail else list(found)

    def cat_file(self, path, start=None, end=None, **_):
        self.fail("read", self._strip_protocol(path))
        return self._file(path).read_bytes()[start:end]

    def get_file(self, path, local, **_):
        pathlib.Path(local).write_bytes(self.cat_file(path))

    def pipe_file(self, path, value, mode="overwrite", **_):
        with tempfile.NamedTemporaryFile(dir=self.root, prefix="~", delete=False) as file:
            file.write(value)
        try:
            self.fail("put", self._strip_protocol(path))
            if mode == "create":
                os.link(file.name, self._file(path))
            else:
                os.replace(file.name, self._file(path))
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(file.name)

    def put_file(self, local, path, **options):
        self.pipe_file(path, pathlib.Path(local).read_bytes(), **options)

    def rm_file(self, path):
        self.fail("delete", self._strip_protocol(path))
        self._file(path).unlink()

    def _no(self, *_, **__):
        raise NotImplementedError("an object store has no such operation")

    open = _open = mkdir = makedirs = mv = touch = cp_file = copy = rename = _no


def make(root: str, *, fail=None) -> type[FakeBucket]:
    """The file system of a bucket in `root`."""
    os.makedirs(root, exist_ok=True)
    return type("Bucket", (FakeBucket,), {"root": str(root)} | ({"fail": staticmethod(fail)} if fail else {}))


def install(root: str, *, fail=None) -> None:
    """Make gs:// and s3:// of this process a bucket in `root`, permanently."""
    for scheme in SCHEMES:
        fsspec.register_implementation(scheme, make(root, fail=fail), clobber=True)


@contextlib.contextmanager
def installed(root: str, *, fail=None):
    """`install` temporarily; yields the file system."""
    kind = make(root, fail=fail)
    with mock.patch.dict(fsspec_registry, dict.fromkeys(SCHEMES, kind)):
        yield kind


def _run(root: str, kill: str, module: str) -> None:
    def fail(operation, name):
        if kill and operation == "put" and re.search(kill, name):
            os.kill(os.getpid(), signal.SIGKILL)

    install(root, fail=fail)
    tempfile.tempdir = None  # of the environment, also where it has been asked for before
    sys.argv = [module, *sys.argv[4:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _run(*sys.argv[1:4])
