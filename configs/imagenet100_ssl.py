"""Self-supervised learning on ImageNet-100 without labels, the 100 classes of the authors' runs (arXiv 2505.12803).

python -m gradmix_jax.main --config=configs/imagenet100_ssl.py --config.dataset.root=DATA --workdir=runs/imagenet100_ssl
python -m gradmix_jax.main --config=configs/imagenet100_ssl.py:none --config.dataset.root=DATA --workdir=runs/in100_none

DATA holds imagenet with train/<wnid> and val/<wnid>, of all 1000 classes; with the authors' folders imagenet100_train,
imagenet100_test and imagenet900_test in DATA, set --config.dataset.name=imagenet:. --config.dataset.benchmark=all and
--config.dataset.unknown_name=imagenet:imagenet900_test. `closed_set` in results.json has the probes of the 100
classes; the headline numbers are against the other 900. Not yet run at this size: it needs an accelerator.
"""

from gradmix_jax.config import apply_recipe, default_config, phase
from gradmix_jax.data.protocols import PROTOCOLS


def get_config(recipe: str = "layer"):
    protocol = PROTOCOLS["imagenet100"]
    c = default_config()
    c.dataset.name = protocol.name
    c.dataset.benchmark = protocol.benchmark
    c.dataset.image_size = 224
    c.dataset.channels = 3
    c.dataset.storage = "stream"
    c.normalization.mean = (0.485, 0.456, 0.406)
    c.normalization.std = (0.229, 0.224, 0.225)
    c.augment.blur_prob = 0.5
    c.model.name = "resnet18"
    c.model.stem = "imagenet"
    c.attribution.stages = ("stage3",)
    c.train.batch_size = 256
    c.train.checkpoint_every_epochs = 20
    c.phases = (phase("ssl", epochs=200, ssl=1.0),)
    return apply_recipe(c, recipe)
