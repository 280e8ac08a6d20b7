"""Out-of-distribution detection: all of Fashion-MNIST is known; near are MNIST's digits, far are noise images.

python -m gradmix_jax.main --config=configs/fashion_mnist_ood.py --workdir=runs/fashion_ood
python -m gradmix_jax.main --config=configs/fashion_mnist_ood.py --workdir=runs/fashion_ood_idx \
    --config.dataset.name=idx:/usr/share/datasets/fashion-mnist --config.dataset.unknown_name=digits \
    --config.evaluate.near="('digits',)"

The headline AUROC is against the unknown dataset; `ood` in results.json has every dataset with every score. The
second command needs no download: the Debian package dataset-fashion-mnist against scikit-learn's digits.
Not yet run at this size: it needs an accelerator.
"""

from gradmix_jax.config import apply_recipe, default_config, phase


def get_config(recipe: str = "input"):
    c = default_config()
    c.dataset.name = "fashion_mnist"
    c.dataset.unknown_name = "mnist"
    c.dataset.benchmark = "all"
    c.dataset.image_size = 32
    c.dataset.channels = 1
    c.normalization.mean = (0.2860,)
    c.normalization.std = (0.3530,)
    c.augment.gray_prob = 0.0
    c.model.name = "resnet18"
    c.attribution.stages = ("stage3", "stage4")
    c.train.batch_size = 256
    c.train.checkpoint_every_epochs = 10
    c.phases = (phase("joint", epochs=50, supcon=1.0, ssl=1.2),)
    c.evaluate.near = ("mnist",)
    c.evaluate.far = ("noise:uniform", "noise:gaussian")
    return apply_recipe(c, recipe)
