"""The published classifier32 checkpoints on TinyImageNet, by every score that needs no training images.

python benchmarks/published_checkpoints.py --data=PATH --init_from=CHECKPOINTS/tinyimagenet_{trial}.pth

PATH holds val/<wnid>/*.JPEG of all 200 classes, CHECKPOINTS the files of Vaze et al. 2022 (arXiv 2110.06207).
`configs/mls_tinyimagenet.py` gives the same numbers and the other scores, but needs training images too.

Prints Markdown: each trial on all 9,000 unknown images, every score over the trials, and how far the mean over the
trials moves if only a sample of the unknown images is scored, as in the authors' training log (see `sampled`). With
--out=DIR, each trial's outputs are kept as DIR/trial0.npz, ..., for `python -m gradmix_jax.score`.
"""

import argparse
import os

import jax
import numpy as np

from gradmix_jax import config as config_lib
from gradmix_jax import metrics, models
from gradmix_jax.data import build, readers
from gradmix_jax.evaluation import features
from gradmix_jax.score import score
from gradmix_jax.training import initial

TRIALS = range(5)
SHOWN = ("accuracy", "auroc", "oscr")
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


def arrays_of(experiment: config_lib.Experiment) -> dict[str, np.ndarray]:
    """Features, logits and labels of the test images, and the classifier's weights, in the format of `score`."""
    spec, normalization = experiment.dataset, experiment.normalization
    data = readers.load(spec, spec.name, with_train=False)
    split = build.split_of(spec, data.class_names, data.class_names)
    module = models.create(experiment.model, num_classes=len(split.known))
    shape = (1, *experiment.image_shape)
    template = jax.jit(lambda key: module.init(key, np.zeros(shape, np.float32), train=False))(jax.random.key(0))
    variables, _ = initial.load(experiment.model.init_from, spec.trial, jax.device_get(template))
    function = features.make_feature_function(module, mean=normalization.mean, std=normalization.std)
    known, unknown = (build.pick(spec, data, "test", classes) for classes in (split.known, split.unknown))
    arrays = {"known_labels": known.labels, "head_kernel": variables["params"]["classifier"]["dense"]["kernel"]}
    for part, source in (("known", known), ("unknown", unknown)):
        outputs = features.extract(function, variables, source, batch_size=500)[0]
        arrays |= {f"{part}_{name}": outputs[name] for name in ("features", "logits")}
    return arrays


def _cell(value: float, interval: tuple[float, float] | None) -> str:
    return f"{value:.2f}" + (f" ({100 * interval[0]:.2f} to {100 * interval[1]:.2f})" if interval else "")


def sampled(count: int, seed: int) -> np.ndarray:
    """Indices of the unknown images that the authors' training log scores: 1,000 draws with repetition, in which each
    image counts once (about 946). The indices are the same in all trials."""
    return np.unique(np.random.RandomState(seed).choice(count, 1000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--init_from", required=True)
    parser.add_argument("--draws", type=int, default=1000, help="samples of unknown images")
    parser.add_argument("--out", help="directory for the outputs of each trial")
    arguments = parser.parse_args()
    rows, by_score, scores = [], [], []
    print("| trial | accuracy % (95 % interval) | AUROC % | OSCR % | known | unknown |")
    print("|---|---|---|---|---|---|")
    for trial in TRIALS:
        arrays = arrays_of(experiment_of(arguments.data, arguments.init_from, trial))
        if arguments.out:
            os.makedirs(arguments.out, exist_ok=True)
            np.savez(os.path.join(arguments.out, f"trial{trial}.npz"), **arrays)
        found = score(arrays, feature="logits", score="max_logit")
        rows.append([100 * found[name] for name in SHOWN])
        by_score.append({name: each["auroc"] for name, each in found["by_score"]["logits"].items()})
        scores.append((found["arrays"]["known_scores"], found["arrays"]["unknown_scores"]))
        accuracy, auroc, oscr = (_cell(100 * found[name], found["intervals"].get(name)) for name in SHOWN)
        cells = [trial, accuracy, auroc, oscr]
        cells += [found["num_known"], found["num_unknown"]]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    for name, values in (("mean", np.mean(rows, axis=0)), ("std", np.std(rows, axis=0, ddof=1))):
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} | | |")
    print(f"| published mean | {PUBLISHED['accuracy']} | {PUBLISHED['auroc']} | | | |\n")
    print("| score of the logits | " + " | ".join(f"trial {trial}" for trial in TRIALS) + " | mean ± std |")
    print("|---" * (len(TRIALS) + 2) + "|")
    for name in sorted(by_score[0], key=lambda name: -np.mean([each[name] for each in by_score])):
        values = [100 * each[name] for each in by_score]
        cells = " | ".join(f"{value:.2f}" for value in values)
        print(f"| {name} | {cells} | {np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} |")
    print("\nLeft out: " + "; ".join(f"{name}: {why}" for name, why in found["left_out"]["logits"].items()) + "\n")
    of_sample = lambda seed: [metrics.auroc(known, unknown[sampled(len(unknown), seed)]) for known, unknown in scores]
    means = 100 * np.mean([of_sample(seed) for seed in range(arguments.draws)], axis=1)
    above = np.mean(means >= PUBLISHED["auroc"])
    print(
        f"Mean AUROC over the trials on {arguments.draws} samples of the unknown images: {means.mean():.2f} % on "
        f"average, std {means.std(ddof=1):.2f}; {100 * above:.0f} % of the samples give {PUBLISHED['auroc']} % or more."
    )


if __name__ == "__main__":
    main()
