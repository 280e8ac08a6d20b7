"""Losses on projections and logits."""

from gradmix_jax.objectives.contrastive import (
    SSL,
    Batch,
    Spec,
    contrastive,
    cross_entropy,
    gather,
    make_batch,
    mixed_simclr,
    mixed_supcon,
    mixed_targets,
    simclr,
    supcon,
)

__all__ = ["SSL", "Batch", "Spec", "contrastive", "cross_entropy", "gather", "make_batch", "mixed_simclr"]
__all__ += ["mixed_supcon", "mixed_targets", "simclr", "supcon"]
