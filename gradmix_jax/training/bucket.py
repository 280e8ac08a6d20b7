"""The checkpoints of a run in a bucket: copies of those that Orbax has saved on this machine.

Orbax could write to buckets itself, but with a separate TensorStore client and separate credentials for each store, and
with a commit by rename or marker that depends on the store. Copying whole files asks no more of a store than the rest
of a run does, and the copies are verified. The files keep Orbax's layout, so a workdir copied from a bucket is a run.
"""

import json
import os

from gradmix_jax import stored
from gradmix_jax.workdir import storage


class MissingError(ValueError):
    """A file of a checkpoint is missing or differs from the saved one."""


class Bucket:
    """The checkpoints in a directory of a bucket.

    `<step>.json` holds the SHA-256 of every file of `<step>/`. It is written last and deleted first, and a checkpoint
    without it does not count.

    Args:
      directory: directory of the checkpoints, in a bucket.

    Raises:
      OSError: the bucket cannot be used; the methods raise it too.
    """

    def __init__(self, directory: str):
        self._directory = directory
        self.steps = committed(directory)

    def upload(self, step: int, local: str) -> None:
        """Copy a checkpoint from a local directory."""
        folder = f"{self._directory}/{step}"
        storage.remove_below(folder)  # files of an interrupted upload
        digests = {}
        for name in storage.files_below(local):
            digests[name] = stored.digest(os.path.join(local, name))
            storage.upload(os.path.join(local, name), f"{folder}/{name}")
        storage.write(f"{folder}.json", json.dumps({"sha256": digests}).encode())
        self.steps = sorted({*self.steps, step})

    def download(self, step: int, local: str) -> None:
        """Copy a checkpoint to a local directory.

        Raises:
          MissingError: a file is missing or differs from the saved one.
        """
        try:
            digests = json.loads(storage.read(f"{self._directory}/{step}.json"))["sha256"]
            for name, digest in digests.items():
                copy = os.path.join(local, name)
                if not os.path.abspath(copy).startswith(os.path.join(os.path.abspath(local), "")):
                    raise MissingError(f"{name!r} is not a file of a checkpoint")
                storage.download(f"{self._directory}/{step}/{name}", copy)
                if stored.digest(copy) != digest:
                    raise MissingError(f"the SHA-256 of {name} differs from the recorded one")
        except FileNotFoundError as error:
            raise MissingError(f"there is no {error.filename}") from error
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise MissingError(f"{step}.json is damaged") from error

    def set_aside(self, step: int) -> None:
        """Exclude a damaged checkpoint; its files stay until its step is saved again."""
        storage.remove(f"{self._directory}/{step}.json")
        self.steps = [each for each in self.steps if each != step]

    def keep(self, count: int) -> None:
        """Delete all but the newest `count` checkpoints, and the remains of earlier interrupted uploads."""
        kept, newest = self.steps[-count:], self.steps[-1]
        for step in self.steps[:-count]:
            storage.remove(f"{self._directory}/{step}.json")
        for name in storage.names(self._directory):
            if name.isdigit() and int(name) not in kept and int(name) < newest:
                storage.remove_below(f"{self._directory}/{name}")
        self.steps = kept


def committed(directory: str) -> list[int]:
    """The steps of the complete checkpoints in a directory of a bucket, the oldest first."""
    stems = [name.removesuffix(".json") for name in storage.names(directory) if name.endswith(".json")]
    return sorted(int(stem) for stem in stems if stem.isdigit())
