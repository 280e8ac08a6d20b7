"""Runs a train step on all devices, by `pmap`, by `shard_map`, or with sharded state; helpers for several processes.

A step is written for one device. A mapping compiles it for all of them and places its arguments. The rest of the
package does not know which mapping it uses (`train.mapping`):

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
# `sharded` keeps arrays with fewer elements whole, because gathering them costs more time than their memory is worth.
SMALLEST_SHARDED = 1024


class Mapping(abc.ABC):
    """The step and its arrays on the devices of all processes.

    Args:
      devices: all devices of the program, including those of other processes; for compiling alone they need not exist.

    Attributes:
      axis_name: axis of the step's collectives; None if the step is written for the global batch.
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
        """Compile (state, *batch) -> (state, scalars), to which the given state is donated.

        Args:
          step: the step for one device, with collectives over `axis_name`; for the global batch if that is None.
          streamed: whether the batch comes from `spread`, not from `replicate`.
        """

    @abc.abstractmethod
    def compile_replicated(self, function: Callable) -> Callable:
        """Compile a function of arrays from `replicate`, whose results are placed like them."""

    def create(self, init: Callable[[], Any]) -> Any:
        """The state that `init` returns, placed for the step."""
        return self.place_state(jax.device_get(init()))

    def place_state(self, state: Any) -> Any:
        """A state on the host, placed for the step. Every process must call it with the same values."""
        return jax.tree.map(lambda leaf: _place(leaf, self._state_sharding(leaf)), state)

    def replicate(self, tree: Any) -> Any:
        """Arrays on the host, equal in every process, placed whole on every device."""
        return jax.tree.map(lambda leaf: _place(leaf, self._whole), tree)

    def spread(self, tree: Any) -> Any:
        """This process's rows of a global batch, spread over its devices."""
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(self._rows, leaf), tree)

    def to_host(self, tree: Any) -> Any:
        """Scalars of a step, or other whole arrays, as NumPy arrays. Waits for the device.

        Also a whole state, if all devices belong to this process.
        """
        # Copied, because on a CPU a fetched array may share the memory that is donated to the next step.
        return jax.tree.map(np.array, jax.device_get(tree))

    def make_snapshot(self, state: Any, *, wanted: bool = True) -> Callable[[Any], Any]:
        """Compile a function that copies states like this one for `jax.device_get`, without axes of the mapping.

        The function returns as soon as the copy is dispatched. The copy runs before any program that is dispatched
        later, so the original may be donated at once.

        Args:
          state: only its shapes are used.
          wanted: whether this process needs the copy; all processes must call the returned function.
        """
        if not wanted:
            return lambda state: None
        first = lambda tree: jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)
        copy = jax.jit(self._copy).lower(first(state)).compile()
        return lambda state: copy(first(state))

    def make_shared_snapshot(self, state: Any) -> Callable[[Any], Any]:
        """As `make_snapshot`, but of global arrays, of which each process keeps its part, without collectives."""
        firsts = {device.process_index: device for device in reversed(self.devices)}
        one_each = NamedSharding(jax.sharding.Mesh(np.array([firsts[index] for index in sorted(firsts)]), (AXIS,)), P())
        mine = firsts[jax.process_index()]

        def local(leaf):
            return next(shard.data for shard in leaf.addressable_shards if shard.device == mine)

        def as_global(leaf):
            return jax.make_array_from_single_device_arrays(leaf.shape, one_each, [leaf])

        copy = jax.jit(self._copy).lower(jax.tree.map(local, state)).compile()
        return lambda state: jax.tree.map(as_global, copy(jax.tree.map(local, state)))

    def abstract(self, state: Any, batch: Any) -> tuple[Any, ...]:
        """Shapes and shardings of the arguments of the compiled step.

        Args:
          state, batch: shapes of one device's arrays; the batch is one for `replicate`.
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
        # All shards are fetched whole, at once, and indexed here: indexing on the device needs a program per leaf.
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
            # Results are not checked to be the same on all devices, because the checker does not see that statistics
            # over random numbers folded with the device's index are.
            over_mesh = jax.shard_map(function, mesh=self.mesh, in_specs=specs, out_specs=P(), check_vma=False)
            return over_mesh(first, *rest)

        return mapped


class Sharded(Mapping):
    """`jax.jit` of the step for the global batch, with its state sharded, for models that outgrow one device.

    Every large array of the state (parameters, moments, averages, the key encoder) is split along its longest axis
    whose size the number of devices divides. The model gathers its parameters before use, its gradient is scattered,
    and the batch is spread over the devices (ZeRO, arXiv 1910.02054, stage 3). Statistics and contrasts need no
    collectives in the code, because they are computed over the global batch.
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
        # Sharded from the start, because it may not fit on one device.
        shardings = jax.tree.map(self._state_sharding, jax.eval_shape(init))
        return jax.jit(init, out_shardings=shardings)()

    def make_snapshot(self, state: Any, *, wanted: bool = True) -> Callable[[Any], Any]:
        if jax.process_count() == 1:
            return jax.jit(self._copy).lower(state).compile()
        # Each process has a part. The arrays are gathered one by one, so that a device holds only one of them whole.
        # Each is waited for, because a collective from another thread could meet a step of another process.
        gather = jax.jit(jnp.copy, out_shardings=self._whole)

        def fetch(leaf):
            whole = jax.block_until_ready(gather(leaf))
            return np.array(whole.addressable_data(0)) if wanted else None

        snapshot = lambda state: jax.tree.map(fetch, state)
        snapshot(state)  # compiles
        return snapshot

    def make_shared_snapshot(self, state: Any) -> Callable[[Any], Any]:
        return jax.jit(self._copy).lower(state).compile()

    def split(self, tree: Any) -> Any:
        """Within a compiled function: large arrays split over the devices like the state."""
        return jax.tree.map(lambda leaf: lax.with_sharding_constraint(leaf, self._state_sharding(leaf)), tree)

    def rows(self, array_B: jax.Array) -> jax.Array:
        """Within a compiled function: the rows of a batch spread over the devices."""
        return lax.with_sharding_constraint(array_B, self._rows)

    def gather(self, tree: Any) -> Any:
        """Within a compiled function: arrays whole on every device; their gradient is split again."""

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
    """A module whose `apply` spreads its images over the devices and gathers its parameters; otherwise unchanged."""

    def __init__(self, mapping: Sharded, module: Any):
        self._mapping, self._module = mapping, module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def apply(self, variables: dict[str, Any], images_BxHxWxC: jax.Array, **options: Any) -> Any:
        variables = variables | {"params": self._mapping.gather(variables["params"])}
        return self._module.apply(variables, self._mapping.rows(images_BxHxWxC), **options)


MAPPINGS: dict[str, type[Mapping]] = {"pmap": Pmap, "shard_map": ShardMap, "sharded": Sharded}


def _place(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """An array on the host, placed on this process's devices."""
    # One device at a time; otherwise JAX could place the whole array on one device and compile a program per shape.
    # Copied, because a CPU device may use the given memory directly.
    leaf = np.asarray(leaf)
    indices = sharding.addressable_devices_indices_map(leaf.shape)
    shards = [jax.device_put(np.array(leaf[index]), device) for device, index in indices.items()]
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, shards)


def is_main_process() -> bool:
    """Whether this process writes files and prints progress."""
    return jax.process_index() == 0


def broadcast(tree: Any) -> Any:
    """The main process's values, on every process; all must call it with trees of the same shapes."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def barrier(name: str) -> None:
    """Wait until every process has reached this point."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
