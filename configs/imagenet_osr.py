"""The open set protocols P1 to P3 on ImageNet: known, negative and unknown classes (arXiv 2210.06789).

python -m gradmix_jax.main --config=configs/imagenet_osr.py:p1 --config.dataset.root=DATA --workdir=runs/p1
python -m gradmix_jax.main --config=configs/imagenet_osr.py:p2 --config.dataset.root=DATA --workdir=runs/p2_negative \
    --config.dataset.negative="('published',)"

DATA holds imagenet, with train/<wnid> and val/<wnid>. After the colon: p1 (default), p2 or p3, then a recipe of
configs/cifar_osr.py or a method of docs/methods.md, such as p1,outlier_exposure. Negative classes take part in
training, with label -1, if dataset.negative requests them, and are never in the test. Like the paper's baseline, a
classifier is trained with cross-entropy and scored by its largest probability; `ccr_at_fpr_01` and `ccr_at_fpr_10` are
two points of the paper's curves.

Not yet run at this size: it needs an accelerator.
"""

from gradmix_jax.config import apply_recipe, default_config, phase, variant_of
from gradmix_jax.data.protocols import PROTOCOLS

VARIANTS = ("p1", "p2", "p3")


def get_config(variant: str = "p1"):
    name, recipe = variant_of(variant, VARIANTS, recipe="none")
    protocol = PROTOCOLS[f"imagenet_{name}"]
    c = default_config()
    c.dataset.name = protocol.name
    c.dataset.benchmark = protocol.benchmark
    c.dataset.image_size = 224
    c.dataset.channels = 3
    c.dataset.storage = "stream"
    c.normalization.mean = (0.485, 0.456, 0.406)
    c.normalization.std = (0.229, 0.224, 0.225)
    c.augment.jitter_prob = 0.0
    c.augment.gray_prob = 0.0
    c.model.name = "resnet50"
    c.model.stem = "imagenet"
    c.model.classifier = "linear"
    c.attribution.loss = "cross_entropy"
    c.attribution.stages = ("stage3", "stage4")
    c.train.batch_size = 64
    c.train.num_views = 1
    c.train.checkpoint_every_epochs = 10
    c.phases = (phase("joint", epochs=120, cross_entropy=1.0),)
    c.evaluate.feature = "logits"
    c.evaluate.score = "msp"
    apply_recipe(c, recipe)
    if c.dataset.num_negative:  # outlier exposure, for which the protocol has classes of its own
        c.dataset.num_negative, c.dataset.negative = 0, ("published",)
    c.mix.mixed_views = "all"  # for cross-entropy of mixed images
    return c
