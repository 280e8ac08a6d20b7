"""ODIN: the maximum softmax probability of slightly changed images. Higher means known.

Letters: N images, K classes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradmix_jax.scores.base import Missing

TEMPERATURE, NOISE = 1000.0, 0.0014


def perturbed_logits(
    model: Callable[[Any], Any], images: Any, *, temperature: float = TEMPERATURE, noise: float = NOISE
) -> Any:
    """Logits [N, K] after a step along the sign of the gradient that raises the maximum softmax probability.

    Liang et al. 2018, eq. 2; the defaults are the paper's for CIFAR and DenseNet. The released code steps in the scale
    of pixels from 0 to 1, this one in that of the images that the model takes.

    Args:
      model: function from N images to logits [N, K] that JAX can differentiate; images must not interact.
      images: as `model` takes them.
      temperature: divides the logits.
      noise: size of the step.
    """
    confidence = lambda images: _log_confidence(model(images), temperature).sum()
    return model(images + noise * jnp.sign(jax.grad(confidence)(images)))


def fit_odin(reference, *, temperature=TEMPERATURE, noise=NOISE):
    """The temperature. The noise is already in the outputs: see `perturbed_logits`."""
    del reference, noise
    return np.float32(temperature)


def _log_confidence(logits_NxK, temperature):
    """Log of (K times the maximum softmax probability): at temperature 1000 the probabilities are 1 / K + 1e-3."""
    below_NxK = (logits_NxK - logits_NxK.max(axis=1, keepdims=True)) / temperature
    return -jnp.log1p(jnp.expm1(below_NxK).mean(axis=1))


_score = jax.jit(_log_confidence)


def score_odin(state, outputs):
    """Log of K times the maximum softmax probability of the perturbed images (Liang et al. 2018, eq. 1-3).

    "Enhancing the Reliability of Out-of-Distribution Image Detection in Neural Networks", ICLR 2018.

    Raises:
      Missing: the logits of the perturbed images are not given.
    """
    if outputs.perturbed_logits is None:
        raise Missing(
            "odin needs perturbed_logits, the logits of images after its step (scores.odin.perturbed_logits)."
        )
    return _score(outputs.perturbed_logits, state)
