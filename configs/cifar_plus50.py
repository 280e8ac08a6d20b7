"""CIFAR+50: 4 known classes of CIFAR-10 against 50 unknown classes of CIFAR-100 (arXiv 2505.12803).

python -m gradmix_jax.main --config=configs/cifar_plus50.py --workdir=runs/cifar_plus50_0

The recipes of configs/cifar_osr.py. With folders: --config.dataset.name=folder:CIFAR10 and
--config.dataset.unknown_name=folder:CIFAR100, class folders in the order of the official labels.

Not yet run at this size: it needs an accelerator.
"""

from gradmix_jax.config import apply_recipe, default_config, phase


def get_config(recipe: str = "input"):
    c = default_config()
    c.dataset.name = "cifar10"
    c.dataset.benchmark = "cifar+50"
    c.dataset.image_size = 32
    c.dataset.channels = 3
    c.dataset.validation_fraction = 0.0
    c.normalization.mean = (0.4914, 0.4822, 0.4465)
    c.normalization.std = (0.2023, 0.1994, 0.2010)
    c.model.name = "resnet18"
    c.attribution.stages = ("stage4",)
    c.train.batch_size = 256
    c.train.checkpoint_every_epochs = 20
    c.phases = (phase("ssl", epochs=650, ssl=1.0), phase("joint", epochs=10, supcon=1.0, ssl=1.2))
    return apply_recipe(c, recipe, at_scale=True)
