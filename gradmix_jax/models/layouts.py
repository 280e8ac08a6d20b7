"""Names and layouts of the encoders in PyTorch's state dicts: one table, used in both directions.

A layout turns the paths of our variables ("params/encoder/stem_conv/kernel") into entries. An `Entry` is one tensor of
a state dict, the arrays of ours that it holds, and the two functions between them. Loading reads the entries, exporting
writes them.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

Arrays = Mapping[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a state dict.

    Attributes:
      name: its key, wrapper prefixes dropped.
      paths: our arrays that it holds.
      read: the tensor -> those arrays, in the order of `paths`.
      write: those arrays -> the tensor.
    """

    name: str
    paths: tuple[str, ...]
    read: Callable[[np.ndarray], Sequence[np.ndarray]]
    write: Callable[..., np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """One family of state dicts.

    Attributes:
      title: its name in messages.
      sign: a pattern that a key of every such state dict matches in full.
      modules: (pattern of our module's path, without "params/", in full; the name there, or a function of the match
        and the number of blocks of a stage).
      classifier: the name of the classification head there.
      ignored: pattern of the keys that the encoder has no use for.
      canonical: brings the variants of a state dict to one form, given the shapes of our variables by path.
      exported: the last step of an export, given the same shapes; undoes `canonical`.
    """

    title: str
    sign: str
    modules: tuple[tuple[str, str | Callable[[re.Match, int], str]], ...]
    classifier: str
    ignored: str = r"(?!)"
    canonical: Callable[[dict[str, np.ndarray], Shapes], dict[str, np.ndarray]] = lambda state, shapes: state
    exported: Callable[[dict[str, np.ndarray], Shapes], dict[str, np.ndarray]] = lambda state, shapes: state

    def entries(self, shapes: Shapes) -> tuple[Entry, ...]:
        """The entries of our variables, {path: shape}; of those that no module of the layout names, none."""
        entries, blocks = [], _blocks_per_stage(shapes)
        for module in dict.fromkeys(path.split("/", 1)[1].rpartition("/")[0] for path in shapes):
            leaves = {leaf: f"{group}/{module}/{leaf}" for group, leaf in LEAVES}
            leaves = {leaf: path for leaf, path in leaves.items() if path in shapes}
            name = self._name(module, blocks)
            if name is not None:
                entries += _entries(name, leaves, shapes)
        return tuple(entries)

    def _name(self, module: str, blocks: int) -> str | None:
        for pattern, name in (*self.modules, ("classifier/dense", self.classifier)):
            match = re.fullmatch(pattern, module)
            if match:
                return name(match, blocks) if callable(name) else match.expand(name)
        return None


def _blocks_per_stage(shapes: Shapes) -> int:
    return len({path.split("/")[2] for path in shapes if path.startswith("params/encoder/stage1_block")})


LEAVES = (
    ("params", "kernel"),
    ("params", "scale"),
    ("params", "bias"),
    ("batch_stats", "mean"),
    ("batch_stats", "var"),
    ("params", "scale1"),
    ("params", "scale2"),
    ("params", "class_token"),
    ("params", "registers"),
    ("params", "positions"),
)
TOKENS = {"class_token": "cls_token", "registers": "reg_token", "positions": "pos_embed"}
VECTORS = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
QKV = ("query", "key", "value")


def _entries(name: str, leaves: Mapping[str, str], shapes: Shapes) -> list[Entry]:
    """Those of one module, by the names and the ranks of its arrays."""
    entries = []
    for leaf, path in leaves.items():
        same = (lambda array: (array,)), (lambda array: array)
        if name.endswith(".qkv"):
            entries.append(_qkv(name, leaf, path, shapes))
        elif name.endswith(".attn.proj") and leaf == "kernel":
            read = lambda w_FxF, shape=shapes[path]: (w_FxF.T.reshape(shape),)
            write = lambda kernel_HxDxF: kernel_HxDxF.reshape(-1, kernel_HxDxF.shape[-1]).T
            entries.append(Entry(f"{name}.weight", (path,), read, write))
        elif leaf == "kernel" and len(shapes[path]) == 4:
            read, write = (lambda w_OIHW: (w_OIHW.transpose(2, 3, 1, 0),)), (lambda k: k.transpose(3, 2, 0, 1))
            entries.append(Entry(f"{name}.weight", (path,), read, write))
        elif leaf == "kernel":
            entries.append(Entry(f"{name}.weight", (path,), lambda w_OxI: (w_OxI.T,), lambda k_IxO: k_IxO.T))
        elif leaf in VECTORS:
            entries.append(Entry(f"{name}.{VECTORS[leaf]}", (path,), *same))
        elif leaf in ("scale1", "scale2"):
            entries.append(Entry(f"{name}.ls{leaf[-1]}.gamma", (path,), *same))
        else:
            entries.append(Entry(TOKENS[leaf], (path,), *same))
    return entries


def _qkv(name: str, leaf: str, path: str, shapes: Shapes) -> Entry:
    """Query, key and value of all heads, one below the other in a single tensor [3 * H * D, F] or [3 * H * D]."""
    paths = tuple(path.replace("/query/", f"/{part}/") for part in QKV)
    shape = shapes[path]

    def read(tensor: np.ndarray) -> list[np.ndarray]:
        return [(part.T if leaf == "kernel" else part).reshape(shape) for part in np.split(tensor, 3)]

    def write(*parts: np.ndarray) -> np.ndarray:
        flat = [part.reshape(shape[0], -1).T if leaf == "kernel" else part.reshape(-1) for part in parts]
        return np.concatenate(flat)

    return Entry(f"{name}.{'weight' if leaf == 'kernel' else 'bias'}", paths, read, write)


# --- residual networks


def _block(match: re.Match) -> str:
    return f"layer{match[1]}.{int(match[2]) - 1}"


RESNET = Layout(
    title="a ResNet with torchvision's names",
    sign=r"layer1\.0\.conv1\.weight",
    modules=(
        ("encoder/stem_conv", "conv1"),
        ("encoder/stem_bn", "bn1"),
        (r"encoder/stage(\d)_block(\d+)/((?:conv|bn)\d)", lambda match, _: f"{_block(match)}.{match[3]}"),
        (r"encoder/stage(\d)_block(\d+)/shortcut_conv", lambda match, _: f"{_block(match)}.downsample.0"),
        (r"encoder/stage(\d)_block(\d+)/shortcut_bn", lambda match, _: f"{_block(match)}.downsample.1"),
    ),
    classifier="fc",
    # The code of SupCon calls the shortcut so.
    canonical=lambda state, shapes: {name.replace(".shortcut.", ".downsample."): x for name, x in state.items()},
)

CLASSIFIER32 = Layout(
    title="the classifier32 of the open set literature",
    sign=r"conv9\.weight",
    modules=(
        (
            r"encoder/stage(\d)_layer(\d)_(conv|bn)",
            lambda match, _: f"{match[3]}{3 * (int(match[1]) - 1) + int(match[2])}",
        ),
    ),
    classifier="fc",
    ignored=r"bn10\..*",  # declared in the published code, but no image passes it
)


# --- transformers


def _inside_block(name: str) -> Callable[[re.Match, int], str]:
    return lambda match, blocks: f"blocks.{(int(match[1]) - 1) * blocks + int(match[2]) - 1}{match.expand(name)}"


def resized_positions(positions_hxwxF: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Positions of a grid of another size: bicubic (Keys' kernel with a = -0.5), antialiased where it shrinks, as timm.

    Args:
      positions_hxwxF: learned positions.
      size: (h, w) of the new grid.
    """
    shape = (*size, positions_hxwxF.shape[-1])
    if positions_hxwxF.shape == shape:
        return positions_hxwxF
    return np.asarray(jax.image.resize(positions_hxwxF.astype(np.float32), shape, "bicubic"))


def _canonical_vit(state: dict[str, np.ndarray], shapes: Shapes) -> dict[str, np.ndarray]:
    """One form for timm's and DINOv2's: class token with its position added, positions as our grid."""
    state = dict(state)
    state.pop("mask_token", None)
    if "register_tokens" in state:
        state["reg_token"] = state.pop("register_tokens")
    for name in ("cls_token", "reg_token"):
        if name in state and state[name].ndim == 3:
            state[name] = state[name][0]
    grid = shapes.get("params/encoder/positions")
    positions = state.get("pos_embed")
    if positions is None or positions.ndim != 3 or grid is None or "cls_token" not in state:
        return state
    positions_NxF, side = positions[0].astype(np.float32), math.isqrt(positions.shape[1])
    if positions.shape[1] == side**2 + 1:
        state["cls_token"] = state["cls_token"] + positions_NxF[:1]
        positions_NxF = positions_NxF[1:]
    if len(positions_NxF) == side**2:
        state["pos_embed"] = resized_positions(positions_NxF.reshape(side, side, -1), grid[:2])
    return state


def _exported_vit(state: dict[str, np.ndarray], shapes: Shapes) -> dict[str, np.ndarray]:
    """timm's form, in which the class token has a position unless there are registers: here one of zeros."""
    positions_NxF = state["pos_embed"].reshape(-1, state["pos_embed"].shape[-1])
    if "reg_token" not in state:
        positions_NxF = np.concatenate([np.zeros_like(positions_NxF[:1]), positions_NxF])
    tokens = {name: state[name][None] for name in ("cls_token", "reg_token") if name in state}
    return state | tokens | {"pos_embed": positions_NxF[None]}


VIT_BLOCK = r"encoder/stage(\d)_block(\d+)"
VIT = Layout(
    title="a vision transformer with timm's or DINOv2's names",
    sign=r"blocks\.0\.attn\.qkv\.weight",
    modules=(
        ("encoder", "tokens"),
        ("encoder/stem_conv", "patch_embed.proj"),
        ("encoder/norm", "norm"),
        (VIT_BLOCK, _inside_block("")),
        (rf"{VIT_BLOCK}/(norm\d)", _inside_block(r".\3")),
        (rf"{VIT_BLOCK}/attention/query", _inside_block(".attn.qkv")),  # with key and value
        (rf"{VIT_BLOCK}/attention/out", _inside_block(".attn.proj")),
        (rf"{VIT_BLOCK}/dense(\d)", _inside_block(r".mlp.fc\3")),
    ),
    classifier="head",
    canonical=_canonical_vit,
    exported=_exported_vit,
)
LAYOUTS = {"resnet": RESNET, "classifier32": CLASSIFIER32, "vit": VIT}


def layout_of_variables(shapes: Shapes) -> Layout | None:
    """The layout of our variables, {path: shape}; None for an encoder that PyTorch has no common names for."""
    if "params/encoder/class_token" in shapes:
        return VIT
    if "params/encoder/stage1_layer1_conv/kernel" in shapes:
        return CLASSIFIER32
    if "params/encoder/stem_bn/scale" in shapes and "params/encoder/stage1_block1/conv1/kernel" in shapes:
        return RESNET
    return None


def layout_of_state(names: Any) -> Layout | None:
    """The layout of a state dict's keys, without prefixes; None if no layout is recognized."""
    for layout in LAYOUTS.values():
        if any(re.fullmatch(layout.sign, name) for name in names):
            return layout
    return None
