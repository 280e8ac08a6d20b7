"""Open set recognition on scikit-learn's digits (bundled: no download), with the published splits of MNIST.

python -m gradmix_jax.main --config=configs/digits_osr.py --workdir=runs/digits_0
python -m gradmix_jax.main --config=configs/digits_osr.py:layer --config.dataset.trial=1 --workdir=runs/digits_layer_1

Takes 30 to 80 s on two CPU cores. Expected (5 splits x 3 seeds, jax 0.10.2, CPU, encoder's features; mean +- std over
the 15 runs): input: accuracy .9842 +- .0077, AUROC .9685 +- .0106, OSCR .9574 +- .0128; layer: .9816 +- .0068, .9707 +-
.0102, .9569 +- .0122. No mixing and CutMix are within the spread of these (results/digits.md).
"""

from gradmix_jax.config import apply_recipe, default_config, phase


def get_config(recipe: str = "input"):
    c = default_config()
    c.dataset.name = "digits"
    c.dataset.benchmark = "mnist"
    c.dataset.image_size = 16
    c.augment.crop_scale = (0.5, 1.0)
    c.augment.flip_prob = 0.0
    c.augment.rotation_degrees = 5.0
    c.model.name = "small_cnn"
    c.model.width = 16
    c.model.hidden = 128
    c.phases = (phase("joint", epochs=60, supcon=1.0, ssl=1.2),)
    # Small enough to keep them all, so that the report can show how the maps change during training.
    c.train.checkpoint_every_epochs = 20
    c.train.keep_checkpoints = 4
    return apply_recipe(c, recipe)
