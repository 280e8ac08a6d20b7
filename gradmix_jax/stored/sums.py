"""SHA256SUMS of an export: a digest of each file, as `sha256sum` writes and checks them."""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping

from gradmix_jax.workdir import storage

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")


def write_sums(directory: str) -> None:
    """Write the digests of all files of a directory."""
    names = sorted(set(os.listdir(directory)) - {SUMS})
    lines = [f"{digest(os.path.join(directory, name))}  {name}\n" for name in names]
    with open(os.path.join(directory, SUMS), "w", encoding="utf-8") as file:
        file.writelines(lines)


def read_sums(directory: str) -> dict[str, str] | None:
    """{file: digest} of a directory, which may be in a bucket; None: it has no digests, as in older exports.

    Raises:
      ValueError: the file is damaged.
    """
    path = os.path.join(directory, SUMS)
    if not storage.exists(path):
        return None
    found = [_LINE.fullmatch(line) for line in storage.read(path).decode(errors="replace").splitlines()]
    if not found or not all(found):
        raise ValueError(f"{path} is damaged: each line must be a SHA-256, two spaces and the name of a file.")
    return {match[2]: match[1] for match in found}


def check_sums(sums: Mapping[str, str] | None, files: Iterable[str]) -> None:
    """Compare local files with their digests; does nothing without any.

    Raises:
      ValueError: a file differs, or has no digest; OSError: it cannot be read.
    """
    for path in files if sums is not None else ():
        name = os.path.basename(path)
        if digest(path) != sums.get(name):
            why = "its SHA-256 is not the one in" if name in sums else "it is not listed in"
            raise ValueError(f"{name} is damaged: {why} {SUMS}; export the run again.")


def digest(path: str) -> str:
    """SHA-256 of a local file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
