"""Weights from elsewhere: from PyTorch checkpoints into our variables, and back.

    variables, report = load_variables("checkpoint.pth", module.init(key, images, train=False))
    print(report)
    safetensors_file.write("ours.safetensors", to_state_dict(variables))

Supported are torchvision's and timm's ResNets (either stem), timm's vision transformers, DINOv2 and classifier32, and
checkpoints of SimCLR, MoCo and SupCon that wrap one of them. The names of the tensors identify the architecture.
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gradmix_jax.models import safetensors_file, torch_file
from gradmix_jax.models.layouts import Entry, layout_of_state, layout_of_variables, resized_positions
from gradmix_jax.models.parts import HEADS

# Keys under which training code stores the state dict; the first one that holds tensors is used.
CONTAINERS = ("state_dict", "model", "model_state_dict", "net", "network", "encoder", "backbone", "teacher", "student")
CONTAINERS += ("state_dict_ema", "model_ema", "ema")
# Prefixes that wrappers add to names: DataParallel, torch.compile, and the models of SimCLR, MoCo and SupCon around
# their encoder.
PREFIXES = ("module.", "_orig_mod.", "encoder_q.", "base_encoder.", "encoder.", "backbone.", "model.")
# The two dense layers of a projection head: SupCon's, and that of SimCLR and MoCo v2 in the classifier's place.
PROJECTIONS = (("head.0", "head.2"), ("fc.0", "fc.2"))
HEAD_NAMES = r"(encoder_q\.)?(fc|heads?|classifier|linear|projection_head|projector|predictor|mlp_head)(\..*)?"
# The queue and the key encoders of MoCo's versions, the counter of averaged weights.
UNUSED = r"(encoder_k|momentum_encoder)\..*|queue(_ptr)?|n_averaged"
# Prefixes of our own variables in a file.
OURS = ("params/", "batch_stats/")
LISTED = 8  # names in a message
# {first layer: {its kernel size: model.stem}}
STEMS = {"conv1.weight": {3: "cifar", 7: "imagenet"}, "patch_embed.proj.weight": {4: "cifar", 16: "imagenet"}}


@dataclasses.dataclass(frozen=True)
class Report:
    """What was loaded, kept and ignored.

    Attributes:
      source: path of the file.
      loaded: paths of our arrays loaded from the file.
      kept: paths of our arrays that keep their initialization; all of heads.
      ignored: names of the file's tensors that were not used; all of heads, or without a meaning here.
      trained_on: the run that the weights are of, see `training.identity`; empty if unknown.
    """

    source: str
    loaded: tuple[str, ...]
    kept: tuple[str, ...]
    ignored: tuple[str, ...]
    trained_on: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        kept = f"; newly initialized: {_listed(self.kept)}" if self.kept else ""
        ignored = f"; not used: {_listed(self.ignored)}" if self.ignored else ""
        return f"{len(self.loaded)} arrays loaded from {self.source}{kept}{ignored}."


def load_variables(path: str, template: Mapping[str, Any]) -> tuple[dict[str, Any], Report]:
    """Our variables, replaced by the weights of a file.

    Args:
      path: .pth or .pt of `torch.save`, or .safetensors, also with our own names as `gradmix export` writes them.
      template: initialized {"params", "batch_stats"}. Its shapes must be met, except in the heads: a classifier of
        another number of classes and a projection head that the file lacks stay as they are. Positions of a
        transformer are resized to the template's.

    Returns:
      The variables (float32 NumPy arrays where loaded) and a `Report`.

    Raises:
      ValueError: the file cannot be read, is of another architecture, or its tensors do not fit. One line that lists
        what is missing, what is unexpected and what has the wrong shape.
    """
    state = read_state_dict(path)
    if all(name.startswith(OURS) for name in state):
        return merge_variables(unflatten_dict(state, sep="/"), template, source=path)
    return merge(state, template, source=path)


def read_state_dict(path: str) -> dict[str, np.ndarray]:
    """{name: array} of a file, or of the state dict in a nested checkpoint, wrapper prefixes included."""
    if not os.path.exists(path):
        raise ValueError(f"{path} does not exist.")
    if path.endswith(".safetensors"):
        return safetensors_file.read(path)
    found = _state_dict(torch_file.read(path), depth=4)
    if found is None:
        raise ValueError(f"{path} holds no state dict: no dict of tensors, at its top or under {_listed(CONTAINERS)}.")
    return found


def _state_dict(value: Any, depth: int) -> dict[str, np.ndarray] | None:
    if not isinstance(value, Mapping) or not depth:
        return None
    for name in CONTAINERS:
        found = _state_dict(value.get(name), depth - 1)
        if found is not None:
            return found
    return {name: array for name, array in value.items() if isinstance(array, np.ndarray)} or None


def merge(state: Mapping[str, np.ndarray], template: Mapping[str, Any], *, source: str) -> tuple[dict, Report]:
    """As `load_variables`, of a state dict that has been read. `source` is what messages call it."""
    ours = flatten_dict(dict(template), sep="/")
    shapes = {path: tuple(np.shape(leaf)) for path, leaf in ours.items()}
    # Heads without a counterpart in PyTorch's libraries have our names in an export with theirs.
    own = {name: array for name, array in state.items() if name.startswith(OURS)}
    given = without_prefixes({name: array for name, array in state.items() if name not in own}, source)
    layout = layout_of_variables(shapes)
    theirs = layout_of_state(given)
    if layout is None or theirs is not layout:
        what = theirs.title if theirs else f"of an unknown architecture ({_listed(given)})"
        own = layout.title if layout else "an encoder that has no counterpart in PyTorch's libraries"
        raise ValueError(f"{source} is {what}, but model.name is {own}; docs/any_model.md says which name loads which.")
    # Batch norm's step counters are irrelevant here.
    counted = {name: tensor for name, (_, tensor) in given.items() if not name.endswith("num_batches_tracked")}
    tensors = layout.canonical(counted, shapes)
    heads, body = _split(layout.entries(shapes))
    loaded, problems = {}, _Problems()
    for entry in body:
        _read(entry, tensors, shapes, loaded, problems)
    for group in _heads(heads, shapes, tensors):
        _read_head(group, tensors, shapes, loaded, problems)
    used = {entry.name for entry in body} | problems.used
    unused = [name for name in tensors if name not in used]
    unused_own = _read_ours(own, ours, _parts(own), loaded, problems)
    harmless = re.compile(f"{UNUSED}|{layout.ignored}|{HEAD_NAMES}")
    problems.unexpected += [name for name in unused if not harmless.fullmatch(name)]
    names = {short: full for short, (full, _) in given.items()}
    return _finish(ours, loaded, problems, source, [names.get(name, name) for name in unused] + unused_own)


def merge_variables(variables: Mapping[str, Any], template: Mapping[str, Any], *, source: str) -> tuple[dict, Report]:
    """As `merge`, for our own variables, {"params", "batch_stats"}, of another run."""
    ours, theirs = (flatten_dict(dict(tree), sep="/") for tree in (template, variables))
    grid, positions = "params/encoder/positions", theirs.get("params/encoder/positions")
    if positions is not None and grid in ours:
        theirs[grid] = resized_positions(np.asarray(positions), np.shape(ours[grid])[:2])
    loaded, problems = {}, _Problems()
    unused = _read_ours(theirs, ours, _parts((*ours, *theirs)), loaded, problems)
    return _finish(ours, loaded, problems, source, unused)


def _parts(paths: Iterable[str]) -> list[str]:
    """The parts of the model, such as the encoder, that these arrays belong to."""
    return list(dict.fromkeys(path.split("/")[1] for path in paths))


def _read_ours(theirs: Mapping, ours: Mapping, parts: list[str], loaded: dict, problems: "_Problems") -> list[str]:
    """Read arrays with our names in some parts of the model; returns those of heads that do not fit."""
    unused = []
    fits = lambda path: path in ours and np.shape(theirs[path]) == np.shape(ours[path])
    for part in parts:
        inside = lambda tree, part=part: [path for path in tree if path.split("/")[1] == part]
        given, wanted = inside(theirs), inside(ours)
        if part in HEADS and (set(given) != set(wanted) or not all(map(fits, given))):
            unused += given
            continue
        loaded |= {path: np.asarray(theirs[path]) for path in given if fits(path)}
        problems.missing += [path for path in wanted if path not in theirs]
        problems.unexpected += [path for path in given if path not in ours]
        both = [path for path in given if path in ours and not fits(path)]
        problems.shapes += [f"{p} {_shape(np.shape(theirs[p]))} instead of {_shape(np.shape(ours[p]))}" for p in both]
        problems.named.update(wanted)
    return unused


def _finish(ours: dict, loaded: dict, problems: "_Problems", source: str, unused: list[str]) -> tuple[dict, Report]:
    """The merged variables, unless something of the encoder is missing or left over."""
    kept = [path for path in ours if path not in loaded and path.split("/")[1] in HEADS]
    problems.missing += [path for path in ours if path not in loaded and path not in (*kept, *problems.named)]
    problems.raise_any(source)
    report = Report(source, tuple(sorted(loaded)), tuple(sorted(kept)), tuple(unused))
    return unflatten_dict(ours | loaded, sep="/"), report


def without_prefixes(state: Mapping[str, np.ndarray], source: str) -> dict[str, tuple[str, np.ndarray]]:
    """{name without wrapper prefixes: (name, tensor)}.

    Raises:
      ValueError: two tensors then have the same name.
    """
    short: dict[str, tuple[str, np.ndarray]] = {}
    for full, tensor in state.items():
        name, query = full, False
        while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), ""):
            name, query = name.removeprefix(prefix), query or prefix == "encoder_q."
        # MoCo v1 has its projection in place of the classifier.
        if query and name in ("fc.weight", "fc.bias"):
            name = f"encoder_q.{name}"
        if name in short:
            raise ValueError(f"{source} holds both {short[name][0]} and {full}; keep the state dict of one model.")
        short[name] = full, tensor
    return short


def to_state_dict(variables: Mapping[str, Any], *, projection: bool = False) -> dict[str, np.ndarray]:
    """Our variables as a state dict with the names of torchvision (ResNet), timm (transformers) or classifier32.

    Args:
      variables: {"params", "batch_stats"} of an encoder that has a layout.
      projection: include the projection head, with the names of SupCon (head.0, head.2).

    Raises:
      ValueError: the encoder has no layout.
    """
    ours = {path: np.asarray(leaf) for path, leaf in flatten_dict(dict(variables), sep="/").items()}
    shapes = {path: leaf.shape for path, leaf in ours.items()}
    layout = layout_of_variables(shapes)
    if layout is None:
        raise ValueError("this model.name has no counterpart in PyTorch's libraries to be exported as.")
    entries = list(layout.entries(shapes)) + (_projection_entries(PROJECTIONS[0], shapes) if projection else [])
    state = {}
    for entry in entries:
        state[entry.name] = np.ascontiguousarray(entry.write(*(ours[path] for path in entry.paths)))
        if entry.name.endswith("running_var"):
            state[entry.name.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    return layout.exported(state, shapes)


# --- inside


class _Problems:
    def __init__(self):
        self.missing: list[str] = []
        self.unexpected: list[str] = []
        self.shapes: list[str] = []
        self.named: set[str] = set()  # paths of ours that a line above is about
        self.used: set[str] = set()  # names of the file's tensors in heads that were read

    def raise_any(self, source: str) -> None:
        parts = (("missing", self.missing), ("unexpected", self.unexpected), ("wrong shapes", self.shapes))
        said = "; ".join(f"{what}: {_listed(names)}" for what, names in parts if names)
        if said:
            raise ValueError(f"{source} does not fit the model: {said}.")


def _listed(names: Iterable[str]) -> str:
    names = [name if len(name) <= 80 else f"{name[:77]}..." for name in names]
    rest = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + rest


def _read(entry: Entry, tensors: Mapping, shapes: Mapping, loaded: dict, problems: _Problems) -> None:
    problems.named.update(entry.paths)
    if entry.name not in tensors:
        problems.missing.append(entry.name)
        return
    tensor, wanted = tensors[entry.name], _tensor_shape(entry, shapes)
    if tensor.shape != wanted:
        stem = (
            STEMS.get(entry.name, {}).get(tensor.shape[-1])
            if tensor.ndim == 4 and tensor.shape[-1] != wanted[-1]
            else None
        )
        cause = f" (model.stem={stem!r})" if stem else ""
        problems.shapes.append(f"{entry.name} {_shape(tensor.shape)}{cause} instead of {_shape(wanted)}")
        return
    for path, array in zip(entry.paths, entry.read(tensor.astype(np.float32)), strict=True):
        loaded[path] = np.ascontiguousarray(array)


def _tensor_shape(entry: Entry, shapes: Mapping) -> tuple[int, ...]:
    # Without memory: zeros that are broadcast.
    return entry.write(*(np.broadcast_to(np.float32(0), shapes[path]) for path in entry.paths)).shape


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _split(entries: Iterable[Entry]) -> tuple[list[Entry], list[Entry]]:
    heads = [entry for entry in entries if entry.paths[0].startswith("params/classifier/")]
    return heads, [entry for entry in entries if entry not in heads]


def _projection_entries(names: tuple[str, str], shapes: Mapping) -> list[Entry]:
    entries = []
    for ours, name in zip(("hidden", "projection"), names, strict=True):
        path = f"params/projection/{ours}"
        if f"{path}/kernel" in shapes:
            entries.append(Entry(f"{name}.weight", (f"{path}/kernel",), lambda w: (w.T,), lambda k: k.T))
            entries.append(Entry(f"{name}.bias", (f"{path}/bias",), lambda b: (b,), lambda b: b))
    return entries


def _heads(classifier: list[Entry], shapes: Mapping, tensors: Mapping) -> list[list[Entry]]:
    """The groups of entries to be read together or not at all."""
    projections = [_projection_entries(names, shapes) for names in PROJECTIONS]
    found = [group for group in projections if group and all(entry.name in tensors for entry in group)]
    return [group for group in (classifier, *found[:1]) if group]


def _read_head(group: list[Entry], tensors: Mapping, shapes: Mapping, loaded: dict, problems: _Problems) -> None:
    weights = [entry for entry in group if entry.name.endswith(".weight")]
    if any(e.name not in tensors or tensors[e.name].shape != _tensor_shape(e, shapes) for e in weights):
        return
    for entry in group:
        _read(entry, tensors, shapes, loaded, problems)
        problems.used.add(entry.name)
    # The same layer with a bias that we cannot hold would give different logits.
    for entry in weights:
        bias = entry.name.replace(".weight", ".bias")
        if bias in tensors and bias not in problems.used:
            problems.unexpected.append(f"{bias} (model.classifier='linear' has one)")
    if any(entry.name in problems.missing for entry in group):
        problems.missing[:] = [
            f"{name} (model.classifier='linear_without_bias' has none)" if name in ("fc.bias", "head.bias") else name
            for name in problems.missing
        ]
