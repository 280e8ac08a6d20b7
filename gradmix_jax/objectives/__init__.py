"""The objectives: a table of them, one file each, and the losses on projections and logits that they are made of.

To add one, write a file with an `Objective` and enter it here.
"""

from gradmix_jax.objectives import arpl as _arpl
from gradmix_jax.objectives import barlow_twins as _barlow_twins
from gradmix_jax.objectives import cross_entropy as _cross_entropy
from gradmix_jax.objectives import gcpl as _gcpl
from gradmix_jax.objectives import logit_norm as _logit_norm
from gradmix_jax.objectives import moco as _moco
from gradmix_jax.objectives import open_auc as _open_auc
from gradmix_jax.objectives import outlier_exposure as _outlier_exposure
from gradmix_jax.objectives import simclr as _simclr
from gradmix_jax.objectives import soft_supcon as _soft_supcon
from gradmix_jax.objectives import sphor as _sphor
from gradmix_jax.objectives import supcon as _supcon
from gradmix_jax.objectives import targets as _targets
from gradmix_jax.objectives.base import Given, Mixed, Objective, Spec, State, Update, follow
from gradmix_jax.objectives.contrastive import Batch, contrastive, gather, make_batch
from gradmix_jax.objectives.temperatures import SCHEDULES, temperature_factor

# Losses are summed in this order.
OBJECTIVES = {
    "simclr": _simclr.OBJECTIVE,
    "moco": _moco.OBJECTIVE,
    "barlow_twins": _barlow_twins.OBJECTIVE,
    "supcon": _supcon.OBJECTIVE,
    "cross_entropy": _cross_entropy.OBJECTIVE,
    "soft_supcon": _soft_supcon.OBJECTIVE,
    "sphor": _sphor.OBJECTIVE,
    "arpl": _arpl.OBJECTIVE,
    "gcpl": _gcpl.OBJECTIVE,
    "logit_norm": _logit_norm.OBJECTIVE,
    "open_auc": _open_auc.OBJECTIVE,
    "outlier_exposure": _outlier_exposure.OBJECTIVE,
}
ALIAS = "ssl"  # in a phase's weights, the objective named by `objective.ssl`

simclr, mixed_simclr = _simclr.simclr, _simclr.mixed_simclr
supcon, mixed_supcon = _supcon.supcon, _supcon.mixed_supcon
cross_entropy, mixed_targets = _cross_entropy.cross_entropy, _targets.mixed_targets
moco = _moco.moco
barlow_twins, mixed_barlow_twins = _barlow_twins.barlow_twins, _barlow_twins.mixed_barlow_twins
soft_supcon, open_auc, logit_norm = _soft_supcon.soft_supcon, _open_auc.open_auc, _logit_norm.logit_norm
radius_loss, prototype_loss = _arpl.radius_loss, _gcpl.prototype_loss
von_mises_fisher, repulsion = _sphor.von_mises_fisher, _sphor.repulsion
uniform_cross_entropy, smoothed = _outlier_exposure.uniform_cross_entropy, _targets.smoothed

__all__ = ["ALIAS", "OBJECTIVES", "SCHEDULES", "Batch", "Given", "Mixed", "Objective", "Spec", "State", "Update"]
__all__ += ["barlow_twins", "contrastive", "cross_entropy", "follow", "gather", "logit_norm", "make_batch"]
__all__ += ["mixed_barlow_twins", "mixed_simclr", "mixed_supcon", "mixed_targets", "moco", "open_auc"]
__all__ += ["prototype_loss", "radius_loss", "repulsion", "simclr", "smoothed", "soft_supcon", "supcon"]
__all__ += ["temperature_factor", "uniform_cross_entropy", "von_mises_fisher"]
