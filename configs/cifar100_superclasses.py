"""CIFAR-100 by superclass: the five classes of one are known, the 95 others unknown; 20 trials, one per superclass.

python -m gradmix_jax.main --config=configs/cifar100_superclasses.py --config.dataset.trial=3 \
    --workdir=runs/cifar100_superclass3
python -m gradmix_jax.main --config=configs/cifar100_superclasses.py:macro,layer --workdir=runs/cifar100_macro

After the colon: superclasses (default) or macro, the authors' six known and six unknown classes of twelve superclasses
(arXiv 2505.12803), then a recipe of configs/cifar_osr.py. Trials number the superclasses alphabetically, from 0
(aquatic_mammals) to 19 (vehicles_2); `per_unknown_group` in results.json has each of the other superclasses.

The recipe is that of CIFAR-10. Not yet run at this size: it needs an accelerator.
"""

from gradmix_jax.config import apply_recipe, default_config, phase, variant_of
from gradmix_jax.data.protocols import PROTOCOLS

VARIANTS = ("superclasses", "macro")


def get_config(variant: str = "superclasses"):
    name, recipe = variant_of(variant, VARIANTS)
    protocol = PROTOCOLS[f"cifar100_{name}"]
    c = default_config()
    c.dataset.name = protocol.name
    c.dataset.benchmark = protocol.benchmark
    c.dataset.image_size = 32
    c.dataset.channels = 3
    c.dataset.validation_fraction = 0.0
    c.normalization.mean = (0.5071, 0.4865, 0.4409)
    c.normalization.std = (0.2673, 0.2564, 0.2762)
    c.model.name = "resnet18"
    c.attribution.stages = ("stage3", "stage4")
    c.train.batch_size = 256
    c.train.checkpoint_every_epochs = 20
    c.phases = (phase("ssl", epochs=600, ssl=1.0), phase("joint", epochs=10, supcon=1.0, ssl=1.2))
    return apply_recipe(c, recipe)
