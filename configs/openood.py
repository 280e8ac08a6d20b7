"""OpenOOD 1.5: near and far out-of-distribution datasets, and the full spectrum (arXiv 2306.09301).

python -m gradmix_jax.main --config=configs/openood.py:cifar10 --config.dataset.root=DATA --workdir=runs/openood_cifar10
python -m gradmix_jax.main --config=configs/openood.py:imagenet200,cutmix --config.dataset.root=DATA \
    --workdir=runs/openood_imagenet200

DATA is what OpenOOD downloads: benchmark_imglist/ with its image lists, images_classic/ and images_largescale/. After
the colon: cifar10 (default), cifar100, imagenet200 or imagenet, then a recipe of configs/cifar_osr.py. `leaderboard` in
results.json has the rows and columns of OpenOOD's tables, with the means over near and far datasets; "fsood" counts
covariate-shifted images of the known classes (evaluate.shifted) as known.

Like OpenOOD's baseline, a classifier is trained with cross-entropy and scored by its largest probability.
Not yet run at this size: it needs an accelerator.
"""

from gradmix_jax.config import apply_recipe, default_config, phase, variant_of
from gradmix_jax.data.protocols import PROTOCOLS

VARIANTS = ("cifar10", "cifar100", "imagenet200", "imagenet")


def get_config(variant: str = "cifar10"):
    name, recipe = variant_of(variant, VARIANTS, recipe="none")
    protocol, large = PROTOCOLS[f"openood_{name}"], name.startswith("imagenet")
    c = default_config()
    c.dataset.name = protocol.name
    c.dataset.unknown_name = protocol.unknown_name
    c.dataset.benchmark = protocol.benchmark
    c.dataset.image_size = 224 if large else 32
    c.dataset.channels = 3
    c.dataset.storage = "stream" if large else "resident"
    c.normalization.mean = (0.485, 0.456, 0.406) if large else (0.4914, 0.4822, 0.4465)
    c.normalization.std = (0.229, 0.224, 0.225) if large else (0.2470, 0.2435, 0.2616)
    c.augment.jitter_prob = 0.0
    c.augment.gray_prob = 0.0
    c.model.name = "resnet50" if name == "imagenet" else "resnet18"
    c.model.stem = "imagenet" if large else "cifar"
    c.model.classifier = "linear"
    c.attribution.loss = "cross_entropy"
    c.attribution.stages = ("stage3", "stage4")
    c.optimizer.name = "sgd"
    c.optimizer.learning_rate = 0.1
    c.optimizer.weight_decay = 5e-4
    c.optimizer.final_fraction = 0.0
    c.train.batch_size = 256 if large else 128
    c.train.num_views = 1
    c.train.checkpoint_every_epochs = 10
    c.phases = (phase("joint", epochs=90 if large else 100, cross_entropy=1.0),)
    c.evaluate.feature = "logits"
    c.evaluate.score = "msp"
    c.evaluate.near, c.evaluate.far, c.evaluate.shifted = protocol.near, protocol.far, protocol.shifted
    c.evaluate.duplicates = "drop"
    apply_recipe(c, recipe)
    c.mix.mixed_views = "all"  # for cross-entropy of mixed images
    return c
