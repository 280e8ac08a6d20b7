"""TinyImageNet, 20 known against 180 unknown classes (arXiv 2505.12803). From a folder: TFDS does not have it.

python -m gradmix_jax.main --config=configs/tiny_imagenet_osr.py --config.dataset.name=folder:PATH --workdir=runs/tiny_0

PATH holds train/<wnid>/*.JPEG and val/<wnid>/*.JPEG; class ids of the splits index the sorted list of the 200 wnids.

Not yet run at this size: it needs an accelerator.
"""

from gradmix_jax.config import apply_recipe, default_config, phase


def get_config(recipe: str = "input"):
    c = default_config()
    c.dataset.name = "folder:tiny-imagenet-200"
    c.dataset.benchmark = "tiny_imagenet"
    c.dataset.image_size = 64
    c.dataset.channels = 3
    c.dataset.validation_fraction = 0.0
    c.normalization.mean = (0.485, 0.456, 0.406)
    c.normalization.std = (0.229, 0.224, 0.225)
    c.model.name = "resnet18"
    c.attribution.stages = ("stage3", "stage4")
    c.train.batch_size = 256
    c.train.checkpoint_every_epochs = 20
    c.phases = (phase("joint", epochs=600, supcon=1.0, ssl=1.0),)
    return apply_recipe(c, recipe, at_scale=True)
