"""A cache of compiled programs across runs, bounded in size, from which damaged entries are removed.

JAX bounds its cache only with a package that we do not depend on, and warns of a damaged entry at every start
without replacing it.
"""

import builtins
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
_FAILED = re.compile(
    r"Error (?P<what>reading|writing) persistent compilation cache entry for '(?P<name>.+?)': "
    r"(?P<error>\w+): (?P<why>.*)",
    re.DOTALL,
)


def keep_programs() -> None:
    """Cache compiled programs, unless JAX's own variables configure the cache.

    Raises:
      ValueError: the environment variable SIZE is not a number above 0.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        size = _size() * 1e9
        given = os.environ.get("XDG_CACHE_HOME", "")
        # As its specification says, a relative path does not count.
        cache = given if os.path.isabs(given) else os.path.join(os.path.expanduser("~"), ".cache")
        if os.path.isabs(cache):
            directory = os.path.join(cache, "gradmix_jax", "xla")
            jax.config.update("jax_compilation_cache_dir", directory)
            bound(directory, size)
        else:  # a user without a home directory, as in some containers
            print("warning: compiled programs are not cached; set HOME or XDG_CACHE_HOME to a folder.", file=sys.stderr)
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
    """Remove unreadable entries: JAX warns of one and recompiles the program, but keeps the entry.

    Of a directory that cannot be used, JAX warns for every program; once is enough.
    """
    show = warnings.showwarning
    if getattr(show, "heals", False):
        return
    said: set[str] = set()

    def showwarning(message, category, filename, lineno, file=None, line=None):
        failed = _FAILED.match(str(message))
        directory = jax.config.jax_compilation_cache_dir
        if not failed or not directory:
            return show(message, category, filename, lineno, file, line)
        if issubclass(getattr(builtins, failed["error"], Exception), OSError):
            if not said:
                why = " ".join(failed["why"].split())
                remedy = "set XDG_CACHE_HOME to a folder that can be written"
                print(f"warning: compiled programs are not cached in {directory} ({why}); {remedy}.", file=sys.stderr)
            said.add(directory)
            return None
        if failed["what"] == "writing":
            return show(message, category, filename, lineno, file, line)
        # The warning does not say which program of this name it was, so all of them are removed and recompiled.
        name = failed["name"]
        for path in glob.glob(os.path.join(glob.escape(directory), glob.escape(name) + "*-cache")):
            with contextlib.suppress(OSError):
                os.remove(path)
        print(f"warning: a damaged program was removed from the cache in {directory}: {name}.", file=sys.stderr)

    showwarning.heals = True
    warnings.showwarning = showwarning
