"""SHA-256 of the arrays in a checkpoint: of a whole tree, or of the parts that several processes have written."""

import hashlib
from typing import Any

import jax
import numpy as np


def of_tree(tree: Any) -> str:
    """SHA-256 of all arrays of a tree, in its order: dtypes, shapes and bytes."""
    sha = hashlib.sha256()
    for leaf in map(np.ascontiguousarray, jax.tree.leaves(tree)):
        sha.update(f"{leaf.dtype} {leaf.shape}".encode())
        sha.update(leaf.view(np.uint8).data if leaf.size and leaf.ndim else leaf.tobytes())
    return sha.hexdigest()


def of_parts(tree: Any) -> dict[str, str]:
    """{part: SHA-256} of the parts of global arrays on this process; of equal copies, one process has the part.

    A part is named by the number of its array in the tree and its range on each axis, such as "12 0:8,0:64".
    """
    return {
        f"{number} {_ranges(shard.index, leaf.shape)}": of_tree(np.asarray(shard.data))
        for number, leaf in enumerate(jax.tree.leaves(tree))
        for shard in leaf.addressable_shards
        if shard.replica_id == 0
    }


def agree(recorded: str | dict[str, str], tree: Any) -> bool:
    """Whether arrays on the host have the recorded digest, which is of the tree or of its parts; "": unknown."""
    if not isinstance(recorded, dict):
        return recorded in ("", of_tree(tree))
    leaves = jax.tree.leaves(tree)
    sizes = [0] * len(leaves)
    for part, sha256 in recorded.items():
        number, _, ranges = part.partition(" ")
        slices = tuple(slice(*map(int, each.split(":"))) for each in ranges.split(",") if each)
        array = np.asarray(leaves[int(number)])[slices]
        if of_tree(array) != sha256:
            return False
        sizes[int(number)] += array.size
    return sizes == [leaf.size for leaf in leaves]


def _ranges(index: tuple[slice, ...], shape: tuple[int, ...]) -> str:
    ranges = [each.indices(size) for each, size in zip(index, shape, strict=True)]
    return ",".join(f"{start}:{stop}" for start, stop, _ in ranges)
