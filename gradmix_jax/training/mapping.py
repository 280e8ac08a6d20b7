"""Everything that knows about `jax.pmap` and about processes.

State and data are replicated: every leaf gets a leading axis with one copy for each local device. Another mapping
(`jax.jit` with shardings, say) is a change of this file alone.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils

AXIS = "batch"


def pmap(function: Callable, *, devices: list[jax.Device] | None = None, donate: tuple[int, ...] = ()) -> Callable:
    """Compile `function`, written for one device with axis name `batch`, for all devices of all processes."""
    return jax.pmap(function, axis_name=AXIS, devices=devices, donate_argnums=donate)


def replicate(tree: Any, *, devices: list[jax.Device] | None = None) -> Any:
    """Copy every leaf to each local device, with a new leading axis for the devices."""
    devices = jax.local_devices() if devices is None else devices
    mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))

    def copy(leaf):
        # From the host, one device at a time: broadcasting first would need the whole stack on a single device, and a
        # program for every shape. Copied, because a CPU device may take the memory it is given as its own.
        leaf = np.asarray(leaf)
        shards = [jax.device_put(np.array(leaf[None]), device) for device in devices]
        return jax.make_array_from_single_device_arrays((len(devices), *leaf.shape), sharding, shards)

    return jax.tree.map(copy, tree)


def shard(tree: Any, *, devices: list[jax.Device] | None = None) -> Any:
    """Spread the rows of every leaf over the local devices: [rows, ...] -> [devices, rows / devices, ...]."""
    devices = jax.local_devices() if devices is None else devices
    mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
    split = lambda leaf: np.asarray(leaf).reshape(len(devices), -1, *leaf.shape[1:])
    return jax.tree.map(lambda leaf: jax.device_put(split(leaf), sharding), tree)


def to_host(tree: Any) -> Any:
    """The copy on this process's first device as NumPy arrays, without the device axis. Waits for the device."""
    # Whole shards are fetched, all at once, and indexed here: indexing on the device is one more program for each leaf.
    shards = jax.device_get(jax.tree.map(lambda leaf: leaf.addressable_data(0), tree))
    # Copied, because on a CPU a fetched array may be the very memory that the next step is donated.
    return jax.tree.map(lambda shard: np.array(shard[0]), shards)


def make_snapshot(tree: Any) -> Callable:
    """Compile a copy of trees like this replicated one, made on this process's first device, without the device axis.

    It returns as soon as the copy is dispatched, which is made before any program that is dispatched later, so that
    the original may be donated at once.
    """
    first = lambda tree: jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)
    squeeze = jax.jit(lambda tree: jax.tree.map(lambda leaf: lax.squeeze(leaf, (0,)), tree))
    copy = squeeze.lower(first(tree)).compile()
    return lambda tree: copy(first(tree))


def initialize() -> None:
    """Join the processes of a pod or cluster; call before anything else touches JAX.

    Raises:
      ValueError: JAX finds no sign of other processes.
    """
    try:
        jax.distributed.initialize()
    except ValueError as error:
        raise ValueError(
            f"--multihost finds no other processes ({str(error).rstrip('.')}); allowed: on a TPU pod, under SLURM, "
            "Open MPI or Kubernetes."
        ) from error


def is_main_process() -> bool:
    """Whether this process writes files and prints progress."""
    return jax.process_index() == 0


def broadcast(tree: Any) -> Any:
    """The main process's values, on every process; all have to call it with trees of the same shapes."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def preempted(step: int) -> bool:
    """Whether a process was told to end, agreed upon at a step by all of them; all have to ask at every step."""
    return multihost_utils.reached_preemption_sync_point(step)


def barrier(name: str) -> None:
    """Wait until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
