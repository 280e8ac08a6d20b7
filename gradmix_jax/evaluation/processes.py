"""Feature extraction shared by the processes of a pod: the main process asks, the others serve.

Requests travel as text through the store of `jax.distributed`, outputs through one gather per block of rows. Each
process reads and embeds a contiguous share of the images; scores and metrics are computed by the main process.
"""

import itertools
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gradmix_jax import pod

# Rows gathered at a time from every process.
ROWS = 8192

# Numbers the messages of this interpreter; equal on all processes, because all send and receive all of them.
_numbers = itertools.count()


class Team:
    """All processes of this program. With one process, requests go nowhere and nothing is gathered."""

    def __init__(self):
        self.index, self.count = jax.process_index(), jax.process_count()

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def send(self, kind: str, **content: Any) -> None:
        """Send a request of the main process to all others."""
        if self.count > 1:
            pod.store().key_value_set(_key(), json.dumps([kind, content]))

    def receive(self) -> tuple[str, dict[str, Any]]:
        """The next request. Raises RuntimeError after `pod.agreement.WAIT` seconds without one."""
        return tuple(json.loads(pod.get(_key())))

    def agree(self, problem: str) -> None:
        """Raises ValueError on all processes if one of them has a problem; "" means none."""
        if self.count == 1:
            problems = [problem]
        else:
            prefix = _key()
            # The store takes no empty strings.
            pod.store().key_value_set(f"{prefix}/{self.index}", f"={problem}")
            problems = [pod.get(f"{prefix}/{each}")[1:] for each in range(self.count)]
        for index, each in enumerate(problems):
            if each:
                raise ValueError(each if self.count == 1 else f"process {index}: {each}")

    def gather(self, x_NxD: np.ndarray, size: int) -> np.ndarray | None:
        """The rows of all shares in their order, [size, D], on the main process; None on the others.

        Args:
          x_NxD: rows of this process's share, see `images.share_of`.
          size: number of all rows.
        """
        if self.count == 1:
            return x_NxD
        each = -(-size // self.count)
        # Without 64-bit mode, JAX would truncate 64-bit integers.
        rows = np.ascontiguousarray(x_NxD).view(np.uint32) if x_NxD.dtype == np.uint64 else x_NxD
        shape = rows.shape[1:] if x_NxD.dtype != np.uint64 else (2,)
        padded = np.zeros((each, *shape), rows.dtype)
        padded[: len(x_NxD)] = rows.reshape(-1, *shape)
        blocks = []
        for start in range(0, each, ROWS):
            block = multihost_utils.process_allgather(padded[start : start + ROWS])
            blocks += [np.asarray(block)] if self.is_main else []
        if not self.is_main:
            return None
        whole = np.concatenate(blocks, axis=1).reshape(-1, *shape)[:size]
        return np.ascontiguousarray(whole).view(np.uint64)[:, 0] if x_NxD.dtype == np.uint64 else whole


def together(team: Team, compute: Callable[[], Any]) -> Any:
    """`compute()`; if it fails on one of the processes, all of them raise the same ValueError."""
    result, problem, cause = None, "", None
    try:
        result = compute()
    except Exception as error:
        if team.count == 1:
            raise
        problem, cause = str(error).splitlines()[0] if str(error) else type(error).__name__, error
    try:
        team.agree(problem)
    except ValueError as error:
        raise error from cause
    return result


def _key() -> str:
    return f"gradmix_jax/evaluation/{next(_numbers)}"
