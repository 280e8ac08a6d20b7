"""CIFAR-10, 6 known against 4 unknown classes: the paper's recipe, both stages of training (arXiv 2505.12803).

python -m gradmix_jax.main --config=configs/cifar_osr.py --workdir=runs/cifar10_0
python -m gradmix_jax.main --config=configs/cifar_osr.py:layer --config.dataset.trial=1 --workdir=runs/cifar10_layer_1
python -m gradmix_jax.main --config=configs/cifar_osr.py --config.dataset.name=folder:PATH --workdir=runs/cifar10_folder

Not yet run at this size: it needs an accelerator. Scaled down to two CPU cores (16 pixels, small CNN of width 16, 2 + 6
epochs, trial 0, JPEG copy; command: results/cifar10.md), it gives AUROC .642 (input) and .627 (layer) in ten minutes.

After the colon: input (default), layer (the paper's maps, boxes and fill), released (the choices of the authors' code),
grad_cam, tokens (a transformer), or any other recipe of docs/mixing.md: none, cutmix, mixup, ...
"""

from gradmix_jax.config import apply_recipe, default_config, phase


def get_config(recipe: str = "input"):
    c = default_config()
    c.dataset.name = "cifar10"
    c.dataset.benchmark = "cifar10"
    c.dataset.image_size = 32
    c.dataset.channels = 3
    # The recipe uses the last epoch, so there is nothing to select and no image is held out.
    c.dataset.validation_fraction = 0.0
    c.normalization.mean = (0.4914, 0.4822, 0.4465)
    c.normalization.std = (0.2023, 0.1994, 0.2010)
    c.model.name = "resnet18"
    c.attribution.stages = ("stage3", "stage4")
    c.train.batch_size = 256
    c.train.checkpoint_every_epochs = 20
    c.phases = (phase("ssl", epochs=600, ssl=1.0), phase("joint", epochs=10, supcon=1.0, ssl=1.2))
    return apply_recipe(c, recipe, at_scale=True)
