"""The checkpoints of a run in a bucket: copies of what Orbax has saved on this machine.

Orbax could write there itself, with a client of TensorStore's for each store, credentials of its own, and a rename or a
marker to commit that depends on the store. Copying whole files needs no more of a store than the rest of a run does,
and what arrives is checked. The files lie as Orbax wrote them, so a workdir that was copied from a bucket is a run.
"""

import hashlib
import json
import os

from gradmix_jax.workdir import storage


class MissingError(ValueError):
    """A file of a checkpoint is gone or is not what was saved."""


class Bucket:
    """The checkpoints in a directory of a bucket.

    `<step>.json` has the SHA-256 of every file of `<step>/`. It is written last and deleted first: without it a
    checkpoint does not count.

    Args:
      directory: of the checkpoints, in a bucket.

    Raises:
      OSError: the bucket cannot be used; the methods raise it too.
    """

    def __init__(self, directory: str):
        self._directory = directory
        self.steps = committed(directory)

    def upload(self, step: int, local: str) -> None:
        """Copy the checkpoint in a directory of this machine."""
        folder = f"{self._directory}/{step}"
        storage.remove_below(folder)  # of an upload that was interrupted
        digests = {}
        for name in storage.files_below(local):
            digests[name] = _digest(os.path.join(local, name))
            storage.upload(os.path.join(local, name), f"{folder}/{name}")
        storage.write(f"{folder}.json", json.dumps({"sha256": digests}).encode())
        self.steps = sorted({*self.steps, step})

    def download(self, step: int, local: str) -> None:
        """Copy a checkpoint into a directory of this machine.

        Raises:
          MissingError: a file is missing, or is not what was saved.
        """
        try:
            digests = json.loads(storage.read(f"{self._directory}/{step}.json"))["sha256"]
            for name, digest in digests.items():
                copy = os.path.join(local, name)
                if not os.path.abspath(copy).startswith(os.path.join(os.path.abspath(local), "")):
                    raise MissingError(f"{name!r} is no file of a checkpoint")
                storage.download(f"{self._directory}/{step}/{name}", copy)
                if _digest(copy) != digest:
                    raise MissingError(f"the SHA-256 of {name} is not that of what was saved")
        except FileNotFoundError as error:
            raise MissingError(f"there is no {error.filename}") from error
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise MissingError(f"{step}.json is damaged") from error

    def set_aside(self, step: int) -> None:
        """Let a damaged checkpoint count no more; its files stay until its step is saved again."""
        storage.remove(f"{self._directory}/{step}.json")
        self.steps = [each for each in self.steps if each != step]

    def keep(self, count: int) -> None:
        """Delete all checkpoints but the newest, and what interrupted uploads have left of earlier ones."""
        kept, newest = self.steps[-count:], self.steps[-1]
        for step in self.steps[:-count]:
            storage.remove(f"{self._directory}/{step}.json")
        for name in storage.names(self._directory):
            if name.isdigit() and int(name) not in kept and int(name) < newest:
                storage.remove_below(f"{self._directory}/{name}")
        self.steps = kept


def committed(directory: str) -> list[int]:
    """The steps of the whole checkpoints in a directory of a bucket, the oldest first."""
    stems = [name.removesuffix(".json") for name in storage.names(directory) if name.endswith(".json")]
    return sorted(int(stem) for stem in stems if stem.isdigit())


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
