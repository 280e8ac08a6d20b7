"""MNIST, 6 known against 4 unknown digits (arXiv 2505.12803).

python -m gradmix_jax.main --config=configs/mnist_osr.py --workdir=runs/mnist_0
python -m gradmix_jax.main --config=configs/mnist_osr.py --config.dataset.name=idx:PATH --workdir=runs/mnist_idx

Not yet run at this size: it needs an accelerator.
"""

from gradmix_jax.config import apply_recipe, default_config, phase


def get_config(recipe: str = "input"):
    c = default_config()
    c.dataset.name = "mnist"
    c.dataset.benchmark = "mnist"
    c.dataset.image_size = 32
    c.dataset.channels = 1
    c.dataset.validation_fraction = 0.0
    c.normalization.mean = (0.1307,)
    c.normalization.std = (0.3081,)
    # Digits are neither flipped nor colored; a small rotation replaces the crop.
    c.augment.jitter_prob = 0.0
    c.augment.crop_scale = (1.0, 1.0)
    c.augment.flip_prob = 0.0
    c.augment.gray_prob = 0.0
    c.augment.rotation_degrees = 5.0
    c.model.name = "resnet18"
    c.attribution.stages = ("stage4",)
    c.train.batch_size = 256
    c.phases = (phase("joint", epochs=10, supcon=1.0, ssl=3.0),)
    return apply_recipe(c, recipe, at_scale=True)
