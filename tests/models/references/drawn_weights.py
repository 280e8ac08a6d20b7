"""Weights and images that follow from their names: the same ones in PyTorch, where the references are made, and in the
tests, which only store what comes out."""

import zlib

import numpy as np


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of that name in a PyTorch state dict, float32: no scale, bias or statistic is 0 or 1."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith(("running_var", "gamma")) or (name.endswith("weight") and len(shape) == 1):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if len(shape) < 2:
        return rng.normal(0, 0.1, shape).astype(np.float32)
    if name.endswith(("cls_token", "pos_embed", "reg_token", "register_tokens", "mask_token")):
        return rng.normal(0, 0.5, shape).astype(np.float32)
    return (rng.standard_normal(shape, np.float32) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def state_of(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    return {name: drawn(name, tuple(shape)) for name, shape in shapes.items() if not name.endswith("batches_tracked")}


def images(size: int, batch: int = 2) -> np.ndarray:
    """images_BxHxWxC, about N(0, 1)."""
    return np.random.default_rng(size).normal(size=(batch, size, size, 3)).astype(np.float32)
