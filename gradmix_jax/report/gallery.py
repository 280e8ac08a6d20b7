"""Thumbnails of one run's clearest mistakes, with the nearest training images beside each."""

from gradmix_jax import workdir as workdir_lib
from gradmix_jax.report.curves import missing
from gradmix_jax.report.drawing import thumbnail
from gradmix_jax.report.formats import escape_html
from gradmix_jax.report.labels import cut
from gradmix_jax.report.runs import Arrays, Run

# Kind -> (title, which images of it are mistakes at a threshold: see `verdict` of page.js).
KINDS = {
    "accepted_unknown": ("Unknown images that look most known (highest scores first)", "accepted"),
    "rejected_known": ("Known images that look most unknown (lowest scores first)", "rejected"),
    "misclassified": ("Known images in the wrong class (highest scores first)", "accepted"),
    "unknown_spread": ("Unknown images at every rank of the scores (highest first)", "all"),
    "known_spread": ("Known images at every rank of the scores (highest first)", "all"),
    "accepted_known": ("For comparison: known images in the right class (highest scores first)", "accepted"),
}
NEIGHBOR = 48


def gallery(run: Run) -> str:
    """A strip of thumbnails for each kind of mistake, with true class, predicted class and score."""
    arrays = run.gallery
    if arrays is None:
        return missing(run, workdir_lib.GALLERY, "the most confident mistakes")
    near = _training_images(arrays)
    strips = [
        _strip(kind, title, keep, arrays, near) for kind, (title, keep) in KINDS.items() if f"{kind}/images" in arrays
    ]
    says = "Below each image: the training images with the nearest features, nearest first, and their classes. "
    lead = f"Of {run.name}. Higher score = known. {says if near else ''}"
    return f"<p>{escape_html(lead)}</p>" + "".join(strips)


def _training_images(arrays: Arrays) -> list[tuple[str, str]]:
    """(thumbnail, class) of the training images nearest to a shown one; [] for runs of older versions."""
    if "train/images" not in arrays:
        return []
    return [
        (thumbnail(image, NEIGHBOR), str(name)) for image, name in zip(arrays["train/images"], arrays["train/classes"])
    ]


def _strip(kind: str, title: str, keep: str, arrays: Arrays, near: list[tuple[str, str]]) -> str:
    images, truths, predictions, scores = (arrays[f"{kind}/{part}"] for part in _PARTS)
    if not len(images):
        return f"<h4>{escape_html(title)}</h4><p>None.</p>"
    neighbors = arrays[f"{kind}/nearest"] if near and f"{kind}/nearest" in arrays else [()] * len(images)
    side = "unknown" if "unknown" in kind else "known"
    beside = lambda places: [near[place] for place in places if 0 <= place < len(near)]
    cells = "".join(
        _card(image, str(truth), str(predicted), float(score), side, beside(places))
        for image, truth, predicted, score, places in zip(images, truths, predictions, scores, neighbors)
    )
    heading = f"{escape_html(title)}: true → predicted class, score"
    wide = " near" if near else ""
    return (
        f'<div class="strip" data-keep="{keep}"><h4>{heading}</h4><p class="shown"></p>'
        f'<ul class="gallery{wide}">{cells}</ul></div>'
    )


_PARTS = ("images", "truth", "predicted", "scores")


def _card(image, truth: str, predicted: str, score: float, side: str, near: list[tuple[str, str]]) -> str:
    wrong = ' data-wrong="1"' if side == "known" and truth != predicted else ""
    said = f"<span>{escape_html(cut(truth))} → {escape_html(cut(predicted))}</span><span>{score:.3f}</span>"
    if near:
        small = "".join(f'<img src="{uri}" alt="training image of class {escape_html(name)}">' for uri, name in near)
        names = ", ".join(cut(name, 14) for _, name in near)
        said += f'<span class="nearest">{small}</span><span class="names">near: {escape_html(names)}</span>'
    return (
        f'<li data-score="{score!r}" data-side="{side}"{wrong}><img src="{thumbnail(image)}" '
        f'alt="test image of class {escape_html(truth)}">{said}</li>'
    )
