"""PCA and t-SNE of the headline feature of one run's test images."""

import math

import numpy as np

from gradmix_jax import workdir as workdir_lib
from gradmix_jax.report.curves import missing
from gradmix_jax.report.drawing import PALETTE, Marks, framed, subplots, svg
from gradmix_jax.report.labels import short
from gradmix_jax.report.runs import Arrays, Run

PARTS = ("test_known", "test_unknown")
MOST_POINTS = 1000
PCA_SIZE = 50
SEED = 0
LONGEST_NAME = 20
MARKERS = ("o", "^", "s", "D")


def embedding(run: Run) -> str:
    """Two panels: known classes by color and marker (one color for many classes), unknown images as crosses."""
    arrays, feature = run.features, run.results["feature"]
    if arrays is None or not {f"{part}/{feature}" for part in PARTS} <= set(arrays):
        return missing(run, f"{feature} in {workdir_lib.FEATURES}", "PCA and t-SNE")
    features, labels, total = _sample(arrays, feature)
    if len(features) < 4 or np.ptp(features, axis=0).max() == 0:
        return "<p>PCA and t-SNE need four test images or more, with features that differ.</p>"
    reduced, variance = _pca(features)
    whole = run.results["known_classes"]
    says = [f"known image of class {whole[label]}" if label >= 0 else "unknown image" for label in labels]
    names = [short(name, LONGEST_NAME) for name in whole]
    names = names if len(names) <= len(PALETTE) * len(MARKERS) else []
    percent = [f"{share:.0%} of the variance" for share in variance[:2]]
    labeled = (f"first component ({percent[0]})", f"second component ({percent[1]})")
    panels = [
        _panel("PCA", reduced[:, :2], labels, names, labeled, says),
        _panel("t-SNE", _tsne(reduced), labels, names, ("no unit", "no unit"), says),
    ]
    sample = f"{len(features)} of {total} drawn with a seed" if total > len(features) else f"all {total}"
    caption = (
        f"Test images of {run.name} by their {feature} ({sample}; crosses: unknown). "
        f"t-SNE starts from {reduced.shape[1]} principal components; distances between its groups mean little."
    )
    return framed(f'<div class="plots">{"".join(panels)}</div>', caption, wide=True)


def _sample(arrays: Arrays, feature: str) -> tuple[np.ndarray, np.ndarray, int]:
    """(features float64 [n, F], labels [n], -1 for unknown; number of all test images): MOST_POINTS of them at most."""
    known, unknown = (arrays.length(f"{part}/{feature}") for part in PARTS)
    chosen = np.sort(np.random.default_rng(SEED).permutation(known + unknown)[:MOST_POINTS])
    sides = chosen[chosen < known], chosen[chosen >= known] - known
    features = [arrays.rows(f"{part}/{feature}", places) for part, places in zip(PARTS, sides)]
    labels = np.concatenate([arrays["test_known/labels"][sides[0]], np.full(len(sides[1]), -1)])
    return np.concatenate(features).astype(np.float64), labels, known + unknown


def _pca(features_NxD):
    """(coordinates on up to PCA_SIZE components, at least two, and the share of variance of each)."""
    from sklearn.decomposition import PCA

    count = max(2, min(PCA_SIZE, *features_NxD.shape))
    if features_NxD.shape[1] < 2:
        features_NxD = np.pad(features_NxD, ((0, 0), (0, 1)))
    pca = PCA(n_components=min(count, *features_NxD.shape), svd_solver="full").fit(features_NxD)
    return pca.transform(features_NxD), pca.explained_variance_ratio_


def _tsne(reduced_NxP):
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(30.0, (len(reduced_NxP) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=SEED, n_jobs=1)
    # On a busy machine, threads that wait for each other take minutes; a single one takes seconds.
    with threadpool_limits(limits=1):
        return tsne.fit_transform(reduced_NxP.astype(np.float32))


def _panel(title, points_Nx2, labels_N, names, axis_labels, says) -> str:
    # A line of the legend has room for about 60 letters.
    columns = max(1, min(5, 60 // (5 + max(map(len, [*names, "unknown"])))))
    drawn, axis = subplots((4.4, 3.6 + 0.17 * math.ceil((len(names) + 1) / columns)))
    _scatter(axis, points_Nx2, labels_N, names)
    axis.set_title(title)
    axis.set_xlabel(axis_labels[0])
    axis.set_ylabel(axis_labels[1])
    options = dict(ncols=columns, markerscale=1.8, handletextpad=0.1, columnspacing=0.8)
    drawn.legend(*axis.get_legend_handles_labels(), loc="outside lower center", **options)
    order = np.argsort(points_Nx2[:, 0], kind="stable")  # the arrow keys go from left to right
    marks = Marks(axis, np.tile(points_Nx2[order], 2), [says[place] for place in order])
    return svg(drawn, f"{title} of known and unknown features", [marks])


def _scatter(axis, points_Nx2, labels_N, names):
    """Points of each class, or of all known ones without names; rasterized, to keep the page small."""
    options = dict(s=7, linewidths=0, alpha=0.8, rasterized=True)
    for label, name in enumerate(names or ["known"]):
        mine = labels_N == label if names else labels_N >= 0
        color, marker = PALETTE[label % len(PALETTE)], MARKERS[label // len(PALETTE)]
        axis.scatter(*points_Nx2[mine].T, label=name, color=color, marker=marker, **options)
    unknown = labels_N < 0
    options |= dict(linewidths=0.7, marker="x", s=9, color="#808080")
    axis.scatter(*points_Nx2[unknown].T, label="unknown", **options)
    axis.set_xticks([])
    axis.set_yticks([])
