"""Scores against pytorch-ood and OpenOOD on a small network, with values from `references/make_scores.py`.

Where a library returns a function of our value, that function is below; the order is the same.
"""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from gradmix_jax import scores
from gradmix_jax.scores import odin

STORED = dict(np.load(pathlib.Path(__file__).parents[1] / "references/scores.npz"))
KERNEL, BIAS = STORED["fc.weight"].T, STORED["fc.bias"]
K = len(BIAS)
OPTIONS = {"vim": {"dimension": 16}, "ash-b": {"variant": "b"}, "ash-p": {"variant": "p"}, "ash-s": {"variant": "s"}}
# Turns our value into that of the library.
OURS_TO_THEIRS = {
    # Our log odds and log entropies, which do not tie, against probabilities and entropies.
    "pytorch_ood/msp": lambda x: 1 / (1 + np.exp(-x)),
    "pytorch_ood/entropy": lambda x: -np.exp(-x),
    "openood/gen": lambda x: -np.exp(-x),
    "pytorch_ood/gen": lambda x: -np.exp(-x) / K,  # the mean, with probabilities of at least 1e-7
    "pytorch_ood/odin": lambda x: np.exp(x) / K,
    # Our distance, as in the paper, against its square.
    "openood/knn": lambda x: -np.square(x),
    # Their cross-entropy has targets of 1, the paper's 1 / K.
    "openood/gradnorm": lambda x: K * x,
    # Theirs has a scatter matrix, not divided by the 300 images, and half of the distance.
    "pytorch_ood/mahalanobis": lambda x: x / 300 / 2,
    "pytorch_ood/relative_mahalanobis": lambda x: x / 300,
}
# Theirs has float32 covariances and eigenvectors, and probabilities of at least 1e-7.
TOLERANCE = {
    "openood/vim": 3e-3,
    "pytorch_ood/vim": 3e-3,
    "pytorch_ood/gen": 5e-2,
    "pytorch_ood/mahalanobis": 3e-4,
    "pytorch_ood/relative_mahalanobis": 3e-4,
}


def outputs(images):
    images = images.astype(np.float32) / 16
    features = np.maximum(images @ STORED["encoder.0.weight"].T + STORED["encoder.0.bias"], 0)
    return scores.Outputs(features, features @ KERNEL + BIAS, odin.perturbed_logits(model, jnp.asarray(images)))


def model(images):
    hidden = images @ STORED["encoder.0.weight"].T + STORED["encoder.0.bias"][None]
    return jnp.maximum(hidden, 0) @ KERNEL + BIAS[None]


def reference():
    return scores.Reference(
        outputs(STORED["images_train"]),
        STORED["labels_train"].astype(int),
        K,
        (KERNEL, BIAS),
        outputs(STORED["images_validation"]),
    )


@pytest.mark.parametrize("name", [name for name in STORED if "/" in name])
def test_score_is_that_of_the_library(name):
    score, expected = name.partition("/")[2], STORED[name]
    of = score.partition("-")[0]
    state = scores.fit(of, reference(), **OPTIONS.get(score, {}))
    test = outputs(np.concatenate([STORED["images_known"], STORED["images_unknown"]]))
    ours = np.asarray(scores.score(of, state, test), np.float64)
    got = OURS_TO_THEIRS.get(name, lambda x: x)(ours)
    scale = np.abs(expected).mean()
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE.get(name, 1e-4) * scale)


def test_which_scores_are_compared():
    """Scores that neither library has, or not for features alone, have only their NumPy reference."""
    compared = {name.partition("/")[2].partition("-")[0] for name in STORED if "/" in name}
    assert set(scores.SCORES) - compared == {
        "topk_cosine",
        "topk_cosine_normalized",
        "class_mean_cosine",
        "class_mean_l1",
        "feature_norm",
        "mahalanobis_plus_plus",
        "mahalanobis_per_class",
        "postmax",
        "ensemble",
    }


def test_the_page_of_scores_has_all_of_them_with_their_options():
    page = (pathlib.Path(__file__).parents[2] / "docs/scores.md").read_text()
    rows = [line.split("|")[1:-1] for line in page.partition("## Where")[0].splitlines() if line.startswith("| `")]
    listed = {
        row[0].strip(" `"): [option.strip(" `") for option in row[2].split(",") if option.strip()] for row in rows
    }
    assert listed == {name: list(entry.options) for name, entry in scores.SCORES.items()}
    compared = {row[0].strip(" `") for row in rows if row[4].strip()}
    assert compared == {name.partition("/")[2].partition("-")[0] for name in STORED if "/" in name}
