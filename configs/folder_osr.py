"""Your own images: a folder per class, and nothing to set but the path (docs/own_images.md).

python -m gradmix_jax.main --config=configs/folder_osr.py --config.dataset.name=folder:PATH --workdir=runs/mine
gradmix train --config=folder_osr --config.dataset.name=folder:PATH --config.dataset.known="('cat','dog')" \
    --workdir=runs/mine

Known classes, image size, channels, normalization and batch size are derived from the training images, printed, and
recorded in the run's config.json. `--config.KEY=VALUE` sets any of them. Without dataset.known, 60 % of the classes,
drawn with dataset.trial, are known. `python -m gradmix_jax.data PATH` describes the images before training.

A small network that a CPU trains; on an accelerator: --config.model.name=resnet18 --config.model.width=64.
"""

from gradmix_jax.config import apply_recipe, default_config, phase


def get_config(recipe: str = "input"):
    c = default_config()
    c.dataset.name = "folder:PATH"
    c.dataset.benchmark = "auto"
    c.dataset.num_known = 0
    c.dataset.image_size = 0
    c.dataset.channels = 0
    c.normalization.mean = ()
    c.normalization.std = ()
    c.train.batch_size = 0
    c.model.name = "small_cnn"
    c.model.width = 32
    c.model.hidden = 128
    c.phases = (phase("joint", epochs=60, supcon=1.0, ssl=1.2),)
    c.train.checkpoint_every_epochs = 20
    return apply_recipe(c, recipe)
