"""The published maximum-logit baseline on TinyImageNet, evaluated as it is (Vaze et al. 2022, arXiv 2110.06207).

python -m gradmix_jax.main --config=configs/mls_tinyimagenet.py --mode=eval --workdir=runs/mls/trial0 \
    --config.dataset.name=folder:PATH --config.model.init_from=CHECKPOINTS/tinyimagenet_{trial}.pth

PATH as for configs/tiny_imagenet_osr.py; CHECKPOINTS holds the authors' five files, one for each class split. All five
trials: `gradmix_jax.protocol` with --trials=0,1,2,3,4 --seeds=0 in place of --mode. Nothing is trained, but the
evaluation still needs training images, for the scores and probes that compare features with them.

Measured in results/published.md.
"""

from gradmix_jax.config import apply_recipe, default_config, phase


def get_config(recipe: str = "none"):
    c = default_config()
    c.name = "maximum logit (published weights)"
    c.dataset.name = "folder:tiny-imagenet-200"
    c.dataset.benchmark = "tiny_imagenet"
    c.dataset.image_size = 64
    c.dataset.channels = 3
    c.dataset.validation_fraction = 0.0
    # CIFAR-10's values, as in the authors' code.
    c.normalization.mean = (0.4914, 0.4822, 0.4465)
    c.normalization.std = (0.2023, 0.1994, 0.2010)
    c.model.name = "classifier32"
    c.model.classifier = "linear_without_bias"
    c.model.init_from = "mls_tinyimagenet/tinyimagenet_{trial}.pth"
    c.attribution.stages = ("stage3",)
    # No epochs. Set some, and a recipe, to train on from the published weights.
    c.phases = (phase("joint", epochs=0, supcon=1.0, ssl=1.0),)
    c.evaluate.feature = "logits"
    c.evaluate.score = "max_logit"
    # Some images of TinyImageNet are in two classes or in both parts: one unknown image of trial 0 is a training image.
    c.evaluate.duplicates = "drop"
    return apply_recipe(c, recipe)
