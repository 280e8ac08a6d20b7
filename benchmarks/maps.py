"""Are the maps good, and what do they cost? Insertion and deletion curves of every map, independent of training.

python benchmarks/maps.py --folder=runs/maps                                      digits, CNN and ViT, seeds 0, 1, 2
python benchmarks/maps.py --folder=runs/maps --cifar=PATH --out=results/maps.md   and CIFAR-10 in PATH/train, PATH/test

A classifier is trained for each seed, without mixing, on the known classes of a benchmark's first split (a seed that
is already in FOLDER is not trained again). For test images of those classes, each map comes from the gradient of the
cross-entropy of the predicted class, in evaluation mode. Pixels are then replaced in descending order of the map:

deletion   from the image to its mean color; the faster the class's probability falls, the better the map (low area)
insertion  from the mean color to the image; the faster it rises, the better (high area)

Source of the curves: RISE, Petsiuk et al. 2018, arXiv 1806.07421, section 4.1. Costs are XLA's FLOPs of a train step
that mixes by each map, against the same step with a random one.
"""

import argparse
import functools
import os
import pathlib
import platform
from collections.abc import Callable
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradmix_jax import assembly, augment, models
from gradmix_jax import config as config_lib
from gradmix_jax import data as data_lib
from gradmix_jax import run as run_lib
from gradmix_jax import workdir as workdir_lib
from gradmix_jax.config import phase
from gradmix_jax.method import attribution, masks
from gradmix_jax.training.checkpoint import Checkpoints
from gradmix_jax.training.identity import identity

STEPS = 16  # of a curve
RESAMPLES = 2000
GRADIENT = ("small_cnn", "vit_tiny_token")
SPECTRAL = "spectral residual"


class Kind(NamedTuple):
    """A row: keys of the `attribution` section, the models it applies to, and whether a step can mix by it."""

    keys: dict
    models: tuple[str, ...] = GRADIENT
    cost: bool = True


KINDS = {
    "input": Kind({"method": "input"}),
    "gradient x input": Kind({"method": "gradient_x_input"}),
    "SmoothGrad, 4 samples": Kind({"method": "smoothgrad"}),
    "integrated gradients, 4 steps": Kind({"method": "integrated_gradients"}),
    "layer, sign 1 (raises the loss)": Kind({"method": "layer"}, ("small_cnn",)),
    "layer, sign -1 (lowers the loss)": Kind({"method": "layer", "sign": -1}, ("small_cnn",)),
    "Grad-CAM, sign 1": Kind({"method": "grad_cam"}, ("small_cnn",)),
    "Grad-CAM, sign -1": Kind({"method": "grad_cam", "sign": -1}, ("small_cnn",)),
    "Eigen-CAM": Kind({"method": "eigen_cam"}),
    "token, sign 1": Kind({"method": "token"}, ("vit_tiny_token",)),
    "token, sign -1": Kind({"method": "token", "sign": -1}, ("vit_tiny_token",)),
    "attention rollout": Kind({"method": "rollout"}, ("vit_tiny_token",)),
    SPECTRAL: Kind({}, cost=False),
    "random": Kind({"method": "random"}),
}


def config(data: str, model: str, *, seed: int, epochs: int, cifar: str | None = None, cifar_size: int = 32):
    """A classifier of the known classes of split 0, trained without mixing."""
    c = config_lib.default_config()
    c.dataset.name, c.dataset.benchmark, c.dataset.image_size = "digits", "mnist", 16
    c.augment.crop_scale, c.augment.flip_prob, c.augment.rotation_degrees = (0.5, 1.0), 0.0, 5.0
    if data == "cifar10":
        c.dataset.name, c.dataset.benchmark, c.dataset.channels = f"folder:{cifar}", "cifar10", 3
        c.dataset.image_size = cifar_size
        c.normalization.mean, c.normalization.std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
        c.augment.flip_prob, c.augment.rotation_degrees, c.augment.jitter_prob = 0.5, 0.0, 0.0
        c.augment.gray_prob = 0.0
    c.model.name, c.model.classifier, c.model.hidden = model, "linear", 128
    c.model.width = 64 if model.startswith("vit") else 16
    c.mix.method, c.train.num_views, c.seed = "none", 1, seed
    c.train.log_every_steps = 50
    c.phases = (phase("cross-entropy", epochs=epochs, cross_entropy=1.0),)
    return c


class Trained(NamedTuple):
    """A classifier in evaluation mode, and test images of its classes in [0, 1] with their labels."""

    program: object
    variables: dict
    images_NxHxWxC: np.ndarray
    labels_N: np.ndarray


def trained(c, workdir: str, count: int) -> Trained:
    """Train it unless the workdir has the finished run; the images are spread evenly over the test set."""
    run_lib.run(c, workdir, "train")
    experiment = run_lib.from_config(config_lib.read(workdir), num_devices=1)
    data = data_lib.open_set(experiment.dataset)
    program = assembly.make_program(experiment, num_classes=data.num_classes, num_images=len(data.train))
    of = identity(experiment.dataset, experiment.seed, data.class_names, data.negative_names)
    checkpoints = Checkpoints(workdir, of=of, read_only=True)
    start = assembly.initial_state(experiment, program)
    state = checkpoints.restore(start, max(checkpoints.steps()))
    checkpoints.close()
    test = data.test_known
    chosen = np.linspace(0, len(test) - 1, min(count, len(test))).round().astype(int)
    images = np.stack([test[int(index)] for index in chosen]).astype(np.float32) / 255
    return Trained(program, state.evaluated, images, np.asarray(test.labels)[chosen])


def forward(one: Trained, images_BxHxWxC, perturbations=None, with_attention=False):
    """(logits_BxK, out) of images in [0, 1]."""
    variables = {"params": one.variables["params"], "batch_stats": one.variables["batch_stats"]}
    variables |= {"perturbations": perturbations} if perturbations else {}
    normalized = augment.normalize(images_BxHxWxC, mean=one.program.mean, std=one.program.std)
    mutable = ["intermediates"] * with_attention
    if not mutable:
        _, out = one.program.model.apply(variables, normalized, train=False)
        return out["logits"], out
    (_, out), updates = one.program.model.apply(variables, normalized, train=False, mutable=mutable)
    return out["logits"], out | {"attentions": models.attentions(updates["intermediates"])}


def make_maps(one: Trained, kind: Kind, images_BxHxWxC, keys_B) -> jax.Array:
    """map_BxHxW for the cross-entropy of the predicted classes."""
    if not kind.keys:
        return attribution.spectral_residual(images_BxHxWxC)
    spec = attribution.Spec(**kind.keys)
    logits_BxK, out = forward(one, images_BxHxWxC, with_attention=spec.needs("attention"))
    predicted_B = jnp.argmax(logits_BxK, axis=1)

    def loss(images, taps):
        logits_BxK, _ = forward(one, images, taps)
        return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits_BxK, predicted_B))

    gradient = lambda images: jax.grad(loss)(images, {})
    gradients = {}
    if spec.uses_input:
        gradients = {"images": gradient(images_BxHxWxC)}
    elif spec.uses_gradients:
        gradients = jax.grad(loss, 1)(images_BxHxWxC, {stage: jnp.zeros_like(out[stage]) for stage in spec.stages})
    source = attribution.Source(
        images_BxHxWxC,
        out,
        gradients,
        keys_B,
        attentions=out.get("attentions", ()),
        gradient=gradient,
        patch_size=one.program.patch_size,
        class_token=one.program.class_token,
    )
    return attribution.make(source, spec)


def curves(evidence_of: Callable, maps_BxHxW, images_BxHxWxC) -> tuple[jax.Array, jax.Array]:
    """Evidence for a class along deletion and insertion, both [B, STEPS + 1].

    Args:
      evidence_of: images in [0, 1] -> evidence_B.
      maps_BxHxW: pixels are replaced in descending order of these.
      images_BxHxWxC: in [0, 1].
    """
    mean = jnp.mean(images_BxHxWxC, axis=(1, 2), keepdims=True)

    def at(share):
        keep_B = jnp.full(len(images_BxHxWxC), 1.0 - share)
        first_BxHxWx1 = masks.threshold(maps_BxHxW, keep_B)[..., None]
        changed = ((mean, images_BxHxWxC), (images_BxHxWxC, mean))
        return tuple(evidence_of(jnp.where(first_BxHxWx1, inside, outside)) for inside, outside in changed)

    deleted, inserted = jax.lax.map(at, jnp.linspace(0.0, 1.0, STEPS + 1))
    return deleted.T, inserted.T


def areas(runs: list[Trained], kind: Kind, seeds: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """(deletion, insertion): area under the curve of each classifier and image, by trapezoids, float64 [S, N]."""

    @jax.jit
    def run(variables, images, key):
        one = runs[0]._replace(variables=variables)
        maps = make_maps(one, kind, images, jax.random.split(key, len(images)))
        predicted_B = jnp.argmax(forward(one, images)[0], axis=1)

        def probability(changed):
            chances_BxK = jax.nn.softmax(forward(one, changed)[0])
            return jnp.take_along_axis(chances_BxK, predicted_B[:, None], axis=1)[:, 0]

        return curves(probability, maps, images)

    found = [
        run(one.variables, one.images_NxHxWxC, jax.random.key(seed)) for one, seed in zip(runs, seeds, strict=True)
    ]
    deleted, inserted = (np.stack(each).astype(np.float64) for each in zip(*jax.device_get(found), strict=True))
    return tuple(np.trapezoid(each, dx=1 / STEPS, axis=2) for each in (deleted, inserted))


def interval(values_SxN: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over images, of the mean over seeds."""
    random = np.random.default_rng(0)
    values_N = values_SxN.mean(axis=0)
    means = [values_N[random.integers(0, len(values_N), len(values_N))].mean() for _ in range(RESAMPLES)]
    return tuple(np.quantile(means, (0.025, 0.975)))


def cell(values_SxN: np.ndarray) -> str:
    low, high = interval(values_SxN)
    spread = values_SxN.mean(axis=1).std(ddof=1) if len(values_SxN) > 1 else float("nan")
    return f"{values_SxN.mean():.3f} ({low:.3f} to {high:.3f}; ± {spread:.3f})"


def relative_costs(model: str) -> dict[str, float]:
    """{row: FLOPs of a train step that mixes by the map, against that with a random map}, on digits."""
    flops = {}
    for name, kind in KINDS.items():
        if model not in kind.models or not kind.cost:
            continue
        c = config("digits", model, seed=0, epochs=1)
        c.train.num_views, c.model.classifier = 2, "none"
        c.phases = (phase("joint", epochs=1, supcon=1.0, ssl=1.2),)
        c.mix.method, c.mix.mask, c.mix.fill = "gradmix", "threshold", "partner"
        c.attribution.update(kind.keys)
        experiment = config_lib.from_config(config_lib.to_plain(c), num_devices=1)
        flops[name] = assembly.step_cost(experiment, num_classes=6, num_images=1024).flops
    return {name: value / flops["random"] for name, value in flops.items()}


def section(data: str, model: str, arguments) -> list[str]:
    """The table of one dataset and model."""
    runs = []
    for seed in arguments.seeds:
        epochs = arguments.cifar_epochs if data == "cifar10" else arguments.epochs
        c = config(data, model, seed=seed, epochs=epochs, cifar=arguments.cifar, cifar_size=arguments.cifar_size)
        runs.append(trained(c, os.path.join(arguments.folder, f"{data}_{model}_{seed}"), arguments.images))
    accuracies = [
        float(np.mean(np.argmax(jax.jit(functools.partial(forward, one))(one.images_NxHxWxC)[0], 1) == one.labels_N))
        for one in runs
    ]
    costs = relative_costs(model) if data == "digits" else {}  # the ratio depends only on the model
    accuracy = ", ".join(f"{value:.3f}" for value in accuracies)
    first = runs[0]
    title = "CIFAR-10 (JPEG copy)" if data == "cifar10" else "Digits"
    lines = [
        f"## {title}, {model}",
        "",
        f"{len(first.labels_N)} test images of {first.images_NxHxWxC.shape[1]} pixels, {first.program.num_classes} "
        f"known classes (split 0), seeds {', '.join(map(str, arguments.seeds))}; width {c.model.width}, "
        f"{epochs} epochs; accuracy on these images {accuracy}.",
        "",
        "| map | deletion ↓ | insertion ↑ | FLOPs of a step |",
        "|---|---|---|---|",
    ]
    for name, kind in KINDS.items():
        if model not in kind.models:
            continue
        deletion, insertion = areas(runs, kind, arguments.seeds)
        cost = f"{costs[name]:.3f} x" if name in costs else ""
        lines.append(f"| {name} | {cell(deletion)} | {cell(insertion)} | {cost} |")
        print(lines[-1], flush=True)
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="runs/maps", help="workdirs of the classifiers")
    parser.add_argument("--seeds", type=lambda text: [int(word) for word in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=256, help="test images, at most")
    parser.add_argument("--epochs", type=int, default=60, help="of digits")
    parser.add_argument("--cifar", help="folder of CIFAR-10 with train/ and test/")
    parser.add_argument("--cifar_epochs", type=int, default=10)
    parser.add_argument("--cifar_size", type=int, default=32, help="pixels that its images are resized to")
    parser.add_argument(
        "--data", type=lambda text: text.split(","), help="digits, cifar10; default: whatever is available"
    )
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(GRADIENT))
    parser.add_argument("--out", type=pathlib.Path, help="write the page here")
    arguments = parser.parse_args()
    arguments.data = arguments.data or ["digits", *["cifar10"] * bool(arguments.cifar)]
    if "cifar10" in arguments.data and not arguments.cifar:
        parser.error("--data=cifar10 needs the folder --cifar.")
    commit, changed = workdir_lib.commit()
    conditions = (
        f"Area under the curve of the predicted class's probability over {STEPS} steps: mean over images and seeds "
        f"(95 % bootstrap interval over images; ± standard deviation over seeds). jax {jax.__version__}, flax "
        f"{flax.__version__}, {jax.devices()[0].device_kind} ({os.cpu_count()} cores, {platform.machine()}); commit "
        f"{(commit or 'unknown')[:12]}{', with changes' * changed}."
    )
    lines = [conditions, ""]
    for data in arguments.data:
        for model in arguments.models:
            lines += section(data, model, arguments)
    text = "\n".join(lines)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
