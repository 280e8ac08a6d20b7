"""Self-supervised learning on CIFAR-10 without labels, then linear and nearest-neighbor probes on several datasets.

python -m gradmix_jax.main --config=configs/cifar_ssl.py --workdir=runs/cifar10_ssl
python -m gradmix_jax.main --config=configs/cifar_ssl.py:none --workdir=runs/cifar10_ssl_none

`closed_set` in results.json has the probes on CIFAR-10's own classes, `probes` those on other datasets; the headline
numbers are against SVHN. Not yet run at this size: it needs an accelerator.
"""

from gradmix_jax.config import apply_recipe, default_config, phase


def get_config(recipe: str = "input"):
    c = default_config()
    c.dataset.name = "cifar10"
    c.dataset.unknown_name = "svhn_cropped"
    c.dataset.benchmark = "all"
    c.dataset.image_size = 32
    c.dataset.channels = 3
    c.normalization.mean = (0.4914, 0.4822, 0.4465)
    c.normalization.std = (0.2023, 0.1994, 0.2010)
    c.model.name = "resnet18"
    c.attribution.stages = ("stage3", "stage4")
    c.train.batch_size = 256
    c.train.checkpoint_every_epochs = 20
    c.phases = (phase("ssl", epochs=600, ssl=1.0),)
    c.evaluate.probes = ("cifar100", "fashion_mnist")
    return apply_recipe(c, recipe)
