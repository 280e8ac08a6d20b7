"""Mixing methods against float64 NumPy with the same draws: boxes, cells and tokens in loops over images."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradmix_jax.method import draws, masks, mix, puzzle, tokens

# 2 views of 3 images.
ROWS, VIEWS, SIZE, PATCH = 6, 2, 12, 3
GRID = SIZE // PATCH
IMAGES = np.random.default_rng(0).random((ROWS, SIZE, SIZE, 2), np.float32)
MAPS = np.random.default_rng(1).random((ROWS, SIZE, SIZE), np.float32)
KEEP_RANGE = (0.5, 0.9)


# These tests spend most of their time compiling.
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def called(function, key, **options):
    """The results of a method as NumPy arrays."""
    method = quick(partial(function, views=VIEWS, **options))
    return jax.tree.map(np.asarray, method(key, IMAGES, MAPS))


def drawn(key, more=0, keep_range=KEEP_RANGE):
    return draws.draw(key, ROWS, views=VIEWS, keep_range=keep_range, more=more)


def largest(values, count):
    """A mask of the `count` largest values of an array; the first ones among ties."""
    mask = np.zeros(values.size, bool)
    mask[np.argsort(-values.reshape(-1).astype(np.float64), stable=True)[:count]] = True
    return mask.reshape(values.shape)


def cell_means(values, grid):
    """By loops over pixels: pixel r lies in row r * grid // size."""
    total, count = np.zeros((grid, grid)), np.zeros((grid, grid))
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            cell = row * grid // values.shape[0], column * grid // values.shape[1]
            total[cell] += float(values[row, column])
            count[cell] += 1
    return total / count


def expanded(cells, size=SIZE):
    grid = len(cells)
    return np.array([[cells[r * grid // size, c * grid // size] for c in range(size)] for r in range(size)])


def check(result, expected_masks, partner, label_partner=None, weight=None):
    """Check a result against hard masks filled with the partner's pixels."""
    expected = np.where(expected_masks[..., None], IMAGES[partner], IMAGES)
    np.testing.assert_array_equal(result[0], expected)
    weight = 1 - expected_masks.mean(axis=(1, 2)) if weight is None else weight
    np.testing.assert_allclose(result[1], weight, atol=1e-6)
    np.testing.assert_array_equal(result[2], partner if label_partner is None else label_partner)


def pixels(keep):
    return round((1 - float(np.float32(keep))) * SIZE**2)


def test_patches_mask_whole_tokens_where_their_mean_is_largest(key):
    result = called(mix.gradmix, key, mask="patches", patch_size=PATCH)
    draw = drawn(key)
    expected = [
        expanded(largest(cell_means(map_HxW, GRID), round((1 - float(keep)) * GRID**2)))
        for map_HxW, keep in zip(MAPS, draw.keep_B)
    ]
    check(result, np.stack(expected), np.asarray(draw.partner_B))


def test_cells_of_a_grid_that_does_not_divide_the_image():
    keep = np.linspace(0.2, 0.9, ROWS, dtype=np.float32)
    found = np.asarray(jax.jit(partial(masks.cells, grid_hxw=(5, 7)))(MAPS, keep))
    for mask, map_HxW, one in zip(found, MAPS, keep):
        total, count = np.zeros((5, 7)), np.zeros((5, 7))
        for row in range(SIZE):
            for column in range(SIZE):
                total[row * 5 // SIZE, column * 7 // SIZE] += float(map_HxW[row, column])
                count[row * 5 // SIZE, column * 7 // SIZE] += 1
        chosen = largest(total / count, round((1 - float(one)) * 35))
        expected = [[chosen[r * 5 // SIZE, c * 7 // SIZE] for c in range(SIZE)] for r in range(SIZE)]
        np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("border", [2])
def test_soft_borders_are_means_over_squares(border, key):
    """In weights and pixels alike, the partner's share is the mask."""
    sharp = np.asarray(masks.threshold(MAPS, drawn(key).keep_B)).astype(np.float64)
    soft = np.zeros_like(sharp)
    for row in range(SIZE):
        for column in range(SIZE):
            rows = slice(max(row - border, 0), row + border + 1)
            columns = slice(max(column - border, 0), column + border + 1)
            soft[:, row, column] = sharp[:, rows, columns].mean(axis=(1, 2))
    mixed, weight, partner = called(mix.gradmix, key, border=border)
    expected = soft[..., None] * IMAGES[partner] + (1 - soft[..., None]) * IMAGES
    np.testing.assert_allclose(mixed, expected, atol=2e-6)
    np.testing.assert_allclose(weight, 1 - soft.mean(axis=(1, 2)), atol=2e-6)


def test_backmix_exchanges_what_is_background_in_both(key):
    result = called(mix.backmix, key, keep_range=KEEP_RANGE, mask="threshold", fill="partner")
    draw = drawn(key)
    partner = np.asarray(draw.partner_B)
    background = np.stack([largest(-map_HxW, pixels(keep)) for map_HxW, keep in zip(MAPS, draw.keep_B)])
    check(result, background & background[partner], partner, label_partner=np.arange(ROWS))
    assert (background & background[partner]).any()


def test_attentive_cutmix_pastes_the_partners_most_attended_cells(key):
    result = called(mix.attentive_cutmix, key, fill="partner", grid=5, cells=6)
    partner = np.asarray(drawn(key).partner_B)
    expected = np.stack([expanded(largest(cell_means(MAPS[other], 5), 6)) for other in partner])
    check(result, expected, partner)


@pytest.mark.parametrize("quantile", [0.01, 0.3])
def test_keep_cutout_cuts_where_the_map_is_small(quantile, key):
    result = called(mix.keep_cutout, key, keep_range=KEEP_RANGE, fill="partner", quantile=quantile)
    draw = drawn(key, more=1)
    lots = np.asarray(jax.random.uniform(draw.keys[0], (ROWS, SIZE**2)))
    expected = []
    for map_HxW, keep, lot in zip(MAPS.astype(np.float64), np.asarray(draw.keep_B), lots):
        side = round(SIZE * np.sqrt(1 - float(keep)))
        boxes = np.zeros((SIZE**2, SIZE, SIZE), bool)
        for place in range(SIZE**2):
            top, left = place // SIZE - side // 2, place % SIZE - side // 2
            boxes[place, max(top, 0) : top + side, max(left, 0) : left + side] = True
        covered = (boxes * map_HxW).sum(axis=(1, 2))
        allowed = covered <= np.sort(covered)[max(1, round(quantile * SIZE**2)) - 1] + 1e-9
        expected.append(boxes[np.argmax(np.where(allowed, lot, -1))])
    check(result, np.stack(expected), np.asarray(draw.partner_B))


def test_resizemix_boxes_lie_inside_and_have_the_drawn_sides():
    """Over many keys they reach every edge; the weight is the area."""
    tops, bottoms = set(), set()
    call = quick(partial(mix.resizemix, views=VIEWS, scale=(0.1, 0.8), fill="partner"))
    for seed in range(30):
        key = jax.random.key(seed)
        mixed, weight, partner = map(np.asarray, call(key, IMAGES, None))
        draw = drawn(key, more=2, keep_range=(0.1, 0.8))
        np.testing.assert_array_equal(partner, draw.partner_B)
        for row in range(ROWS):
            side = max(1, round(float(draw.keep_B[row]) * SIZE))
            hole = np.any(mixed[row] != IMAGES[row], axis=-1)
            rows, columns = np.flatnonzero(hole.any(axis=1)), np.flatnonzero(hole.any(axis=0))
            assert len(rows) == len(columns) == side and hole.sum() == side**2
            np.testing.assert_array_equal(mixed[row][hole], IMAGES[partner[row]][hole])
            np.testing.assert_allclose(weight[row], 1 - side**2 / SIZE**2, atol=1e-6)
            tops.add(rows[0])
            bottoms.add(rows[-1])
    assert {0, 1, 5} <= tops and {SIZE - 1, SIZE - 2} <= bottoms


def reference_block_order(uniforms, noise, blocks):
    """One token, one block at a time."""
    order = noise.astype(np.float64).copy()
    for row in range(ROWS):
        for block in reversed(range(blocks)):  # the first is painted last, over the others
            area, aspect, top, left = (float(uniforms[index, row, block]) for index in range(4))
            area = (1 / 16 + (1 / 3 - 1 / 16) * area) * GRID**2
            aspect = tokens.ASPECT ** (2 * aspect - 1)
            height, width = max(1, round(np.sqrt(area / aspect))), max(1, round(np.sqrt(area * aspect)))
            top, left = int(top * GRID) - height // 2, int(left * GRID) - width // 2
            for r in range(max(top, 0), min(top + height, GRID)):
                for c in range(max(left, 0), min(left + width, GRID)):
                    order[row, r, c] = blocks - block + float(noise[row, r, c])
    return order


def test_tokenmix_masks_blocks_of_tokens_and_weighs_by_the_maps(key):
    blocks = 4
    result = called(mix.tokenmix, key, keep_range=KEEP_RANGE, fill="partner", blocks=blocks, patch_size=PATCH)
    draw = drawn(key, more=2)
    uniforms = np.asarray(jax.random.uniform(draw.keys[0], (4, ROWS, blocks)))
    noise = np.asarray(jax.random.uniform(draw.keys[1], (ROWS, GRID, GRID)))
    order = reference_block_order(uniforms, noise, blocks)
    counts = [round((1 - float(keep)) * GRID**2) for keep in draw.keep_B]
    expected = np.stack([expanded(largest(one, count)) for one, count in zip(order, counts)])
    partner, maps = np.asarray(draw.partner_B), MAPS.astype(np.float64)
    own = (maps * ~expected).sum(axis=(1, 2)) / maps.sum(axis=(1, 2))
    other = (maps[partner] * expected).sum(axis=(1, 2)) / maps[partner].sum(axis=(1, 2))
    check(result, expected, partner, weight=own / (own + other))


def test_tokenmix_of_empty_maps_weighs_by_area(key):
    options = dict(keep_range=KEEP_RANGE, views=VIEWS, blocks=4, patch_size=PATCH)
    mixed, weight, _ = quick(partial(mix.tokenmix, fill="partner", **options))(key, IMAGES, np.zeros_like(MAPS))
    hole = np.any(np.asarray(mixed) != IMAGES, axis=-1)
    np.testing.assert_allclose(weight, 1 - hole.mean(axis=(1, 2)), atol=1e-6)
    # A single empty map, of an image without a loss, must not leave the label to the other image alone.
    maps = np.where(np.arange(ROWS).reshape(-1, 1, 1) == 2, 0, MAPS)
    constant = np.where(np.arange(ROWS).reshape(-1, 1, 1) == 2, np.float32(0.5), MAPS)
    found, expected = (
        quick(partial(mix.tokenmix, fill="partner", **options))(key, IMAGES, x)[1] for x in (maps, constant)
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert 0.1 < found[2] < 1 and np.all(found < 1)


def test_transmix_is_cutmix_with_its_mask(key):
    options = dict(keep_range=KEEP_RANGE, fill="partner")
    *result, extra = called(mix.transmix, key, **options)
    for found, expected in zip(result, called(mix.cutmix, key, **options)):
        np.testing.assert_array_equal(found, expected)
    check(result, extra["mask"], result[2])


def neighbors(cell):
    row, column = divmod(cell, GRID)
    around = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
    return [r * GRID + c for r, c in around if 0 <= r < GRID and 0 <= c < GRID]


def worth_of(mask, gain, smoothness):
    """The sum over cells, plus that over pairs of neighbors, each taken once."""
    sign = np.where(mask, 1, -1)
    pairs = sum(sign[cell] * sign[other] for cell in range(GRID**2) for other in neighbors(cell) if other > cell)
    return (sign * gain).sum() + smoothness / 4 * pairs


def reference_choice(gain, count, smoothness, sweeps):
    choices = [largest(gain, count)]
    for _ in range(sweeps):
        pull = [sum(1 if choices[-1][other] else -1 for other in neighbors(cell)) / 4 for cell in range(GRID**2)]
        choices.append(largest(gain + smoothness * np.array(pull), count))
    return max(choices, key=lambda mask: worth_of(mask, gain, smoothness))


def reference_moves(seen, saliency, distance, rounds):
    """Each place keeps a list of the cells that have rejected it."""
    length = lambda a, b: np.hypot(a // GRID - b // GRID, a % GRID - b % GRID) / (np.sqrt(2) * (GRID - 1))
    worth = [[seen[p] * saliency[c] - distance * length(p, c) for c in range(GRID**2)] for p in range(GRID**2)]
    refused = [set() for _ in range(GRID**2)]
    wish = lambda place: max((c for c in range(GRID**2) if c not in refused[place]), key=lambda c: worth[place][c])
    for _ in range(rounds):
        wishes = [wish(place) for place in range(GRID**2)]
        for cell in set(wishes):
            asking = [place for place in range(GRID**2) if wishes[place] == cell]
            best = max(asking, key=lambda place: worth[place][cell])
            for place in asking:
                if place != best:
                    refused[place].add(cell)
    return [wish(place) for place in range(GRID**2)]


def cell_of(image, cell):
    row, column = (PATCH * each for each in divmod(cell, GRID))
    return image[row : row + PATCH, column : column + PATCH]


def test_puzzlemix_matches_a_search_image_by_image(key):
    options = dict(grid=GRID, smoothness=0.5, distance=0.3, sweeps=3)
    mixed, weight, partner = called(mix.puzzlemix, key, keep_range=KEEP_RANGE, fill="partner", **options)
    draw = drawn(key)
    np.testing.assert_array_equal(partner, draw.partner_B)
    cells = np.stack([cell_means(map_HxW, GRID).reshape(-1) for map_HxW in MAPS])
    saliency = cells / cells.mean(axis=1, keepdims=True)
    moved = 0
    for row, keep in enumerate(np.asarray(draw.keep_B)):
        own, other = saliency[row], saliency[partner[row]]
        mask = reference_choice(other - own, round((1 - float(keep)) * GRID**2), 0.5, 3)
        sources = reference_moves(~mask, own, 0.3, GRID**2), reference_moves(mask, other, 0.3, GRID**2)
        for shown, source in zip((~mask, mask), sources):
            visible = [source[cell] for cell in range(GRID**2) if shown[cell]]
            assert len(set(visible)) == len(visible), "no cell is seen twice"
        np.testing.assert_allclose(weight[row], 1 - mask.mean(), atol=1e-6)
        for cell in range(GRID**2):
            image, source = (IMAGES[partner[row]], sources[1]) if mask[cell] else (IMAGES[row], sources[0])
            np.testing.assert_array_equal(cell_of(mixed[row], cell), cell_of(image, source[cell]))
            moved += source[cell] != cell
    assert moved > ROWS


def test_sweeps_of_puzzlemix_never_lower_the_worth_of_the_mask():
    """On smooth maps, where all cells choosing at once often makes two choices alternate."""
    noise = np.random.default_rng(0).random((40, GRID + 2, GRID + 2))
    means = sum(noise[:, r : r + GRID, c : c + GRID] for r in range(3) for c in range(3)) / 9
    gain = (means / means.mean(axis=(1, 2), keepdims=True)).astype(np.float32)
    gain = gain[:20] - gain[20:]
    worth = []
    for sweeps in range(5):
        masks_Bxhxw = np.asarray(puzzle.choose(gain, jnp.full(20, 0.6), smoothness=0.5, sweeps=sweeps))
        assert np.all(masks_Bxhxw.sum(axis=(1, 2)) == round(0.4 * GRID**2))
        worth.append([worth_of(mask.reshape(-1), each.reshape(-1), 0.5) for mask, each in zip(masks_Bxhxw, gain)])
    assert np.all(np.diff(worth, axis=0) >= -1e-5) and np.any(np.diff(worth, axis=0) > 0.1)


def test_puzzlemix_stays_in_place_when_moving_is_expensive(key):
    """Without smoothness, the mask is optimal: the cells with the largest gain."""
    options = dict(grid=GRID, smoothness=0.0, distance=1e4, sweeps=2)
    result = called(mix.puzzlemix, key, keep_range=KEEP_RANGE, fill="partner", **options)
    draw, cells = drawn(key), np.stack([cell_means(map_HxW, GRID) for map_HxW in MAPS])
    saliency, partner = cells / cells.mean(axis=(1, 2), keepdims=True), np.asarray(draw.partner_B)
    counts = [round((1 - float(keep)) * GRID**2) for keep in draw.keep_B]
    gains = saliency[partner] - saliency
    expected = np.stack([expanded(largest(gain, count)) for gain, count in zip(gains, counts)])
    check(result, expected, partner)


@pytest.mark.parametrize("class_token", [True, False])
def test_attended_share_against_numpy(class_token):
    """Three heads; with a class token and two registers, or with patches alone."""
    others = 3 if class_token else 0
    random = np.random.default_rng(2)
    attention = random.random((ROWS, 3, GRID**2 + others, GRID**2 + others))
    attention /= attention.sum(axis=-1, keepdims=True)
    mask = random.random((ROWS, SIZE, SIZE))
    found = jax.jit(tokens.attended_share, static_argnums=(2, 3))(
        attention.astype(np.float32), mask.astype(np.float32), PATCH, class_token
    )
    for row in range(ROWS):
        kept = 1 - cell_means(mask[row], GRID).reshape(-1)
        mean = attention[row].mean(axis=0)
        given = (mean[0] if class_token else mean.mean(axis=0))[others:]
        np.testing.assert_allclose(found[row], (given * kept).sum() / given.sum(), rtol=1e-5)
    assert np.asarray(jax.grad(lambda a: tokens.attended_share(a, mask, PATCH, True).sum())(attention)).max() == 0


def test_manifold_mixup_blends_at_one_of_its_stages():
    """Over many keys, each of the three is drawn, and a row's share is below 1 only there."""
    seen = set()
    options = dict(alpha=1.0, stages=("stage2", "input", "stage1"))
    call = quick(partial(mix.manifold_mixup, views=VIEWS, **options))
    for seed in range(20):
        mixed, weight, partner, shares = jax.tree.map(np.asarray, call(jax.random.key(seed), IMAGES, None))
        blended = [name for name, share in shares.items() if np.any(share != 1)]
        assert list(shares) == ["stage1", "stage2"] and len(blended) <= 1
        if blended:
            np.testing.assert_array_equal(shares[blended[0]], weight)
            np.testing.assert_array_equal(mixed, IMAGES)
        else:
            own = weight.astype(np.float64).reshape(-1, 1, 1, 1)
            np.testing.assert_allclose(mixed, own * IMAGES + (1 - own) * IMAGES[partner], atol=1e-6)
        seen.add(blended[0] if blended else "input")
    assert seen == {"input", "stage1", "stage2"}


def test_invalid_calls_say_why(key):
    with pytest.raises(ValueError, match="patch_size must divide images of 12 x 12 pixels, got 5"):
        mix.gradmix(key, IMAGES, MAPS, mask="patches", patch_size=5)
    with pytest.raises(ValueError, match="grid must divide images of 12 x 12 pixels, got 5"):
        options = dict(smoothness=0.5, distance=1.0, sweeps=1)
        mix.puzzlemix(key, IMAGES, MAPS, keep_range=KEEP_RANGE, fill="partner", views=1, grid=5, **options)
    with pytest.raises(ValueError, match=r"a grid of \(13, 13\) cells does not fit images of \(12, 12\) pixels"):
        mix.attentive_cutmix(key, IMAGES, MAPS, fill="partner", views=1, grid=13, cells=2)
    for stages in ((), ("stage1", "input", "stage1")):
        with pytest.raises(ValueError, match="stages must name at least one stage and each of them once, got"):
            mix.manifold_mixup(key, IMAGES, MAPS, alpha=1.0, stages=stages, views=1)
