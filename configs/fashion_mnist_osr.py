"""Fashion-MNIST, 6 known against 4 unknown classes of a seeded random split (there is no published one).

python -m gradmix_jax.main --config=configs/fashion_mnist_osr.py --workdir=runs/fashion_0
python -m gradmix_jax.main --config=configs/fashion_mnist_osr.py --workdir=runs/fashion_idx \
    --config.dataset.name=idx:/usr/share/datasets/fashion-mnist

Not yet run at this size: it needs an accelerator.
"""

from gradmix_jax.config import apply_recipe, default_config, phase


def get_config(recipe: str = "input"):
    c = default_config()
    c.dataset.name = "fashion_mnist"
    c.dataset.benchmark = "random"
    c.dataset.num_known = 6
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
    return apply_recipe(c, recipe)
