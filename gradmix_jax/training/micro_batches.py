"""Passes over a batch in micro batches, for batches whose activations do not fit into memory at once.

The losses see the outputs of the whole batch. The gradient with respect to these outputs is then pulled back through
one micro batch after the other, whose activations are computed again for it: each backward pass costs one more forward
pass, and only the activations of one micro batch are in memory. Gao et al. 2021, "Scaling deep contrastive learning
batch size under memory limited setup" (GradCache), arXiv 2101.06983, section 3.

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
      program: its `micro_batch_size` m, 0 for the whole batch at once, and `devices_in_rows` D.
      function: of a tree of arrays with the rows of some images to a tree of arrays; it may close over others.
      rows: a tree of arrays of B rows, view-major.
      views: V in B.

    Returns:
      What `function(rows)` would, where a row's outputs depend on no row of another micro batch. Outputs that do not
      grow with the rows, as new batch statistics and parameters of a head, are averaged over the micro batches.
    """
    images = len(jax.tree.leaves(rows)[0]) // views
    size = program.devices_in_rows * program.micro_batch_size or images
    if size == images:
        return function(rows)
    # [V, D, n, m] -> [n, V, D, m]: every device computes m images of its own, in any mapping.
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
    """The number, among the rows of its micro batch, of each row that `index_B` names among all B."""
    images = index_B.shape[0] // views
    size = program.devices_in_rows * program.micro_batch_size or images
    of_device, within = images // program.devices_in_rows, size // program.devices_in_rows
    view, image = index_B // images, index_B % images
    return view * size + image // of_device * within + image % of_device % within
