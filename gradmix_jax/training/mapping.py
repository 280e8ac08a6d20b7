"""Run a train step on all devices: by `pmap`, by `shard_map`, or with sharded state. Also what concerns processes.

A step is written for one device. A mapping compiles it for all of them and places its arguments. The rest of the
package does not know which one it has (`train.mapping`):

    mapping = MAPPINGS["pmap"]()
    step = mapping.compile_step(make_train_step(program, axis_name=mapping.axis_name))
    state, metrics = step(mapping.create(init), *mapping.replicate((images, labels, order)))
    mapping.to_host(metrics)
"""

import abc
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "batch"
# `sharded` keeps arrays of fewer elements whole: to gather them takes longer than their memory is worth.
SMALLEST_SHARDED = 1024


class Mapping(abc.ABC):
    """The step and its arrays on the devices of all processes.

    Args:
      devices: all devices of this program, also those of other processes; they need not be here to compile for them.

    Attributes:
      axis_name: of the step's collectives; None where the step is written for the global batch.
      mesh: all devices in a row, those of a process next to each other.
    """

    axis_name: str | None = AXIS

    def __init__(self, devices: list[jax.Device] | None = None):
        devices = jax.devices() if devices is None else devices
        # Rows of a streamed batch lie in the order of the processes that read them.
        self.devices = sorted(devices, key=lambda device: device.process_index)
        self.mesh = jax.sharding.Mesh(np.array(self.devices), (AXIS,))
        self._whole = NamedSharding(self.mesh, P())
        self._rows = NamedSharding(self.mesh, P(AXIS))

    def model(self, module: Any) -> Any:
        """The model as the step applies it."""
        return module

    @abc.abstractmethod
    def compile_step(self, step: Callable, *, streamed: bool = False) -> Callable:
        """Compile (state, *batch) -> (state, scalars), which takes the memory of the state it is given.

        Args:
          step: for one device, with collectives over `axis_name`; for the global batch where that is None.
          streamed: whether the batch comes from `spread`, and not from `replicate`.
        """

    @abc.abstractmethod
    def compile_replicated(self, function: Callable) -> Callable:
        """Compile a function of arrays from `replicate`, whose results are like them."""

    def create(self, init: Callable[[], Any]) -> Any:
        """The state that `init` returns, placed for the step."""
        return self.place_state(jax.device_get(init()))

    def place_state(self, state: Any) -> Any:
        """A state on the host, placed for the step. Every process has to call it with the same values."""
        return jax.tree.map(lambda leaf: _place(leaf, self._state_sharding(leaf)), state)

    def replicate(self, tree: Any) -> Any:
        """Arrays on the host, the same in every process, whole on every device."""
        return jax.tree.map(lambda leaf: _place(leaf, self._whole), tree)

    def spread(self, tree: Any) -> Any:
        """This process's rows of a global batch, spread over its devices."""
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(self._rows, leaf), tree)

    def to_host(self, tree: Any) -> Any:
        """Scalars of a step, or other whole arrays, as NumPy arrays. Waits for the device.

        A whole state, too, where all devices belong to this process.
        """
        # Copied, because on a CPU a fetched array may be the very memory that the next step is donated.
        return jax.tree.map(np.array, jax.device_get(tree))

    def make_snapshot(self, state: Any, *, wanted: bool = True) -> Callable[[Any], Any]:
        """Compile a copy of states like this one, without what the mapping adds, for `jax.device_get`.

        It returns as soon as the copy is dispatched, which is made before any program that is dispatched later, so that
        the original may be donated at once.

        Args:
          state: its shapes count.
          wanted: whether this process needs the copy; all processes have to call what is returned.
        """
        if not wanted:
            return lambda state: None
        first = lambda tree: jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)
        copy = jax.jit(self._copy).lower(first(state)).compile()
        return lambda state: copy(first(state))

    def abstract(self, state: Any, batch: Any) -> tuple[Any, ...]:
        """Shapes and shardings of the arguments of the compiled step.

        Args:
          state, batch: shapes of one device's arrays; the batch is that of `replicate`.
        """
        shape = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        state = jax.tree.map(lambda leaf: shape(leaf, self._state_sharding(leaf)), state)
        return state, *jax.tree.map(lambda leaf: shape(leaf, self._whole), batch)

    def _state_sharding(self, leaf: Any) -> NamedSharding:
        return self._whole

    @staticmethod
    def _copy(tree: Any) -> Any:
        return jax.tree.map(jnp.copy, tree)


class Pmap(Mapping):
    """`jax.pmap`: every array gets a leading axis with one copy for each local device."""

    def __init__(self, devices: list[jax.Device] | None = None):
        super().__init__(devices)
        self._devices = devices  # `jax.pmap` orders all devices by itself
        local = [device for device in self.devices if device.process_index == jax.process_index()] or self.devices
        self._stacked = NamedSharding(jax.sharding.Mesh(np.array(local), (AXIS,)), P(AXIS))
        self._count = len(local)

    def compile_step(self, step: Callable, *, streamed: bool = False) -> Callable:
        return jax.pmap(step, axis_name=AXIS, devices=self._devices, donate_argnums=0)

    def compile_replicated(self, function: Callable) -> Callable:
        return jax.pmap(function, axis_name=AXIS, devices=self._devices)

    def place_state(self, state: Any) -> Any:
        return self.replicate(state)

    def replicate(self, tree: Any) -> Any:
        stack = lambda leaf: np.broadcast_to(leaf, (self._count, *np.shape(leaf)))
        return jax.tree.map(lambda leaf: _place(stack(leaf), self._stacked), tree)

    def spread(self, tree: Any) -> Any:
        split = lambda leaf: np.asarray(leaf).reshape(self._count, -1, *leaf.shape[1:])
        return jax.tree.map(lambda leaf: jax.device_put(split(leaf), self._stacked), tree)

    def to_host(self, tree: Any) -> Any:
        # Whole shards are fetched, all at once, and indexed here: indexing on the device is one more program a leaf.
        shards = jax.device_get(jax.tree.map(lambda leaf: leaf.addressable_data(0), tree))
        return jax.tree.map(lambda shard: np.array(shard[0]), shards)

    def abstract(self, state: Any, batch: Any) -> tuple[Any, ...]:
        stack = lambda leaf: jax.ShapeDtypeStruct((self._count, *leaf.shape), leaf.dtype, sharding=self._stacked)
        return jax.tree.map(stack, (state, *batch))

    @staticmethod
    def _copy(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: lax.squeeze(leaf, (0,)), tree)


class ShardMap(Mapping):
    """`jax.jit` of `jax.shard_map`: the same collectives as `Pmap`, arrays without an axis for devices."""

    def compile_step(self, step: Callable, *, streamed: bool = False) -> Callable:
        return jax.jit(self._mapped(step, P(AXIS) if streamed else P()), donate_argnums=0)

    def compile_replicated(self, function: Callable) -> Callable:
        return jax.jit(self._mapped(function, P()))

    def _mapped(self, function: Callable, of_batch: P) -> Callable:
        def mapped(first, *rest):
            specs = (P(), *(of_batch for _ in rest))
            # Whether results are the same on all devices is not checked: to the checker, statistics of random numbers
            # that differ in their device's index alone do not seem so.
            over_mesh = jax.shard_map(function, mesh=self.mesh, in_specs=specs, out_specs=P(), check_vma=False)
            return over_mesh(first, *rest)

        return mapped


class Sharded(Mapping):
    """`jax.jit` of the step for the global batch, its state spread over the devices: for models that outgrow one.

    Every large array of the state (parameters, moments, averages, the key encoder) is split along its longest axis
    that the devices divide. The model gathers its parameters to use them, its gradient is scattered, and the batch is
    spread over the devices (ZeRO, arXiv 1910.02054, stage 3). Statistics and contrasts are global by themselves.
    """

    axis_name = None

    def model(self, module: Any) -> Any:
        return _ShardedModel(self, module)

    def compile_step(self, step: Callable, *, streamed: bool = False) -> Callable:
        def global_step(state, *batch):
            state, metrics = step(state, *batch)
            return self.split(state), lax.with_sharding_constraint(metrics, self._whole)

        return jax.jit(global_step, donate_argnums=0)

    def compile_replicated(self, function: Callable) -> Callable:
        return jax.jit(function, out_shardings=self._whole)

    def create(self, init: Callable[[], Any]) -> Any:
        # Where it belongs from the start: it may not fit one device.
        shardings = jax.tree.map(self._state_sharding, jax.eval_shape(init))
        return jax.jit(init, out_shardings=shardings)()

    def make_snapshot(self, state: Any, *, wanted: bool = True) -> Callable[[Any], Any]:
        if jax.process_count() == 1:
            return jax.jit(self._copy).lower(state).compile()
        # Each process has a part. Array by array, so that no more than one is whole on a device, and at once: a
        # collective of another thread could meet a step of another process.
        gather = jax.jit(jnp.copy, out_shardings=self._whole)

        def fetch(leaf):
            whole = jax.block_until_ready(gather(leaf))
            return np.array(whole.addressable_data(0)) if wanted else None

        snapshot = lambda state: jax.tree.map(fetch, state)
        snapshot(state)  # compiles
        return snapshot

    def split(self, tree: Any) -> Any:
        """Within a compiled function: large arrays split over the devices, as the state is."""
        return jax.tree.map(lambda leaf: lax.with_sharding_constraint(leaf, self._state_sharding(leaf)), tree)

    def rows(self, array_B: jax.Array) -> jax.Array:
        """Within a compiled function: the rows of a batch spread over the devices."""
        return lax.with_sharding_constraint(array_B, self._rows)

    def gather(self, tree: Any) -> Any:
        """Within a compiled function: whole arrays on every device; what is differentiated is split again."""

        @jax.custom_vjp
        def whole(tree):
            return lax.with_sharding_constraint(tree, self._whole)

        whole.defvjp(lambda tree: (whole(tree), None), lambda _, cotangent: (self.split(cotangent),))
        return whole(tree)

    def _state_sharding(self, leaf: Any) -> NamedSharding:
        count, shape = len(self.devices), np.shape(leaf)
        axes = [axis for axis, size in enumerate(shape) if size % count == 0]
        if math.prod(shape) < SMALLEST_SHARDED or not axes:
            return self._whole
        longest = max(axes, key=lambda axis: shape[axis])
        return NamedSharding(self.mesh, P(*(None,) * longest, AXIS))


class _ShardedModel:
    """A module whose `apply` spreads its images over the devices and gathers its parameters; else like the module."""

    def __init__(self, mapping: Sharded, module: Any):
        self._mapping, self._module = mapping, module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def apply(self, variables: dict[str, Any], images_BxHxWxC: jax.Array, **options: Any) -> Any:
        variables = variables | {"params": self._mapping.gather(variables["params"])}
        return self._module.apply(variables, self._mapping.rows(images_BxHxWxC), **options)


MAPPINGS: dict[str, type[Mapping]] = {"pmap": Pmap, "shard_map": ShardMap, "sharded": Sharded}


def _place(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """An array on the host, put on this process's devices."""
    # One device at a time: otherwise it could need the whole array on a single device, and a program for every shape.
    # Copied, because a CPU device may take the memory it is given as its own.
    leaf = np.asarray(leaf)
    indices = sharding.addressable_devices_indices_map(leaf.shape)
    shards = [jax.device_put(np.array(leaf[index]), device) for device, index in indices.items()]
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, shards)


def is_main_process() -> bool:
    """Whether this process writes files and prints progress."""
    return jax.process_index() == 0


def broadcast(tree: Any) -> Any:
    """The main process's values, on every process; all have to call it with trees of the same shapes."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def barrier(name: str) -> None:
    """Wait until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
