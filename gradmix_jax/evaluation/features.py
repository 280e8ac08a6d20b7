"""Feature extraction on this process's devices.

Letters: N dataset, H W image, h w feature map, C image channels, D feature.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from gradmix_jax import augment
from gradmix_jax import data as data_lib
from gradmix_jax.scores import odin

FEATURES = ("projection", "features")
# The arrays of `Features` with one row per image, besides outputs.
ROWS = ("labels", "classes", "hashes", "places")
# Batches in flight on the device; more would fill its memory.
AHEAD = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """The outputs of one model for one part of the data.

    Attributes:
      part: "train", "validation", "test_known", "test_unknown", or the name of another set of images.
      checkpoint: fingerprint of the model.
      outputs: {"projection", "features", names of stages, "logits" where the model has them}: float32 [N, D].
      labels: int32 [N], -1 for unknown classes.
      classes: str [N], the name of each image's class.
      hashes: uint64 [N] of the pixels that the model receives, before normalization.
      places: int64 [N], positions of the images in their source.
      dataset: name of the dataset that the images are of.
    """

    part: str
    checkpoint: str
    outputs: dict[str, np.ndarray]
    labels: np.ndarray
    classes: np.ndarray
    hashes: np.ndarray
    places: np.ndarray
    dataset: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, places: np.ndarray) -> "Features":
        """The features of the images at `places` (indices or a mask)."""
        rows = {name: getattr(self, name)[places] for name in ROWS}
        return dataclasses.replace(self, outputs={name: x[places] for name, x in self.outputs.items()}, **rows)


@dataclasses.dataclass(frozen=True, eq=False)
class Joined:
    """Several sources of images of one size, one after the other."""

    sources: tuple[data_lib.Source, ...]

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def take(self, places: np.ndarray) -> "Joined":
        """The images at `places`, ascending indices."""
        starts = np.cumsum([0, *map(len, self.sources)])
        of = [places[(places >= start) & (places < stop)] - start for start, stop in zip(starts, starts[1:])]
        return Joined(tuple(source.take(each) for source, each in zip(self.sources, of)))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Images start..stop-1, uint8 [n, H, W, C]."""
        taken = self.take(np.arange(start, min(stop, len(self))))
        return np.concatenate([data_lib.read_all(source) for source in taken.sources])


Images = data_lib.Source | Joined | np.ndarray


def read(images: Images, start: int, stop: int) -> np.ndarray:
    """Images start..stop-1 of a source or array, uint8 [n, H, W, C]."""
    if isinstance(images, np.ndarray):
        return images[start:stop]
    return images.read(start, stop) if isinstance(images, Joined) else data_lib.read_range(images, start, stop)


def fingerprint(variables: Any) -> str:
    """16 hex digits that differ between models: a hash of all parameters and statistics."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def image_hashes(images_NxHxWxC: np.ndarray) -> np.ndarray:
    """uint64 [N] hashes of the pixels; two different images share one with a probability of about 2^-64."""
    hashes = [hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in images_NxHxWxC]
    return np.frombuffer(b"".join(hashes), np.uint64)


def make_feature_function(
    model: Any,
    *,
    mean: tuple,
    std: tuple,
    stages: tuple[str, ...] = (),
    perturbation: Mapping[str, float] | None = None,
) -> Callable:
    """Jitted (variables, images_BxHxWxC uint8) -> {name: x_BxD float32}, in evaluation mode.

    Args:
      model: from `models.create`.
      mean, std: those of the normalization.
      stages: stages whose activations are averaged over positions, besides the names of FEATURES and "logits".
      perturbation: options of `odin.perturbed_logits`, to add "perturbed_logits" for models with logits; None: do not.
    """

    @jax.jit
    def function(variables, images_BxHxWxC):
        images_BxHxWxC = images_BxHxWxC.astype(jnp.float32) / 255.0
        normalized = augment.normalize(images_BxHxWxC, mean=mean, std=std)
        z_BxD, out = model.apply(variables, normalized, train=False)
        outputs = {"projection": z_BxD, "features": out["features"]}
        outputs |= {name: out[name].astype(jnp.float32).mean(axis=(1, 2)) for name in stages}
        if "logits" in out:
            outputs["logits"] = out["logits"]
        if "logits" in out and perturbation is not None:
            logits_of = lambda images: model.apply(variables, images, train=False)[1]["logits"]
            outputs["perturbed_logits"] = odin.perturbed_logits(logits_of, normalized, **perturbation)
        return outputs

    return function


def on_devices(variables: Any, devices: Sequence[jax.Device] | None = None) -> Any:
    """The variables of a model, copied once to each local device."""
    return jax.device_put(variables, _sharding(jax.sharding.PartitionSpec(), devices))


def _sharding(spec: jax.sharding.PartitionSpec, devices: Sequence[jax.Device] | None = None):
    mesh = jax.sharding.Mesh(np.array(jax.local_devices() if devices is None else devices), ("batch",))
    return jax.sharding.NamedSharding(mesh, spec)


def extract(
    function: Callable,
    variables: Any,
    images: Images,
    *,
    batch_size: int,
    hashed: bool = True,
    progress: str | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """All outputs for every image of a source or array, in its order.

    The batch is spread over the local devices; images are read and hashed while the device works. The last batch is
    padded and the padding cut off, so every image counts once at any batch size.

    Args:
      function: from `make_feature_function`.
      variables: those of the model, from `on_devices`.
      images: N images, 0 or more.
      batch_size: rounded up to a multiple of the number of local devices.
      hashed: whether to hash the images.
      progress: label of a progress bar, shown after one second; None: no bar.

    Returns:
      ({name: x_NxD}, uint64 [N], None unless `hashed`).
    """
    count = len(jax.local_devices())
    batch_size = -(-batch_size // count) * count
    rows = _sharding(jax.sharding.PartitionSpec("batch"))
    computing, parts, hashes = [], [], []
    with ThreadPoolExecutor(1) as hashing:
        starts = range(0, max(len(images), 1), batch_size)
        for start in tqdm(starts, desc=progress, disable=progress is None, delay=1.0):
            chunk = read(images, start, min(start + batch_size, len(images)))
            if hashed:
                hashes.append(hashing.submit(image_hashes, chunk))
            padding = np.zeros((batch_size - len(chunk), *chunk.shape[1:]), np.uint8)
            batch = jax.device_put(np.concatenate([chunk, padding]), rows)
            computing.append((function(variables, batch), len(chunk)))
            if len(computing) > AHEAD:
                parts.append(_fetched(*computing.pop(0)))
    parts += [_fetched(*each) for each in computing]
    outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return outputs, np.concatenate([future.result() for future in hashes]) if hashed else None


def _fetched(outputs: dict[str, jax.Array], count: int) -> dict[str, np.ndarray]:
    """The first `count` rows, on the host; waits for them."""
    return {name: np.asarray(x)[:count] for name, x in outputs.items()}
