"""ODIN: the maximum softmax probability of slightly changed images. Higher means known.

Letters: N images, K classes.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gradmix_jax.scores.base import Missing

# Images differentiated at once.
BLOCK_SIZE = 256


def fit_odin(reference, *, temperature=1000.0, noise=0.0014):
    """The model, the temperature and the size of the change; the defaults are the paper's for CIFAR and DenseNet."""
    return jax.tree_util.Partial(reference.model), np.float32(temperature), np.float32(noise)


def _log_confidence(logits_NxK, temperature):
    """Log of (K times the maximum softmax probability): at temperature 1000 the probabilities are 1 / K + 1e-3."""
    below_NxK = (logits_NxK - logits_NxK.max(axis=1, keepdims=True)) / temperature
    return -jnp.log1p(jnp.expm1(below_NxK).mean(axis=1))


@jax.jit
def _score(state, images):
    model, temperature, noise = state
    confidence = lambda images: _log_confidence(model(images), temperature).sum()
    return _log_confidence(model(images + noise * jnp.sign(jax.grad(confidence)(images))), temperature)


def score_odin(state, outputs):
    """Log of K times the maximum softmax probability after a step that raises it (Liang et al. 2018, eq. 1-3).

    "Enhancing the Reliability of Out-of-Distribution Image Detection in Neural Networks", ICLR 2018. The step is in
    the scale of the images that the model takes; the released code's is in that of pixels from 0 to 1.

    Raises:
      Missing: the images themselves are not given.
    """
    if outputs.images is None:
        raise Missing("odin needs the images themselves, got their outputs only.")
    images = [
        np.asarray(_score(state, jnp.asarray(outputs.images[start : start + BLOCK_SIZE], jnp.float32)))
        for start in range(0, len(outputs.images), BLOCK_SIZE)
    ]
    return np.concatenate(images or [np.zeros(0, np.float32)])
