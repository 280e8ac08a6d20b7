"""Every key of a config, with its default, and the checks that need nothing but the config.

An experiment file in `configs/` takes `default_config()` and assigns a few keys. Values are checked where they are
owned: each section is splatted into a frozen dataclass, which refuses what it does not know (see `experiment.py`).
"""

import difflib
import json
import math
import numbers
import os
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict


def default_config() -> ConfigDict:
    """The default: digits, a small network, input-gradient GradMix; a minute on a CPU."""
    c = ConfigDict()
    c.name = ""  # what tables call this method; empty: its recipe
    c.seed = 0  # of initialisation, batches, views, maps and mixing

    c.dataset = ConfigDict()
    c.dataset.name = "digits"  # digits, a TFDS name, folder:PATH or idx:PATH
    c.dataset.unknown_name = ""  # data set of the unknown classes; empty: the benchmark's, or the same one
    c.dataset.benchmark = "mnist"  # whose published class splits; "random": a seeded one; "all": every class is known
    c.dataset.trial = 0  # which of the splits, 0 to 4 (any number for "random")
    c.dataset.num_known = 6  # number of known classes, for benchmark "random" only
    c.dataset.image_size = 16  # pixels; images of another size are resized
    c.dataset.channels = 1  # 1 (grey) or 3 (colour); images are converted
    c.dataset.validation_fraction = 0.1  # share of the known training images kept out of training
    c.dataset.storage = "resident"  # "resident": uint8 on the device; "stream": read from disk as training goes
    c.dataset.data_dir = ""  # of TFDS; empty: its default
    c.dataset.download = True  # let TFDS download and prepare what is not there
    c.dataset.bad_images = "error"  # unreadable images: "error", or "skip" with a warning that names them

    c.normalization = ConfigDict()
    c.normalization.mean = (0.5,)  # one number a channel, images in [0, 1]
    c.normalization.std = (0.25,)

    c.augment = ConfigDict()
    c.augment.jitter = (0.4, 0.4, 0.4, 0.1)  # strength of brightness, contrast, saturation, hue
    c.augment.jitter_prob = 0.8
    c.augment.crop_scale = (0.2, 1.0)  # share of the image's area; (1, 1) leaves the crop out
    c.augment.crop_ratio = (3 / 4, 4 / 3)  # width / height
    c.augment.flip_prob = 0.5  # of a horizontal flip; 0 for digits and letters
    c.augment.grey_prob = 0.2
    c.augment.rotation_degrees = 0.0  # uniform in +- this
    c.augment.blur_prob = 0.0  # of a Gaussian blur, for large images
    c.augment.policy = "standard"  # or, in place of jitter, grey and blur: "randaugment", "augmix"
    c.augment.num_ops = 2  # operations of randaugment, one after the other
    c.augment.magnitude = 9  # of randaugment's operations, 0 to 30; the most for augmix, where 9 is its severity 3

    c.model = ConfigDict()
    c.model.name = "small_cnn"  # see gradmix_jax/models
    c.model.stem = "cifar"  # "cifar": 3x3, stride 1, no pool; "imagenet": 7x7, stride 2, max pool
    c.model.width = 0  # channels of the first stage; 0: the published width
    c.model.hidden = 512  # hidden units of the projection head
    c.model.projection = 128  # size of the projection
    c.model.classifier = "none"  # head for cross-entropy: "none", "linear" or "cosine"
    c.model.dtype = "float32"  # of the encoder's compute, or "bfloat16"; parameters and losses stay float32

    c.attribution = ConfigDict()
    c.attribution.method = "input"  # input, gradient_x_input, layer (LayerCAM), grad_cam, random
    c.attribution.stages = ("stage3", "stage4")  # for layer and grad_cam
    c.attribution.sign = 1  # 1: evidence that raises the loss; -1: that lowers it
    c.attribution.norm = "image"  # min-max per "image", or over the whole "batch"
    c.attribution.smoothing = 3  # odd averaging window of input maps, pixels; 1: none
    # Whose gradient: simclr, supcon, cross_entropy, moco, barlow_twins, or "training" (the weighted sum of the phase).
    c.attribution.loss = "simclr"
    c.attribution.every = 1  # a fresh map every so many steps; between them random maps, which cost no backward pass

    c.mix = ConfigDict()
    c.mix.method = "gradmix"  # gradmix, cutmix, saliencymix, fmix, mixup, none
    c.mix.mask = "threshold"  # "threshold" or "box"
    c.mix.fill = "partner"  # partner, partner_resized, noise, mean, zeros
    c.mix.keep_range = (0.5, 0.9)  # share of pixels kept, drawn uniformly
    c.mix.keep_draw = "image"  # one draw per "image", or per "batch"
    c.mix.mixed_views = "all"  # mix "all" views, or the "first" only
    c.mix.group_size = 16  # partners are drawn within groups of this many images; divides a device's batch
    c.mix.mixup_alpha = 1.0  # of mixup's Beta(alpha, alpha)
    c.mix.fmix_decay = 3.0  # of the power of fmix's noise with frequency, 0 to 10; the larger, the larger the patches

    c.objective = ConfigDict()
    c.objective.temperature = 0.05
    c.objective.base_temperature = 0.07  # contrastive losses are multiplied by temperature / base_temperature
    c.objective.mixed_supcon = False  # add the supervised loss with mixed positives
    c.objective.detach_anchors = False  # no gradient of the mixed loss through the clean features
    c.objective.label_smoothing = 0.0  # of cross-entropy
    c.objective.block_size = 4096  # anchors at a time of a contrastive loss on a device: bounds memory of large batches
    c.objective.ssl = "simclr"  # what a phase's weight `ssl` is of: simclr, moco or barlow_twins
    c.objective.queue_size = 8192  # of moco: a multiple of batch_size * num_views
    c.objective.momentum = 0.999  # of moco's key encoder
    c.objective.off_diagonal_weight = 0.005  # of barlow_twins

    # One after the other; each with the weights of SupCon (gamma), SSL + mixed SSL (lambda) and cross-entropy.
    c.phases = (phase("joint", epochs=60, supcon=1.0, ssl=1.0),)

    c.optimizer = ConfigDict()
    c.optimizer.name = "adam"  # adam (AdamW with weight_decay), sgd (Nesterov), lars
    c.optimizer.learning_rate = 1e-3
    c.optimizer.warmup_epochs = 0.0  # linear, in the first phase that has epochs, at most as long as that
    c.optimizer.final_fraction = 0.512  # a cosine leads to this share of learning_rate at the end of each phase
    c.optimizer.per_epoch = True  # after the warm-up, change the rate at the start of an epoch only
    c.optimizer.weight_decay = 0.0  # norms and biases are spared
    c.optimizer.momentum = 0.9  # of sgd and lars
    c.optimizer.ema = 0.0  # decay of a moving average of the weights that is evaluated in their place; 0: none

    c.train = ConfigDict()
    c.train.batch_size = 128  # images per step, over all devices; each gives num_views views
    c.train.num_views = 2
    c.train.log_every_steps = 20
    c.train.checkpoint_every_epochs = 50
    c.train.keep_checkpoints = 2  # the newest ones
    c.train.workers = 0  # reading threads, storage "stream" only; 0: one for small images, two a core for others
    c.train.cache_gigabytes = 8.0  # of host memory for decoded images, storage "stream" only: read once, then kept

    c.evaluate = ConfigDict()
    c.evaluate.batch_size = 500
    c.evaluate.feature = "features"  # of the headline numbers: "features" of the encoder, their "projection", "logits"
    c.evaluate.score = "topk_cosine"  # of the headline numbers: a key of gradmix_jax/scores
    c.evaluate.k = 3  # topk_cosine: the score of a class is the sum of the k largest cosine similarities
    c.evaluate.scores = ("all",)  # scores to compare with it, on every feature; "all", or names
    c.evaluate.stages = ("stage3",)  # stages whose activations, averaged over positions, are scored as well
    c.evaluate.near = ()  # out-of-distribution data sets that are like the known classes: a TFDS name, folder:PATH,
    c.evaluate.far = ()  # idx:PATH, noise:uniform or noise:gaussian; and such that are not
    c.evaluate.corruptions = "none"  # of test images: "regenerated", "cifar10_corrupted", or folder:PATH of a release
    c.evaluate.corruption_reference = ""  # workdir of the run whose errors divide ours in the mean corruption error
    c.evaluate.probes = ()  # other labelled data sets to probe the frozen encoder on
    c.evaluate.duplicates = "error"  # test images that are in training or validation: "error", or "drop" them
    return c


def phase(name: str, *, epochs: int, supcon: float = 0.0, ssl: float = 0.0, cross_entropy: float = 0.0) -> ConfigDict:
    """One entry of `phases`: objective weights for a number of epochs."""
    weights = dict(supcon=float(supcon), ssl=float(ssl), cross_entropy=float(cross_entropy))
    return ConfigDict(dict(name=name, epochs=epochs, **weights))


RECIPES = {
    # The project's default: jax.grad with respect to the images, thresholded masks, the partner's own pixels.
    "input": {
        "mix": {"method": "gradmix", "mask": "threshold", "fill": "partner"},
        "attribution": {"method": "input"},
    },
    # The paper's: LayerCAM of the chosen stages, boxes, the whole partner resized into the box.
    "layer": {
        "mix": {"method": "gradmix", "mask": "box", "fill": "partner_resized"},
        "attribution": {"method": "layer"},
    },
    # The choices of the authors' released code: noise in the box, the first view only, one draw and one scale a batch.
    "released": {
        "mix": {
            "method": "gradmix",
            "mask": "box",
            "fill": "noise",
            "mixed_views": "first",
            "keep_draw": "batch",
        },
        "attribution": {"method": "layer", "norm": "batch", "sign": 1},
    },
    # The paper's masks and fill, with the other map of activations and gradients.
    "grad_cam": {
        "mix": {"method": "gradmix", "mask": "box", "fill": "partner_resized"},
        "attribution": {"method": "grad_cam"},
    },
    # Baselines on the same step.
    "none": {"mix": {"method": "none"}},
    "cutmix": {"mix": {"method": "cutmix", "mask": "box", "fill": "partner"}},
    "saliencymix": {"mix": {"method": "saliencymix", "mask": "box", "fill": "partner"}},
    "fmix": {"mix": {"method": "fmix", "mask": "threshold", "fill": "partner"}},
    "mixup": {"mix": {"method": "mixup"}},
    # Its zeros are those of normalised images: the mean colour.
    "cutout": {"mix": {"method": "cutmix", "mask": "box", "fill": "mean"}},
    # Baselines without mixing, of other views.
    "randaugment": {"mix": {"method": "none"}, "augment": {"policy": "randaugment"}},
    "augmix": {"mix": {"method": "none"}, "augment": {"policy": "augmix"}},
    # The control that tells whether the map matters.
    "random": {
        "mix": {"method": "gradmix", "mask": "threshold", "fill": "partner"},
        "attribution": {"method": "random"},
    },
}


def apply_recipe(c: ConfigDict, name: str) -> ConfigDict:
    """Assign the keys of a named recipe: what comes after the colon in `--config=configs/cifar_osr.py:layer`.

    Args:
      c: a config; changed in place.
      name: a key of RECIPES.

    Returns:
      The same config.

    Raises:
      ValueError: no such recipe.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe {name!r} is unknown; allowed: {', '.join(RECIPES)}.")
    c.update(RECIPES[name])
    return c


def to_plain(config: ConfigDict) -> dict[str, Any]:
    """Dicts, lists, strings and numbers only: what config.json holds and the specs are made from."""
    return json.loads(config.to_json())


def read(workdir: str, name: str = "config.json") -> dict[str, Any]:
    """A JSON file that a run wrote into its workdir; a config with the defaults of keys that are younger than the run.

    Raises:
      ValueError: it is not there, or it is damaged.
    """
    path = os.path.join(workdir, name)
    if not os.path.exists(path):
        raise ValueError(f"there is no {name} in {workdir}; allowed: the workdir of a run that has written it.")
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
    except ValueError as error:  # of JSON and of UTF-8
        raise ValueError(f"{path} is damaged ({error}); allowed: a file as a run writes it.") from error
    return _with_defaults(content) if name == "config.json" else content


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """A new key's default means what was done before there was the key."""
    complete = to_plain(default_config())
    for name, section in complete.items():
        if isinstance(section, dict):
            complete[name] = section | config.get(name, {})
        else:
            complete[name] = config.get(name, section)
    return complete


def flatten(config: dict[str, Any]) -> dict[str, Any]:
    """Sections unfolded: {"mix.fill": ..., "seed": ...}."""
    flat = {}
    for name, section in config.items():
        flat |= (
            {f"{name}.{key}": value for key, value in section.items()} if isinstance(section, dict) else {name: section}
        )
    return flat


def validate(config: ConfigDict) -> None:
    """Compare keys and types with `default_config`.

    Raises:
      ValueError: an unknown or missing key, or a value of another type; the sentence names key, value and type.
    """
    _compare(to_plain(config), default_config().to_dict(), "")


def check_choice(key: str, value: Any, allowed: Iterable[str]) -> None:
    """Raises ValueError where `value` is none of `allowed`; it names key, value, what is allowed, and a guess."""
    allowed = tuple(allowed)
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"{key} is {value!r}; allowed: {', '.join(allowed)}{hint}.")


def check_number(
    key: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    whole: bool = False,
) -> None:
    """Raises ValueError where `value` is no finite number within the bounds: one sentence, as `check_choice`.

    Args:
      key, value: to name.
      least, above: lower bound that is itself allowed, or not; at most one of them.
      most, below: the same of the upper bound; not without a lower one.
      whole: whether it has to be an integer. True and False are no numbers.
    """
    kind, words = (numbers.Integral, "a whole number") if whole else (numbers.Real, "a number")
    is_number = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
    within = is_number and (least is None or value >= least) and (above is None or value > above)
    if within and (most is None or value <= most) and (below is None or value < below):
        return
    lower = f"{above} < " if least is None else f"{least} <= "
    if least is None and above is None:
        allowed = words
    elif most is None and below is None:
        allowed = f"{words} above {above}" if least is None else f"{words}, {least} or more"
    elif most is not None and least is not None:
        allowed = f"{words} from {least} to {most}"
    else:
        allowed = f"{lower}value{f' < {below}' if most is None else f' <= {most}'}"
    raise ValueError(f"{key} is {value!r}; allowed: {allowed}.")


def _compare(section: dict[str, Any], default: dict[str, Any], prefix: str) -> None:
    for key in section.keys() - default.keys():
        raise ValueError(f"unknown config key {prefix}{key}; allowed here: {', '.join(sorted(default))}.")
    for key in default.keys() - section.keys():
        raise ValueError(f"missing config key {prefix}{key}.")
    for key, wanted in default.items():
        value = section[key]
        if isinstance(wanted, dict):
            if not isinstance(value, dict):
                raise ValueError(f"{prefix}{key} is {value!r}; allowed: a section with keys {', '.join(wanted)}.")
            _compare(value, wanted, f"{prefix}{key}.")
        elif key == "phases":
            _check_phases(value, wanted[0])
        else:
            _check_type(f"{prefix}{key}", value, wanted)


def _check_phases(phases, wanted) -> None:
    if not isinstance(phases, (tuple, list)) or not phases:
        raise ValueError(f"phases is {phases!r}; allowed: a tuple of one phase or more.")
    for index, entry in enumerate(phases):
        if not isinstance(entry, (dict, ConfigDict)):
            raise ValueError(f"phases[{index}] is {entry!r}; allowed: a phase, as gradmix_jax.config.phase makes it.")
        _compare(dict(entry), dict(wanted), f"phases[{index}].")


def _check_type(key: str, value: Any, wanted: Any) -> None:
    if isinstance(wanted, tuple):
        if not isinstance(value, (tuple, list)):
            raise ValueError(f"{key} is {value!r}; allowed: a tuple such as {wanted or ('name',)!r}.")
        for item in value:
            # What is empty by default holds names.
            _check_type(f"an element of {key}", item, wanted[0] if wanted else "")
        return
    # A whole number is fine where a fraction is expected, but True is not a number here.
    accepted = (int, float) if isinstance(wanted, float) else type(wanted)
    if not isinstance(value, accepted) or (isinstance(value, bool) and not isinstance(wanted, bool)):
        raise ValueError(f"{key} is {value!r}; allowed: a value of type {type(wanted).__name__}.")
