"""The most confident mistakes of one run, as thumbnails."""

from gradmix_jax import workdir as workdir_lib
from gradmix_jax.report.curves import missing
from gradmix_jax.report.drawing import thumbnail
from gradmix_jax.report.formats import escape_html
from gradmix_jax.report.runs import Run

KINDS = {
    "accepted_unknown": "Unknown images that look most known (highest scores first)",
    "rejected_known": "Known images that look most unknown (lowest scores first)",
    "misclassified": "Known images in the wrong class (highest scores first)",
    "accepted_known": "For comparison: known images in the right class (highest scores first)",
}


def gallery(run: Run) -> str:
    """A strip of thumbnails for each kind of mistake, with true class, predicted class and score."""
    arrays = run.gallery
    if arrays is None:
        return missing(run, workdir_lib.GALLERY, "the most confident mistakes")
    strips = [
        _strip(title, *(arrays[f"{kind}/{part}"] for part in ("images", "truth", "predicted", "scores")))
        for kind, title in KINDS.items()
        if f"{kind}/images" in arrays
    ]
    return f"<p>Of {escape_html(run.name)}. Higher score = known.</p>" + "".join(strips)


def _strip(title, images, truths, predictions, scores) -> str:
    if not len(images):
        return f"<h5>{escape_html(title)}</h5><p>None.</p>"
    cells = "".join(
        f'<li><img src="{thumbnail(image)}" alt="test image of class {escape_html(truth)}">'
        f"<span>{escape_html(truth)} → {escape_html(predicted)}</span><span>{score:.3f}</span></li>"
        for image, truth, predicted, score in zip(images, truths, predictions, scores)
    )
    return f'<h5>{escape_html(title)}: true → predicted class, score</h5><ul class="gallery">{cells}</ul>'
