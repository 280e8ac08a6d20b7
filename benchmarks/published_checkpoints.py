"""Accuracy and maximum-logit AUROC of the published classifier32 checkpoints on TinyImageNet, from test images alone.

python benchmarks/published_checkpoints.py --data=PATH --init_from=CHECKPOINTS/tinyimagenet_{trial}.pth

PATH holds val/<wnid>/*.JPEG of all 200 classes, CHECKPOINTS the files of Vaze et al. 2022 (arXiv 2110.06207).
`configs/mls_tinyimagenet.py` gives the same numbers and all other metrics, but needs training images too.

Prints Markdown: each trial on all 9,000 unknown images, and how far the mean over the trials moves where only a sample
of the unknown images is scored, as in the authors' training log (see `sampled`).
"""

import argparse

import jax
import numpy as np

from gradmix_jax import config as config_lib
from gradmix_jax import metrics, models
from gradmix_jax.data import build, readers
from gradmix_jax.evaluation import features
from gradmix_jax.training import initial

TRIALS = range(5)
IMAGE_SIZE = 64
# Mean of the five trials, in percent, as published with the checkpoints.
PUBLISHED = {"accuracy": 84.2, "auroc": 83.0}


def experiment_of(data: str, init_from: str, trial: int) -> config_lib.Experiment:
    """The specs of one trial, as in `configs/mls_tinyimagenet.py`."""
    c = config_lib.default_config()
    c.dataset.update(dict(name=f"folder:{data}", benchmark="tiny_imagenet", trial=trial, channels=3))
    c.dataset.image_size = IMAGE_SIZE
    c.normalization.update(dict(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)))
    c.model.update(dict(name="classifier32", classifier="linear_without_bias", init_from=init_from))
    c.mix.method = "none"
    c.evaluate.feature, c.evaluate.score = "logits", "max_logit"
    return config_lib.from_config(c, num_devices=1)


def logits_of(experiment: config_lib.Experiment) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """logits_NxK and labels_N of the known test images, logits_MxK of the unknown ones."""
    spec, normalization = experiment.dataset, experiment.normalization
    data = readers.load(spec, spec.name, with_train=False)
    split = build.split_of(spec, data.class_names, data.class_names)
    module = models.create(experiment.model, num_classes=len(split.known))
    shape = (1, *experiment.image_shape)
    template = jax.jit(lambda key: module.init(key, np.zeros(shape, np.float32), train=False))(jax.random.key(0))
    variables, _ = initial.load(experiment.model.init_from, spec.trial, jax.device_get(template))
    function = features.make_feature_function(module, mean=normalization.mean, std=normalization.std)
    known, unknown = (build.pick(spec, data, "test", classes) for classes in (split.known, split.unknown))
    logits = lambda source: features.extract(function, variables, source, batch_size=500)[0]["logits"]
    return logits(known), known.labels, logits(unknown)


def sampled(count: int, seed: int) -> np.ndarray:
    """Places of the unknown images that the authors' training log scores: 1,000 draws with repetition, of which each
    image counts once (about 946). The same places in all trials."""
    return np.unique(np.random.RandomState(seed).choice(count, 1000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--init_from", required=True)
    parser.add_argument("--draws", type=int, default=1000, help="samples of unknown images")
    arguments = parser.parse_args()
    rows, scores = [], []
    print("| trial | accuracy % | AUROC % | OSCR % | known | unknown |\n|---|---|---|---|---|---|")
    for trial in TRIALS:
        logits_NxK, labels_N, unknown_MxK = logits_of(experiment_of(arguments.data, arguments.init_from, trial))
        known_N, unknown_M = logits_NxK.max(axis=1), unknown_MxK.max(axis=1)
        correct_N = logits_NxK.argmax(axis=1) == labels_N
        oscr = metrics.oscr(known_N, unknown_M, correct_N)
        rows.append([100 * float(x) for x in (correct_N.mean(), metrics.auroc(known_N, unknown_M), oscr)])
        scores.append((known_N, unknown_M))
        cells = [f"{value:.2f}" for value in rows[-1]]
        print(f"| {' | '.join([str(trial), *cells, str(len(known_N)), str(len(unknown_M))])} |", flush=True)
    for name, values in (("mean", np.mean(rows, axis=0)), ("std", np.std(rows, axis=0, ddof=1))):
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} | | |")
    print(f"| published mean | {PUBLISHED['accuracy']} | {PUBLISHED['auroc']} | | | |\n")
    of_sample = lambda seed: [metrics.auroc(known, unknown[sampled(len(unknown), seed)]) for known, unknown in scores]
    means = 100 * np.mean([of_sample(seed) for seed in range(arguments.draws)], axis=1)
    above = np.mean(means >= PUBLISHED["auroc"])
    print(
        f"Mean AUROC over the trials on {arguments.draws} samples of the unknown images: {means.mean():.2f} % on "
        f"average, std {means.std(ddof=1):.2f}; {100 * above:.0f} % of the samples give {PUBLISHED['auroc']} % or more."
    )


if __name__ == "__main__":
    main()
