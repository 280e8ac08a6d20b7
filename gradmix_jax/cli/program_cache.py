"""A cache of compiled programs across runs, bounded in size, from which damaged entries are removed.

JAX bounds its cache only with a package that we do not depend on, and warns of a damaged entry at every start
without replacing it.
"""

import contextlib
import glob
import math
import os
import re
import sys
import warnings

import jax

# Gigabytes (10^9 bytes) of the cache; an evaluation adds a few megabytes, a train step up to a hundred.
SIZE = "GRADMIX_JAX_CACHE_GB"
DEFAULT_SIZE = 5.0
# Share of the size in use after a removal, so that not every start has to remove something.
_FILLED = 0.8
_DAMAGED = re.compile(r"Error reading persistent compilation cache entry for '(.+?)'")


def keep_programs() -> None:
    """Cache compiled programs, unless JAX's own variables configure the cache.

    Raises:
      ValueError: the environment variable SIZE is not a number above 0.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        directory = os.path.join(cache, "gradmix_jax", "xla")
        jax.config.update("jax_compilation_cache_dir", directory)
        bound(directory, _size() * 1e9)
    # An evaluation compiles about a hundred small programs, all below JAX's default threshold of one second.
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    _heal()


def _size() -> float:
    given = os.environ.get(SIZE, "")
    try:
        size = float(given or DEFAULT_SIZE)
    except ValueError:
        size = math.nan
    if not 0 < size < math.inf:
        raise ValueError(f"the environment variable {SIZE} must be a number of gigabytes above 0, got {given!r}.")
    return size


def bound(directory: str, size: float) -> int:
    """Remove the least recently used entries if the cache exceeds `size` bytes.

    Returns:
      The number of files removed.
    """
    found = []
    with contextlib.suppress(OSError), os.scandir(directory) as entries:  # there may be none yet
        for entry in entries:
            with contextlib.suppress(OSError):  # another process may remove it at the same time
                status = entry.stat(follow_symlinks=False)
                found.append((max(status.st_atime, status.st_mtime), entry.path, status.st_size))
    total, removed = sum(each[2] for each in found), 0
    if total <= size:
        return 0
    for _, path, length in sorted(found):
        if total <= _FILLED * size:
            break
        with contextlib.suppress(OSError):
            os.remove(path)
            removed += 1
        total -= length
    return removed


def _heal() -> None:
    """Remove unreadable entries: JAX warns of one and recompiles the program, but keeps the entry."""
    show = warnings.showwarning
    if getattr(show, "heals", False):
        return

    def showwarning(message, category, filename, lineno, file=None, line=None):
        damaged = _DAMAGED.match(str(message))
        directory = jax.config.jax_compilation_cache_dir
        if not damaged or not directory:
            return show(message, category, filename, lineno, file, line)
        # The warning does not say which program of this name it was, so all of them are removed and recompiled.
        for path in glob.glob(os.path.join(glob.escape(directory), glob.escape(damaged[1]) + "*-cache")):
            with contextlib.suppress(OSError):
                os.remove(path)
        print(f"warning: a damaged program was removed from the cache in {directory}: {damaged[1]}.", file=sys.stderr)

    showwarning.heals = True
    warnings.showwarning = showwarning
