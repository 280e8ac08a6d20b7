"""Open set recognition metrics; see `ranking` for the conventions."""

from gradmix_jax.metrics.decisions import known_threshold, macro_f1, mean_corruption_error, openness
from gradmix_jax.metrics.ranking import (
    ORIENTATION,
    Points,
    auroc,
    auroc_per_class,
    average_precision,
    ccr_at_fpr,
    fpr_at,
    oscr,
    oscr_curve,
    points,
    points_and_oscr_compat,
    roc_curve,
    unknown_below,
)

__all__ = [
    "ORIENTATION",
    "Points",
    "auroc",
    "auroc_per_class",
    "average_precision",
    "ccr_at_fpr",
    "fpr_at",
    "known_threshold",
]
__all__ += ["macro_f1", "mean_corruption_error", "openness", "oscr", "oscr_curve", "points", "points_and_oscr_compat"]
__all__ += ["roc_curve", "unknown_below"]
