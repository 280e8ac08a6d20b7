"""OpenAUC's ranking loss: known images above pseudo-unknown ones, which are mixed features of two classes.

Letters: M rows of all devices (views included), N half of them, K known classes.
"""

import jax
import jax.numpy as jnp

from gradmix_jax.fields import Key
from gradmix_jax.models import LINEAR
from gradmix_jax.objectives.base import Given, Objective, check_head
from gradmix_jax.objectives.contrastive import by_view, gather


def open_auc(logits_MxK: jax.Array, labels_M: jax.Array, partner_N: jax.Array, share: jax.Array) -> jax.Array:
    """Squared surrogate of the OpenAUC risk, for images that are classified correctly.

    Wang et al. 2022, "OpenAUC: Towards AUC-Oriented Open-Set Recognition", arXiv 2210.13458, as in its
    released code: image i of the first half of the batch is compared with a mix of image i of the second half and its
    partner there. (1 + maximum logit of the mix - that of the image)^2, averaged over the pairs in which the image is
    classified correctly and the mix is of two classes; 0 without such a pair. The released code takes the smallest
    logits here, against its own score. With a linear head the logits of mixed features are the mixed logits.

    Args:
      logits_MxK: logits of all rows.
      labels_M: their classes; pairs with an image of -1 do not count.
      partner_N: a permutation of the second half.
      share: share of the image itself in a mix, drawn from Beta(alpha, alpha).

    Returns:
      Scalar.
    """
    half = len(partner_N)
    known_NxK, other_NxK = logits_MxK[:half], logits_MxK[half : 2 * half]
    label_N, other_N = labels_M[:half], labels_M[half : 2 * half]
    mixed_NxK = share * other_NxK + (1 - share) * other_NxK[partner_N]
    is_pair_N = (known_NxK.argmax(axis=1) == label_N) & (other_N != other_N[partner_N])
    is_pair_N = is_pair_N & (label_N >= 0) & (other_N >= 0) & (other_N[partner_N] >= 0)
    loss_N = jnp.square(1 + mixed_NxK.max(axis=1) - known_NxK.max(axis=1))
    return (loss_N * is_pair_N).sum() / jnp.maximum(is_pair_N.sum(), 1)


def _clean(given: Given) -> jax.Array:
    batch = given.batch
    # In an order independent of the device count; every device has the loss over all of them.
    logits_MxK = jnp.concatenate(by_view(gather(given.logits, batch.axis_name), batch.views, batch.axis_name))
    labels_M = jnp.tile(gather(given.labels_b, batch.axis_name), batch.views)
    of_partner, of_share = jax.random.split(jax.random.fold_in(given.key, 0))
    alpha = given.spec.options["open_auc"]["alpha"]
    partner_N = jax.random.permutation(of_partner, len(labels_M) // 2)
    return open_auc(logits_MxK.astype(jnp.float32), labels_M, partner_N, jax.random.beta(of_share, alpha, alpha))


OBJECTIVE = Objective(
    clean=_clean,
    uses_labels=True,
    check=check_head(*LINEAR),
    options={"alpha": Key(2.0, "both parameters of the Beta distribution of the share", above=0)},
)
