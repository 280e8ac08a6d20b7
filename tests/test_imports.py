"""Imports go one way: a module may import only what comes before it in the order below."""

import ast
import os
import pathlib
import subprocess
import sys
import time

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "gradmix_jax"
# Lower ranks know nothing of higher ones. Modules of the same rank do not import each other.
RANKS = [
    {"config", "splits", "hlo", "files", "labels", "padding"},
    {"datasets"},
    {"augment"},
    {"models"},
    {"attribution"},
    {"masks"},
    {"mix"},
    {"objectives"},
    {"self_supervised"},
    {"state"},
    {"parallel"},
    {"program"},
    {"losses"},
    {"train_step"},
    {"checkpoint", "metrics_writer"},
    {"loop"},
    {"metrics", "scores", "calibration", "diversity", "corruptions"},
    {"significance", "features", "probe"},
    {"guards", "open_set"},
    {"evaluator"},
    {"out_of_distribution", "robustness"},
    {"evaluate"},
    {"experiment"},
    {"train"},
    {"command", "cost"},
    {"predict", "figure"},
    {"report"},
    {"main"},
    {"protocol"},
    {"sweep"},
]
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def top(path):
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "gradmix_jax":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("gradmix_jax.")]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_upwards(path):
    for name in imported(path):
        if name == "__version__":
            continue
        lower = RANK[name] < RANK[top(path)] or name == top(path)
        assert lower, f"{path.name} (rank {RANK[top(path)]}) imports {name} (rank {RANK[name]})"


def test_every_module_has_a_rank():
    assert {top(path) for path in modules()} == set(RANK)


def test_the_package_imports_quickly_and_nothing_large(tmp_path):
    """Neither TensorFlow nor PyTorch, which tensorboardX imports where it finds it; both are left to be imported."""
    for name in ("tensorflow", "torch"):
        (tmp_path / f"{name}.py").write_text("Tensor = float\n")
    code = (
        "import sys, gradmix_jax.main\n"
        "large = ('tensorflow', 'torch', 'tensorflow_datasets', 'sklearn', 'matplotlib.pyplot')\n"
        "print([name for name in large if name in sys.modules])\n"
        "import torch; print(torch.Tensor)"
    )
    path = os.pathsep.join([str(tmp_path), str(PACKAGE.parent)])
    environment = os.environ | {"PYTHONPATH": path}
    started = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert result.stdout.splitlines() == ["[]", "<class 'float'>"], result.stdout + result.stderr
    # The goal is 2 s on an idle machine; the bound leaves room for a busy one.
    assert time.perf_counter() - started < 10
