"""Directories of this machine for what comes from a bucket and goes there; a killed process leaves none for long.

All of a process are inside one, which it has locked. The lock ends with the process, however that ends, and the next
process deletes what nobody holds.
"""

import atexit
import functools
import glob
import os
import shutil
import tempfile

from gradmix_jax.workdir import flock

# Of names that nobody would give a directory of runs.
_BEFORE, _AFTER = ".gradmix_jax-", ".tmp"


def directory() -> tempfile.TemporaryDirectory:
    """A new directory, deleted when it is let go. Raises OSError where there is no room for it."""
    return tempfile.TemporaryDirectory(dir=_of_this_process(), ignore_cleanup_errors=True)


@functools.cache
def _of_this_process() -> str:
    for left in glob.glob(os.path.join(glob.escape(tempfile.gettempdir()), f"{_BEFORE}????????{_AFTER}")):
        held, descriptor = _lock(left)
        if held:
            shutil.rmtree(left, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)
    while True:
        folder = tempfile.mkdtemp(_AFTER, _BEFORE)
        held, descriptor = _lock(folder)
        if held is not False and os.path.isdir(folder):  # not one that another process takes for left over
            atexit.register(_remove, folder, os.getpid())
            return folder
        if descriptor is not None:
            os.close(descriptor)


def _lock(folder: str) -> tuple[bool | None, int | None]:
    """(whether it could be locked; None: there is no telling, the open directory, which holds the lock)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    except OSError:  # another user's, or gone, or a system that does not open directories
        return None, None
    return flock.take(descriptor), descriptor


def _remove(folder: str, pid: int) -> None:
    if os.getpid() == pid:  # not a process forked from it
        shutil.rmtree(folder, ignore_errors=True)
