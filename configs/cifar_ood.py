"""Out-of-distribution detection: all of CIFAR-10 is known; near is CIFAR-100, far are SVHN and noise images.

python -m gradmix_jax.main --config=configs/cifar_ood.py --workdir=runs/cifar10_ood
python -m gradmix_jax.main --config=configs/cifar_ood.py --workdir=runs/cifar10_ood_folder \
    --config.dataset.name=folder:CIFAR10 --config.dataset.unknown_name=folder:TINY_IMAGENET \
    --config.evaluate.near="('folder:TINY_IMAGENET',)" --config.evaluate.far="('noise:uniform',)"

The headline AUROC is against the unknown dataset; `ood` in results.json has every dataset with every score.
Not yet run at this size: it needs an accelerator.
"""

from gradmix_jax.config import apply_recipe, default_config, phase


def get_config(recipe: str = "input"):
    c = default_config()
    c.dataset.name = "cifar10"
    c.dataset.unknown_name = "cifar100"
    c.dataset.benchmark = "all"
    c.dataset.image_size = 32
    c.dataset.channels = 3
    c.normalization.mean = (0.4914, 0.4822, 0.4465)
    c.normalization.std = (0.2023, 0.1994, 0.2010)
    c.model.name = "resnet18"
    c.attribution.stages = ("stage3", "stage4")
    c.train.batch_size = 256
    c.train.checkpoint_every_epochs = 20
    c.phases = (phase("ssl", epochs=600, ssl=1.0), phase("joint", epochs=10, supcon=1.0, ssl=1.2))
    c.evaluate.near = ("cifar100",)
    c.evaluate.far = ("svhn_cropped", "noise:uniform", "noise:gaussian")
    return apply_recipe(c, recipe)
