"""Local copies of the files that grow while a run trains, because object stores cannot append."""

import os
from collections.abc import Iterable

from gradmix_jax.workdir import storage, temporary


class Mirror:
    """A local directory whose files `push` copies, each as a whole, to a workdir in a bucket.

    Args:
      workdir: directory of a run.
      wanted: files and directories of the workdir to fetch first.

    Attributes:
      local: the local directory, named like the workdir; a workdir on this machine is used directly, and nothing has to
        be copied.

    Raises:
      OSError: the bucket cannot be read; `push` raises it too.
    """

    def __init__(self, workdir: str, wanted: Iterable[str]):
        self.local, self._workdir = workdir, workdir
        if not storage.is_remote(workdir):
            return
        self._folder = temporary.directory()
        self.local = os.path.join(self._folder.name, os.path.basename(workdir))
        os.makedirs(self.local)
        for name in wanted:
            try:
                storage.download(f"{workdir}/{name}", os.path.join(self.local, name))
            except FileNotFoundError:
                for below in storage.files_below(f"{workdir}/{name}"):
                    storage.download(f"{workdir}/{name}/{below}", os.path.join(self.local, name, below))
        self._pushed = {name: self._state(name) for name in storage.files_below(self.local)}

    @property
    def is_remote(self) -> bool:
        return self.local != self._workdir

    def push(self) -> None:
        """Copy every file that has changed since the last call."""
        if not self.is_remote:
            return
        for name in storage.files_below(self.local):
            state = self._state(name)
            if self._pushed.get(name) != state:
                storage.upload(os.path.join(self.local, name), f"{self._workdir}/{name}")
                self._pushed[name] = state

    def _state(self, name: str) -> tuple[int, int]:
        found = os.stat(os.path.join(self.local, name))
        return found.st_size, found.st_mtime_ns
