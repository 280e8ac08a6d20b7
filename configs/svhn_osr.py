"""SVHN (cropped digits), 6 known against 4 unknown classes (arXiv 2505.12803).

python -m gradmix_jax.main --config=configs/svhn_osr.py --workdir=runs/svhn_0

Not yet run at this size: it needs an accelerator.
"""

from gradmix_jax.config import apply_recipe, default_config, phase


def get_config(recipe: str = "input"):
    c = default_config()
    c.dataset.name = "svhn_cropped"
    c.dataset.benchmark = "svhn"
    c.dataset.image_size = 32
    c.dataset.channels = 3
    c.dataset.validation_fraction = 0.0
    c.normalization.mean = (0.4377, 0.4438, 0.4728)
    c.normalization.std = (0.1980, 0.2010, 0.1970)
    c.augment.flip_prob = 0.0
    c.model.name = "resnet18"
    c.attribution.stages = ("stage4",)
    c.train.batch_size = 256
    c.train.checkpoint_every_epochs = 20
    c.phases = (phase("ssl", epochs=300, ssl=1.0),)
    return apply_recipe(c, recipe, at_scale=True)
