"""Classifiers as files: StableHLO programs, safetensors arrays and a JSON description.

A program takes its arrays as arguments, from a .safetensors file: inside it they would be there three times (model,
explanation, files for other frameworks), and a program of a few hundred kilobytes can be read and compared.
"""

import json
import os
import shutil
import tempfile
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from gradmix_jax import stored as stored_lib
from gradmix_jax import workdir as workdir_lib
from gradmix_jax.data.source import BACKGROUNDS
from gradmix_jax.models import layouts, pretrained, safetensors_file
from gradmix_jax.portable import card, onnx_file
from gradmix_jax.portable.classifier import Classifier
from gradmix_jax.portable.from_run import FORMAT, VERSION
from gradmix_jax.workdir import storage, temporary

METADATA, CARD = workdir_lib.EXPORTED_METADATA, "README.md"
MODEL, SCORE, EXPLAIN = "model.stablehlo", "score.stablehlo", "explain.stablehlo"
WEIGHTS, ARRAYS = workdir_lib.EXPORTED_WEIGHTS, "score.safetensors"
PLACES, PATHS = "gallery/place_M", "gallery_paths.txt"
# Files that are read; the card and the ONNX model are for others.
READ = (METADATA, MODEL, SCORE, EXPLAIN, WEIGHTS, ARRAYS, PATHS)
PLATFORMS = ("cpu", "cuda", "tpu")
LAYOUTS = ("ours", "torch")
CHECKED_IMAGES = 5
TOLERANCE = 1e-5


def is_export(directory: str) -> bool:
    """Whether a directory holds an export, and not a run."""
    return any(storage.exists(os.path.join(directory, name)) for name in (METADATA, MODEL, SCORE))


def write(
    classifier: Classifier,
    out: str,
    *,
    layout: str = "ours",
    results: Mapping[str, Any] | None = None,
    onnx: bool = False,
) -> None:
    """Write a classifier into the new directory `out`, atomically, after reading it back and comparing.

    Args:
      classifier: from `from_run.load`.
      out: a directory that is empty or does not exist.
      layout: names and shapes of the weights: "ours", or "torch" for those of torchvision, timm or classifier32.
      results: the run's results.json for the card; None: the run has none.
      onnx: whether to write the model as ONNX too, see `onnx_file.write`.

    Raises:
      ValueError: `out` is not empty, the encoder has no layout in PyTorch, flatbuffers is not installed, or the files
        read back give different scores.
    """
    check_out(out)
    weights, names = _laid_out(classifier.weights, layout)
    parent = os.path.dirname(os.path.abspath(out))
    os.makedirs(parent, exist_ok=True)
    aside = tempfile.mkdtemp(prefix=f".{os.path.basename(os.path.abspath(out))}.", dir=parent)
    try:
        metadata = _write_all(classifier, aside, weights, names, layout)
        if onnx:
            onnx_file.write(classifier, os.path.join(aside, onnx_file.FILE))
        text = card.text(metadata, results, [*os.listdir(aside), stored_lib.SUMS])
        with open(os.path.join(aside, CARD), "w", encoding="utf-8") as file:
            file.write(text)
        stored_lib.write_sums(aside)
        _compare(classifier, read(aside))
        os.chmod(aside, 0o755)
        if os.path.isdir(out):
            os.rmdir(out)
        os.rename(aside, out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def check_out(out: str) -> None:
    """Raises ValueError for a directory that holds something, or a file."""
    if os.path.lexists(out) and (not os.path.isdir(out) or os.listdir(out)):
        raise ValueError(f"--out must be a new or empty directory, got {out!r}.")


def read(directory: str) -> Classifier:
    """The classifier of an export.

    Raises:
      ValueError: a file is missing or damaged, or of a newer format.
    """
    if not storage.is_remote(directory):
        return _read(directory, directory)
    with temporary.directory() as copy:
        for name in storage.files_below(directory):
            storage.download(f"{directory}/{name}", os.path.join(copy, name))
        return _read(copy, directory)


def _read(local: str, directory: str) -> Classifier:
    """`read`, from a copy on this machine."""
    path = lambda name: os.path.join(local, name)
    if not os.path.exists(path(METADATA)):
        raise ValueError(f"{directory} cannot be read as an export: it has no {METADATA}; export the run again.")
    try:
        sums = stored_lib.read_sums(local)
        listed = [name for name in READ if name in (sums or ()) or os.path.exists(path(name))]
        stored_lib.check_sums(sums, map(path, listed))
        metadata = stored_lib.export_metadata(path(METADATA), wanted=FORMAT, newest=VERSION)
        if sums is None and "checksums" in metadata:  # older exports have none
            raise ValueError(f"it has no {stored_lib.SUMS}; export the run again")
        weights = safetensors_file.read(path(WEIGHTS))
        stored = safetensors_file.read(path(ARRAYS))
        arrays, places_M = {name: stored[name] for name in metadata["score"]["arrays"]}, stored.get(PLACES)
        programs = {name: _deserialize(path(name)) for name in (MODEL, SCORE, EXPLAIN)}
        paths_M = None
        if os.path.exists(path(PATHS)):
            with open(path(PATHS), encoding="utf-8") as file:
                paths_M = file.read().splitlines()
        used = {name: weights[name] for name in metadata["model"]["weights"]}
        _check_fits(metadata, used, arrays, programs)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{directory} cannot be read as an export: {_reason(error)}.") from error
    call = lambda name: jax.jit(programs[name].call)
    rows = {"places_M": places_M, "paths_M": paths_M}
    return Classifier(metadata, used, arrays, call(MODEL), call(SCORE), call(EXPLAIN), **rows)


def _check_fits(metadata: Mapping[str, Any], weights, arrays, programs: Mapping[str, Any]) -> None:
    """Raises ValueError if the metadata, or the arrays that it names, are not those of the programs."""
    image, score = metadata["image"], metadata["score"]
    if image["background"] not in BACKGROUNDS:
        raise ValueError(f"{METADATA} is damaged: image.background is {image['background']!r:.40}")
    one = jax.ShapeDtypeStruct((1, image["size"], image["size"], image["channels"]), jnp.uint8)
    try:
        outputs = jax.eval_shape(programs[MODEL].call, _shapes(weights), one)
        wanted = {name: outputs[name] for name in score["inputs"]}
        with jax.enable_x64(score["float64"]):
            found = jax.eval_shape(programs[SCORE].call, _shapes(arrays), wanted)
        classes = found["class_scores"].shape[-1]
    except (KeyError, TypeError, ValueError) as error:
        said = textwrap.shorten(str(error), 100, placeholder=" ...")
        raise ValueError(f"{METADATA} does not fit {MODEL} and {SCORE} ({said})") from error
    if classes != len(metadata["class_names"]):
        raise ValueError(f"{METADATA} has {len(metadata['class_names'])} class names, and {SCORE} {classes} classes")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.strerror}: {os.path.basename(error.filename or '')}"
    if isinstance(error, KeyError):
        return f"it has no array {error.args[0]!r}"
    return str(error).rstrip(".")


def _deserialize(path: str) -> Any:
    with open(path, "rb") as file:
        content = file.read()
    _need_flatbuffers()
    try:
        return jax_export.deserialize(bytearray(content))
    except Exception as error:  # flatbuffers raises anything for a broken file
        raise ValueError(f"{os.path.basename(path)} is damaged ({type(error).__name__})") from error


def _need_flatbuffers() -> None:
    try:
        import flatbuffers  # noqa: F401
    except ImportError as error:
        raise ValueError("jax.export needs the package flatbuffers; pip install flatbuffers.") from error


def _write_all(classifier: Classifier, directory: str, weights, names, layout: str) -> dict[str, Any]:
    """Write every file except the card; returns the metadata."""
    _need_flatbuffers()
    image = classifier.metadata["image"]
    ours = _reader({name: x.shape for name, x in classifier.weights.items()}, layout)
    model = lambda weights, images: classifier.model(ours(weights), images)
    explain = lambda weights, arrays, images: classifier.explain(ours(weights), arrays, images)
    images = _symbolic((image["size"], image["size"], image["channels"]), jnp.uint8)
    used, arrays = _shapes({name: weights[name] for name in names}), _shapes(classifier.arrays)
    double = classifier.metadata["score"]["float64"]

    outputs = _serialize(os.path.join(directory, MODEL), model, used, images, double=False)
    write_score(classifier, os.path.join(directory, SCORE), outputs)
    _serialize(os.path.join(directory, EXPLAIN), explain, used, arrays, images, double=double)
    safetensors_file.write(os.path.join(directory, WEIGHTS), weights)
    stored = dict(classifier.arrays)
    if classifier.places_M is not None:
        stored[PLACES] = np.asarray(classifier.places_M, np.int64)
    safetensors_file.write(os.path.join(directory, ARRAYS), stored)
    if classifier.paths_M is not None:
        with open(os.path.join(directory, PATHS), "w", encoding="utf-8") as file:
            file.writelines(f"{each}\n" for each in classifier.paths_M)
    described = {
        "layout": layout,
        "weights": names,
        "input": f"uint8 [b, {image['size']}, {image['size']}, {image['channels']}], pixels as they are",
        "outputs": {name: [None, *output.shape[1:]] for name, output in outputs.items()},
        "platforms": PLATFORMS,
    }
    score = classifier.metadata["score"] | {"arrays": list(arrays)}
    metadata = classifier.metadata | {"model": described, "score": score, "checksums": stored_lib.SUMS}
    if metadata["threshold"] == -np.inf:  # JSON has no infinity
        metadata["threshold"] = None
    with open(os.path.join(directory, METADATA), "w", encoding="utf-8") as file:
        json.dump(metadata, file, indent=2, allow_nan=False)
        file.write("\n")
    return metadata


def write_score(classifier: Classifier, path: str, outputs: Mapping[str, Any]) -> Callable:
    """Write the program of the score alone; returns what was read back.

    Args:
      classifier: whose score.
      path: file to write.
      outputs: the model's outputs, or their shapes.
    """
    score = classifier.metadata["score"]
    wanted = {name: _symbolic(outputs[name].shape[1:], outputs[name].dtype) for name in score["inputs"]}
    _serialize(path, classifier.score, _shapes(classifier.arrays), wanted, double=score["float64"])
    return jax.jit(_deserialize(path).call)


def _shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in arrays.items()}


def _symbolic(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """Rows of that shape, as many as there are: the dimension b."""
    return jax.ShapeDtypeStruct((_BATCH, *shape), dtype)


(_BATCH,) = jax_export.symbolic_shape("b", scope=jax_export.SymbolicScope())


def _serialize(path: str, function: Callable, *arguments: Any, double: bool) -> Any:
    """Write the StableHLO of a function; returns the shapes of its outputs."""
    with jax.enable_x64(double):
        exported = jax_export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)
    with open(path, "wb") as file:
        file.write(exported.serialize())
    return jax.tree.unflatten(exported.out_tree, exported.out_avals)


def _laid_out(weights: Mapping[str, np.ndarray], layout: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """(arrays to store, names of those that the model takes)."""
    if layout == "ours":
        return dict(weights), list(weights)
    shapes = {name: x.shape for name, x in weights.items()}
    groups: dict[str, dict[str, np.ndarray]] = {"params": {}, "batch_stats": {}}
    for name, array in weights.items():
        group, _, rest = name.partition("/")
        groups[group][rest] = array
    state = pretrained.to_state_dict(groups)
    held = {path for entry in layouts.layout_of_variables(shapes).entries(shapes) for path in entry.paths}
    state |= {name: array for name, array in weights.items() if name not in held}
    return state, [name for name, array in state.items() if array.dtype != np.int64]


def _reader(shapes: Mapping[str, tuple[int, ...]], layout: str) -> Callable:
    """Function from the arrays that are stored to our weights; JAX can trace it."""
    if layout == "ours":
        return lambda stored: stored
    found = layouts.layout_of_variables(shapes)
    entries = found.entries(shapes)

    def ours(stored):
        kept = {name: x for name, x in stored.items() if name in shapes}
        state = found.canonical({name: x for name, x in stored.items() if name not in shapes}, shapes)
        for entry in entries:
            kept |= dict(zip(entry.paths, entry.read(state[entry.name])))
        return kept

    return ours


def _compare(classifier: Classifier, written: Classifier) -> None:
    """Raises ValueError unless the export read back gives the original scores on a few random images."""
    image = classifier.metadata["image"]
    shape = (CHECKED_IMAGES, image["size"], image["size"], image["channels"])
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    expected, found = (each.scores(each.outputs(images)) for each in (classifier, written))
    for name in ("score", "class_scores"):
        error = float(np.max(np.abs(expected[name] - found[name]) / np.maximum(1, np.abs(expected[name]))))
        if not error <= TOLERANCE:
            raise ValueError(
                f"the export differs from the run: {name} by {error:.2g} on {CHECKED_IMAGES} random images."
            )
