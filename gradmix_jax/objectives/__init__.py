"""The objectives: a table of them, one file each, and the losses on projections and logits that they are made of.

To add one, write a file with an `Objective` and enter it here.
"""

from gradmix_jax.objectives import barlow_twins as _barlow_twins
from gradmix_jax.objectives import cross_entropy as _cross_entropy
from gradmix_jax.objectives import moco as _moco
from gradmix_jax.objectives import simclr as _simclr
from gradmix_jax.objectives import supcon as _supcon
from gradmix_jax.objectives.base import Given, Mixed, Objective, Spec, State, Update, follow
from gradmix_jax.objectives.contrastive import Batch, contrastive, gather, make_batch

# In this order a loss is summed up.
OBJECTIVES = {
    "simclr": _simclr.OBJECTIVE,
    "moco": _moco.OBJECTIVE,
    "barlow_twins": _barlow_twins.OBJECTIVE,
    "supcon": _supcon.OBJECTIVE,
    "cross_entropy": _cross_entropy.OBJECTIVE,
}
ALIAS = "ssl"  # in a phase's weights: the one that `objective.ssl` names

simclr, mixed_simclr = _simclr.simclr, _simclr.mixed_simclr
supcon, mixed_supcon = _supcon.supcon, _supcon.mixed_supcon
cross_entropy, mixed_targets = _cross_entropy.cross_entropy, _cross_entropy.mixed_targets
moco = _moco.moco
barlow_twins, mixed_barlow_twins = _barlow_twins.barlow_twins, _barlow_twins.mixed_barlow_twins

__all__ = ["ALIAS", "OBJECTIVES", "Batch", "Given", "Mixed", "Objective", "Spec", "State", "Update", "barlow_twins"]
__all__ += ["contrastive", "cross_entropy", "follow", "gather", "make_batch", "mixed_barlow_twins", "mixed_simclr"]
__all__ += ["mixed_supcon", "mixed_targets", "moco", "simclr", "supcon"]
