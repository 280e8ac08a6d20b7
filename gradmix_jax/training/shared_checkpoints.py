"""Checkpoints that all processes of a pod write together, each its part of the arrays, on a disk that they share."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from gradmix_jax import pod
from gradmix_jax.training import digests
from gradmix_jax.training.checkpoint import Checkpoints, items_of
from gradmix_jax.training.state import TrainState
from gradmix_jax.workdir import lock, storage


class SharedCheckpoints(Checkpoints):
    """Writes checkpoints for `Checkpoints` to restore; all processes must create it, save the same steps and close it.

    No process holds the whole state, and none waits for the others while it trains: they meet in the threads that
    write. A checkpoint counts only once every process has written its part.

    Args:
      workdir: directory of the run, which the main process has locked.
      of, keep: see `Checkpoints`.

    Raises:
      ValueError: the workdir is in a bucket, or not the same directory with the same checkpoints on all processes.
    """

    # In Orbax's threads, a process that cannot write would wait 20 minutes for the others before it said so.
    _ASYNC = False

    def __init__(self, workdir: str, *, of: Mapping[str, Any] | None, keep: int = 2):
        if storage.is_remote(workdir):
            raise ValueError(
                f"train.checkpoint_writers=all needs a disk that all processes share, not a bucket, got {workdir}; use "
                "train.checkpoint_writers=main."
            )
        _check_shared(workdir)
        # Its own on every process, in the same order.
        self._gather = pod.Gathering()
        super().__init__(workdir, of=of, keep=keep)
        # Each decides by itself whether a step is saved already; on a network disk, one may see an outdated listing.
        pod.agree({"the list of checkpoints in the workdir": self.steps()})

    def _processes(self) -> ocp.options.MultiprocessingOptions:
        # All are named, because Orbax otherwise meets on the devices, where the threads would disturb the training.
        return ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes=set(range(jax.process_count())), barrier_sync_key_prefix=self._gather.name
        )

    def _save(self, state: TrainState) -> None:
        step = int(np.asarray(state.step.addressable_data(0)))
        if step == self.latest_step():
            return
        items = items_of(state)
        mine = {name: digests.of_parts(tree) for name, tree in items.items()}
        of_all = self._gather.to_main(str(step), mine)  # which alone writes them
        merged = {name: {part: sha for each in of_all for part, sha in each[name].items()} for name in items}
        self._write(step, items, merged)


def _check_shared(workdir: str) -> None:
    """Raises ValueError unless every process finds the main one's lock in the workdir."""
    owner = lock.Owner.read(f"{workdir}/{lock.NAME}")
    seen = {f"the owner of {lock.NAME}": f"{owner.pid} on {owner.host} since {owner.since}" if owner else None}
    try:
        pod.agree(seen)
    except ValueError as error:
        raise ValueError(
            f"train.checkpoint_writers=all needs a disk that all processes share, and {workdir} is another "
            "directory on some; use train.checkpoint_writers=main."
        ) from error
