"""What a trained model says about images: computed once, kept in one file, and told apart by checkpoint.

Letters: N data set, H W image, h w feature map, C image channels, D feature.
"""

import dataclasses
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from gradmix_jax import augment
from gradmix_jax import data as data_lib
from gradmix_jax import workdir as workdir_lib
from gradmix_jax.data.source import hash_of

FEATURES = ("projection", "features")
# Of `Features`, what there is of each image besides outputs.
ROWS = ("labels", "classes", "hashes", "places")
# Batches that the device may be given before the first of them is done: more would fill its memory.
AHEAD = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """The outputs of one model for one part of the data.

    Attributes:
      part: "train", "validation", "test_known", "test_unknown", or what else the images are.
      checkpoint: fingerprint of the model.
      outputs: {"projection", "features", names of stages, "logits" where the model has them}: float32 [N, D].
      labels: int32 [N], -1 for unknown classes.
      classes: str [N], "data set/class" of each image.
      hashes: uint64 [N] of the pixels, as the model gets them before normalisation.
      places: int64 [N], where the images are in their source.
    """

    part: str
    checkpoint: str
    outputs: dict[str, np.ndarray]
    labels: np.ndarray
    classes: np.ndarray
    hashes: np.ndarray
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, places: np.ndarray) -> "Features":
        """Those of the images at `places` (indices or a mask)."""
        rows = {name: getattr(self, name)[places] for name in ROWS}
        return dataclasses.replace(self, outputs={name: x[places] for name, x in self.outputs.items()}, **rows)


def fingerprint(variables: Any) -> str:
    """16 hex digits that differ between models: a hash of all parameters and statistics."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def image_hashes(images_NxHxWxC: np.ndarray) -> np.ndarray:
    """uint64 [N]: equal for equal pixels, and else different but for one pair in about 2^64."""
    hashes = [hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in images_NxHxWxC]
    return np.frombuffer(b"".join(hashes), np.uint64)


def make_feature_function(model: Any, *, mean: tuple, std: tuple, stages: tuple[str, ...] = ()) -> Callable:
    """Jitted (variables, images_BxHxWxC uint8) -> {name: x_BxD float32}, in evaluation mode.

    Args:
      model: of `models.create`.
      mean, std: of the normalisation.
      stages: stages whose activations are averaged over the positions, besides the names of FEATURES and "logits".
    """

    @jax.jit
    def function(variables, images_BxHxWxC):
        images_BxHxWxC = images_BxHxWxC.astype(jnp.float32) / 255.0
        normalized = augment.normalize(images_BxHxWxC, mean=mean, std=std)
        z_BxD, out = model.apply(variables, normalized, train=False)
        outputs = {"projection": z_BxD, "features": out["features"]}
        outputs |= {name: out[name].astype(jnp.float32).mean(axis=(1, 2)) for name in stages}
        return outputs | ({"logits": out["logits"]} if "logits" in out else {})

    return function


def extract(
    function: Callable,
    variables: Any,
    images: data_lib.Source | np.ndarray,
    *,
    batch_size: int,
    progress: str | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """All outputs for every image of a source or of an array [N, H, W, C] uint8, in its order, and their hashes.

    The batch is spread over the local devices; images are read and hashed while the device works. The last batch is
    padded and the padding cut off, so that every image counts once at any batch size. `progress`: what to call this
    beside a progress bar, which is shown where it takes longer than a second; None: no bar.

    Returns:
      {name: x_NxD} and uint64 [N].
    """
    devices = jax.local_devices()
    batch_size = -(-batch_size // len(devices)) * len(devices)
    mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    variables = jax.device_put(variables, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    computing, parts, hashes = [], [], []
    with ThreadPoolExecutor(1) as hashing:
        starts = range(0, len(images), batch_size)
        for start in tqdm(starts, desc=progress, disable=progress is None, delay=1.0):
            stop = min(start + batch_size, len(images))
            stored = isinstance(images, np.ndarray)
            chunk = images[start:stop] if stored else data_lib.read_range(images, start, stop)
            hashes.append(hashing.submit(image_hashes, chunk))
            padding = np.zeros((batch_size - len(chunk), *chunk.shape[1:]), np.uint8)
            batch = jax.device_put(np.concatenate([chunk, padding]), rows)
            computing.append((function(variables, batch), len(chunk)))
            if len(computing) > AHEAD:
                parts.append(_fetched(*computing.pop(0)))
    parts += [_fetched(*each) for each in computing]
    outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return outputs, np.concatenate([future.result() for future in hashes])


def _fetched(outputs: dict[str, jax.Array], count: int) -> dict[str, np.ndarray]:
    """The first `count` rows, on the host; waits for them."""
    return {name: np.asarray(x)[:count] for name, x in outputs.items()}


def cache_key(checkpoint: str, setup: Any, sources: Mapping[str, data_lib.Source]) -> str:
    """Whatever the cached features depend on: model, data set, size, normalisation, images and labels of each part."""
    sizes = {
        part: [len(source), hash_of(source.indices, source.labels), source.records.fingerprint(source.indices)]
        for part, source in sources.items()
    }
    sections = {name: dataclasses.asdict(getattr(setup, name)) for name in ("dataset", "normalization")}
    return json.dumps([checkpoint, sections, setup.evaluate.stages, sizes], sort_keys=True)


def save(workdir: str, parts: Mapping[str, Features], key: str) -> None:
    """Write features.npz in one move: keys "<part>/<name of an output or of ROWS>"."""
    arrays = {"key": np.array(key)}
    for part, features in parts.items():
        rows = {name: getattr(features, name) for name in ROWS}
        arrays |= {f"{part}/{name}": x for name, x in (features.outputs | rows).items()}
        arrays[f"{part}/checkpoint"] = np.array(features.checkpoint)
    with workdir_lib.replacing(workdir_lib.path(workdir, workdir_lib.FEATURES), "wb") as file:
        np.savez(file, **arrays)


def load(workdir: str, key: str | None = None) -> dict[str, Features] | None:
    """The parts that `save` wrote; None where there is no such file, or it is of another key.

    Raises:
      ValueError: the file is damaged.
    """
    path = workdir_lib.path(workdir, workdir_lib.FEATURES)
    if not os.path.exists(path):
        return None
    try:
        with np.load(path) as file:
            if key is not None and str(file["key"]) != key:
                return None
            arrays = {name: file[name] for name in file.files if name != "key"}
    except (zipfile.BadZipFile, KeyError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); allowed: delete it, it will be computed again.") from error
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        part, _, name = name.rpartition("/")
        parts.setdefault(part, {})[name] = array
    return {part: _features(part, values) for part, values in parts.items()}


def _features(part: str, values: dict[str, np.ndarray]) -> Features:
    rows = {name: values.pop(name) for name in ROWS}
    return Features(part=part, checkpoint=str(values.pop("checkpoint")), outputs=values, **rows)
