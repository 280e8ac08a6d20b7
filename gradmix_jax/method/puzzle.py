"""PuzzleMix for whole batches on the device, which finds masks and moves of cells in a fixed number of rounds.

Letters: B batch (views included), H W image, C image channels, h w cells of a grid, N cells, P values of a cell.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gradmix_jax.method import masks
from gradmix_jax.method.draws import draw
from gradmix_jax.method.fills import FILLS, blend, kept_share

Mixed = tuple[jax.Array, jax.Array, jax.Array]


def puzzlemix(
    key: jax.Array,
    images_BxHxWxC: jax.Array,
    maps_BxHxW: jax.Array,
    *,
    keep_range: tuple[float, float],
    fill: str,
    views: int,
    grid: int,
    smoothness: float,
    distance: float,
    sweeps: int,
    keep_B: jax.Array | None = None,
    border: int = 0,
) -> Mixed:
    """Mask the cells that matter least to the image and most to its partner, and move important cells into view.

    Source: PuzzleMix, Kim et al. 2020, arXiv 2009.06962, equation 4. Differences, so that a batch is mixed at once:
    the mask is binary, has exactly the drawn share of cells in place of a prior on it, and is the best of `sweeps`
    rounds of a local search in place of graph cuts (see `choose`); the smoothness term that depends on pixel values is
    left out; cells move by as many rounds of proposals as there are cells (see `moves`). The saliency is the map of the
    step.

    Args:
      key: randomness of partners, keep shares and noise.
      images_BxHxWxC: images in [0, 1]; B = views * images, view-major.
      maps_BxHxW: attribution maps, at least 0.
      keep_range, keep_B, views, border: see `boxes`.
      fill: with a partner, its moved cells; else as for the other methods.
      grid: cells along a side; divides both.
      smoothness: how much a cell is drawn to the choice of its four neighbors, in mean saliencies.
      distance: cost of moving a cell across the whole image, in mean saliencies.
      sweeps: rounds of the search for the mask.

    Returns:
      mixed images (shape and dtype of the input), weight_B and partner_B.

    Raises:
      ValueError: a grid that does not divide the image.
    """
    batch, height, width, _ = images_BxHxWxC.shape
    if height % grid or width % grid:
        raise ValueError(f"grid must divide images of {height} x {width} pixels, got {grid}.")
    drawn = draw(key, batch, views=views, keep_range=keep_range, keep_B=keep_B)
    cells_Bxhxw = masks.cell_means(maps_BxHxW, (grid, grid))
    mean_Bx1x1 = jnp.mean(cells_Bxhxw, axis=(1, 2), keepdims=True)
    saliency_Bxhxw = cells_Bxhxw / jnp.where(mean_Bx1x1 > 0, mean_Bx1x1, 1.0)
    other_Bxhxw = saliency_Bxhxw[drawn.partner_B]
    mask_Bxhxw = choose(other_Bxhxw - saliency_Bxhxw, drawn.keep_B, smoothness=smoothness, sweeps=sweeps)
    flat = lambda x: x.reshape(batch, -1)
    options = dict(grid=grid, distance=distance, rounds=grid**2)
    own_BxN = moves(flat(~mask_Bxhxw), flat(saliency_Bxhxw), **options)
    theirs_BxN = moves(flat(mask_Bxhxw), flat(other_Bxhxw), **options)
    own = move_cells(images_BxHxWxC, own_BxN, grid=grid)
    mask_BxHxW = masks.soften(masks.expand_cells(mask_Bxhxw, (height, width)), border)
    weight_B = kept_share(mask_BxHxW)
    if FILLS[fill].needs_partner:
        theirs = move_cells(images_BxHxWxC[drawn.partner_B], theirs_BxN, grid=grid)
        content = FILLS[fill].content(drawn.fill_key, own, theirs, mask_BxHxW)
        return blend(mask_BxHxW, content, own), weight_B, drawn.partner_B
    content = FILLS[fill].content(drawn.fill_key, own, None, mask_BxHxW)
    return blend(mask_BxHxW, content, own), weight_B, jnp.arange(batch, dtype=jnp.int32)


def choose(gain_Bxhxw: jax.Array, keep_B: jax.Array, *, smoothness: float, sweeps: int) -> jax.Array:
    """The round((1 - keep) * N) cells to mask: large gain, like their neighbors; mask_Bxhxw, bool.

    The first choice is by gain alone. Each sweep chooses again by gain + smoothness * (mean over the four neighbors of
    +1 where masked, -1 where not; 0 outside). The result is the choice of the largest worth: the sum over cells of gain
    where masked and -gain where not, plus the sum over pairs of neighbors of +smoothness / 4 where they are alike and
    -smoothness / 4 where not. All cells choose at once, so a sweep may lower it too: two choices can alternate forever.
    """
    mask_Bxhxw = masks.threshold(gain_Bxhxw, keep_B)
    best_Bxhxw, highest_B = mask_Bxhxw, jnp.full(len(gain_Bxhxw), -jnp.inf)
    for sweep in range(sweeps + 1):
        signs = jnp.pad(jnp.where(mask_Bxhxw, 1.0, -1.0), ((0, 0), (1, 1), (1, 1)))
        around = signs[:, :-2, 1:-1] + signs[:, 2:, 1:-1] + signs[:, 1:-1, :-2] + signs[:, 1:-1, 2:]
        pull_Bxhxw = smoothness * around / 4
        # Half the pull, because each pair pulls on both of its cells.
        worth_B = jnp.sum(signs[:, 1:-1, 1:-1] * (gain_Bxhxw + pull_Bxhxw / 2), axis=(1, 2))
        is_best_B = worth_B > highest_B
        best_Bxhxw = jnp.where(is_best_B[:, None, None], mask_Bxhxw, best_Bxhxw)
        highest_B = jnp.maximum(highest_B, worth_B)
        if sweep < sweeps:
            mask_Bxhxw = masks.threshold(gain_Bxhxw + pull_Bxhxw, keep_B)
    return best_Bxhxw


def moves(seen_BxN: jax.Array, saliency_BxN: jax.Array, *, grid: int, distance: float, rounds: int) -> jax.Array:
    """For every place, the cell that moves there: source_BxN int32.

    A place that is seen is worth the saliency of the cell that it shows, less `distance` times the length of the move
    (1 is the diagonal of the grid); a place that is not seen is worth the latter alone. In every round each place asks
    for the cell that is worth most to it among those that have not refused it, and a cell refuses all but the place
    that it is worth most to (of ties, the first). Refusals that the last round leaves open show a cell twice: in random
    saliencies of 4 x 4 cells, 36 % of the places that are seen after 4 rounds, none after 16.
    """
    places_Nx2 = np.stack(np.divmod(np.arange(grid**2), grid), axis=1)
    lengths_NxN = np.linalg.norm(places_Nx2[:, None] - places_Nx2[None], axis=2) / max(1.0, np.sqrt(2) * (grid - 1))
    worth_BxNxN = jnp.where(seen_BxN[:, :, None], saliency_BxN[:, None, :], 0.0)
    worth_BxNxN = worth_BxNxN - distance * lengths_NxN[None].astype(np.float32)

    def one_round(_, open_BxNxN):
        asked_BxNxN = jax.nn.one_hot(jnp.argmax(open_BxNxN, axis=2), grid**2, dtype=bool)
        best_BxN = jnp.argmax(jnp.where(asked_BxNxN, worth_BxNxN, -jnp.inf), axis=1)
        refused = asked_BxNxN & (jnp.arange(grid**2)[None, :, None] != best_BxN[:, None, :])
        return jnp.where(refused, -jnp.inf, open_BxNxN)

    open_BxNxN = jax.lax.fori_loop(0, rounds, one_round, worth_BxNxN)
    return jnp.argmax(open_BxNxN, axis=2).astype(jnp.int32)


def move_cells(images_BxHxWxC: jax.Array, source_BxN: jax.Array, *, grid: int) -> jax.Array:
    """The images with cell n replaced by their cell source[n]."""
    batch, height, width, channels = images_BxHxWxC.shape
    sides = (batch, grid, height // grid, grid, width // grid, channels)
    cells_BxNxP = images_BxHxWxC.reshape(sides).transpose(0, 1, 3, 2, 4, 5).reshape(batch, grid**2, -1)
    moved_BxNxP = jnp.take_along_axis(cells_BxNxP, source_BxN[:, :, None], axis=1)
    moved = moved_BxNxP.reshape(batch, grid, grid, sides[2], sides[4], channels).transpose(0, 1, 3, 2, 4, 5)
    return moved.reshape(images_BxHxWxC.shape)
