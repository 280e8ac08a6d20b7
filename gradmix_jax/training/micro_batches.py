"""Passes over a batch in micro batches, for batches whose activations do not fit into memory.

The losses see the outputs of the whole batch. The gradient with respect to these outputs is pulled back through one
micro batch after the other, whose activations are recomputed first: each backward pass costs one more forward pass, and
memory holds the activations of only one micro batch. Gao et al. 2021, "Scaling deep contrastive learning batch size
under memory limited setup" (GradCache), arXiv 2101.06983, section 3.

Letters: B rows (views included), V views, D devices in these rows, m images of one device in a micro batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gradmix_jax.training.program import Program


def in_micro_batches(program: Program, function: Callable[[Any], Any], rows: Any, *, views: int) -> Any:
    """`function(rows)`, computed a micro batch at a time and ready to be differentiated.

    Args:
      program: gives `micro_batch_size` m, 0 for the whole batch at once, and `devices_in_rows` D.
      function: maps a tree of arrays with the rows of some images to a tree of arrays; it may close over other arrays.
      rows: a tree of arrays of B rows, view-major.
      views: V in B.

    Returns:
      The same as `function(rows)` if a row's outputs depend only on rows of its micro batch. Outputs whose size does
      not depend on the rows, such as new batch statistics and parameters of a head, are averaged over micro batches.
    """
    images = len(jax.tree.leaves(rows)[0]) // views
    size = program.devices_in_rows * program.micro_batch_size or images
    if size == images:
        return function(rows)
    # [V, D, n, m] -> [n, V, D, m]: with every mapping, each device computes m of its own images.
    count, blocks = images // size, (views, program.devices_in_rows)

    def split(x):
        return jnp.moveaxis(x.reshape(*blocks, count, -1, *x.shape[1:]), 2, 0).reshape(count, -1, *x.shape[1:])

    def join(x, whole):
        if x.shape[1:] == whole.shape:
            return jnp.mean(x, axis=0)
        return jnp.moveaxis(x.reshape(count, *blocks, -1, *x.shape[2:]), 0, 2).reshape(whole.shape)

    results = lax.map(jax.checkpoint(function, prevent_cse=False), jax.tree.map(split, rows))
    return jax.tree.map(join, results, jax.eval_shape(function, rows))


def place_in_micro_batch(program: Program, index_B: jax.Array, *, views: int) -> jax.Array:
    """The position, within its micro batch, of each row that `index_B` gives among all B."""
    images = index_B.shape[0] // views
    size = program.devices_in_rows * program.micro_batch_size or images
    of_device, within = images // program.devices_in_rows, size // program.devices_in_rows
    view, image = index_B // images, index_B % images
    return view * size + image // of_device * within + image % of_device % within
