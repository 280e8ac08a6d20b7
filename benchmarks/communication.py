"""Communication between devices in a step: collectives counted in the compiled program, and a model of their cost.

python benchmarks/communication.py [--recipe=layer] [--batch=1024] [--width=64] [--only=mappings]

Compiles the step for 1, 2, 4 and 8 devices (of the CPU, unless there are that many others), reads its collectives and
compares their bytes with what the algorithm needs: one gather of the projections and its transposes, the classes, one
reduction of the gradient, the batch statistics of every batch norm in every pass, the metrics. Nothing is run.
Then the same step on 8 devices by every mapping (`train.mapping`): FLOPs, collectives and memory of each.

The costs are modeled, not measured: every collective takes some time to start, and a ring moves 2 (n - 1) / n of an
all-reduce's bytes and (n - 1) / n of a gather's over each device's links; nothing is hidden behind the computation. The
constants are in LINKS; change them for your machine.
"""

import argparse
import dataclasses
import math
import os
from typing import NamedTuple

if "--xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import hlo
import jax
import resnet18

from gradmix_jax.training import cost, mapping

NUM_IMAGES = 8192


class Link(NamedTuple):
    """Bytes/s out of a device, seconds to start a collective and for each hop, FLOP/s of a device in bfloat16."""

    bandwidth: float
    start: float
    hop: float
    flops: float


# TPU v5e: 45 GB/s per link and direction, a ring of one axis in both directions, about 1 us per hop; 197 TFLOP/s.
# H100: NVLink 450 GB/s per direction, about 80 % of it for large all-reduces, some 20 us for small ones; 989 TFLOP/s.
LINKS = {"TPU v5e": Link(9e10, 5e-6, 1e-6, 197e12), "H100, NVLink": Link(3.6e11, 2e-5, 0.0, 989e12)}
POD = "TPU v5e"
# Share of the peak at which the step itself is assumed to compute.
UTILIZATION = 0.3


def compile_step(recipe: str, *, devices: int, **options):
    """(executable, program, shapes of the state) of the mapped step, joint phase (SupCon and SimCLR)."""
    mapped = jax.devices()[:devices]
    return resnet18.compile_mapped(recipe, resnet18.JOINT, mapped, num_images=NUM_IMAGES, **options)


def state_bytes(mapping_name: str, state, devices: int) -> int:
    """Bytes of the state on one device."""
    placed, *_ = mapping.MAPPINGS[mapping_name](jax.devices()[:devices]).abstract(state, ())
    size = lambda leaf: math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return sum(size(leaf) for leaf in jax.tree.leaves(placed))


def print_mappings(recipe: str, *, devices: int, **options) -> None:
    """Print a row per mapping, with the numbers of one device."""
    kinds = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
    heads = ("mapping", "GFLOP", "GB moved", "temporary MB", "state MB", "collectives MB", *kinds)
    print("|", " | ".join(heads), "|")
    print("|---" * len(heads), "|", sep="")
    for name in mapping.MAPPINGS:
        executable, _, state = compile_step(recipe, devices=devices, mapping_name=name, **options)
        own, found = cost.of(executable), hlo.collectives(executable.as_text())
        cells = [name, f"{own.flops / 1e9:.1f}", f"{own.bytes / 1e9:.2f}", f"{own.temporary_bytes / 1e6:.0f}"]
        cells += [f"{state_bytes(name, state, devices) / 1e6:.2f}"]
        cells += [f"{sum(collective.bytes for collective in found) / 1e6:.2f}"]
        for kind in kinds:
            sizes = [collective.bytes for collective in found if collective.kind == kind]
            cells.append(f"{len(sizes)}: {sum(sizes) / 1e6:.2f} MB" if sizes else "–")
        print("|", " | ".join(cells), "|", flush=True)


def bytes_by_purpose(found: list[hlo.Collective], program, state) -> dict[str, int]:
    """Bytes on one device: projections (gather), their transposes, classes, gradient, batch statistics, scalars."""
    parameters = {leaf.shape for leaf in jax.tree.leaves(state.params)}
    purposes = dict.fromkeys(("projections", "transposes", "classes", "gradient", "statistics", "scalars", "other"), 0)
    for collective in found:
        for dtype, shape in collective.results:
            purpose = "other"
            if shape == ():
                purpose = "scalars"
            elif collective.kind == "all-gather" and len(shape) == 2:
                purpose = "projections"
            elif collective.kind == "all-gather" and dtype == "s32":
                purpose = "classes"
            elif collective.kind == "reduce-scatter":
                purpose = "transposes"
            elif collective.kind == "all-reduce" and shape in parameters:
                purpose = "gradient"
            elif collective.kind == "all-reduce" and len(shape) == 2 and shape[0] == 2:
                purpose = "statistics"  # mean and mean of squares, or their two cotangents
            purposes[purpose] += hlo.size_of(dtype, shape)
    return purposes


def needed(program, state, devices: int) -> dict[str, int]:
    """The same by arithmetic: the least that the algorithm needs on more than one device.

    The transposes are those of the cotangents of map and training, or a single one if one pass serves both.
    Statistics: every batch norm twice for each channel, in the clean and the mixed pass forward and backward, and in
    the map's backward pass as far as it reaches (all batch norms of `input`, those behind the first stage of `layer`).
    """
    rows, images = program.batch_size * program.num_views, program.batch_size
    projection = 4 * program.model.projection
    passes = 1 if program.shares_backward else 2
    channels = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree)) // 2  # mean and variance
    norms = {name: channels(stats) for name, stats in state.batch_stats["encoder"].items()}
    statistics = sum(norms.values()) * (4 if program.mixes else 2)
    if program.mix.uses_map and not program.shares_backward:
        if program.attribution.uses_input:
            statistics += sum(norms.values())
        elif program.attribution.uses_stages:
            first = min(program.attribution.stages)
            behind = lambda name: name.startswith("stage") and name[: len(first)] > first
            statistics += sum(size for name, size in norms.items() if behind(name))
    # The bias of a shortcut's batch norm has the same gradient as the one it is added to, and XLA sends it once.
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    gradient = sum(leaf.size for path, leaf in leaves if "shortcut_bn']['bias" not in jax.tree_util.keystr(path))
    return {
        "projections": rows * projection,
        "transposes": passes * rows // devices * projection,
        "classes": 4 * images,
        "gradient": 4 * gradient,
        "statistics": 2 * 4 * statistics,
    }


def seconds(purposes: dict[str, int], number: int, devices: int, link: Link) -> tuple[float, float]:
    """(start-up, transfer) of `number` collectives by the model above; `purposes` as in `bytes_by_purpose`."""
    share = (devices - 1) / devices
    # A transpose's result is one device's share of what is moved; an all-reduce is a scatter and a gather.
    factors = {"projections": share, "classes": share, "transposes": devices * share}
    moved = sum(factors.get(purpose, 2 * share) * size for purpose, size in purposes.items())
    hops = 2 * (devices**0.5 - 1)  # the two sides of a square slice
    return number * (link.start + hops * link.hop), moved / link.bandwidth


def _milliseconds(purposes, number, devices, flops, link) -> str:
    start, transfer = seconds(purposes, number, devices, link)
    compute = flops / (UTILIZATION * link.flops)
    share = compute / (compute + start + transfer)
    return f"{1e3 * start:.2f} + {1e3 * transfer:.2f}, {1e3 * compute:.2f} ms ({100 * share:.0f} %)"


def print_devices(recipe: str, *, batch: int, **options) -> None:
    """Print the collectives of `pmap` by purpose and what they should cost, for 1 to 8 devices and larger slices."""
    print("models: start + transfer, computing (share of the step that is computing)\n")
    names = ("projections", "transposes", "classes", "gradient", "statistics", "scalars", "other")
    print("| devices | collectives |", " | ".join((*names, "needed", "ratio", *LINKS)), "|")
    print("|---" * (len(names) + 4 + len(LINKS)), "|", sep="")
    for devices in (1, 2, 4, 8):
        executable, program, state = compile_step(recipe, devices=devices, batch=batch, **options)
        flops = executable.cost_analysis()["flops"]
        found = hlo.collectives(executable.as_text()) if devices > 1 else []
        purposes = bytes_by_purpose(found, program, state)
        least = sum(needed(program, state, devices).values()) if devices > 1 else 0
        ratio = f"{sum(purposes.values()) / least:.3f} x" if least else "–"
        costs = [_milliseconds(purposes, len(found), devices, flops, link) for link in LINKS.values()]
        cells = (f"{purposes[name]:,}" for name in names)
        print(f"| {devices} | {len(found)} |", " | ".join((*cells, f"{least:,}", ratio, *costs)), "|", flush=True)
    # The bytes above equal those needed, so larger slices follow by arithmetic, for as many images per device.
    images = batch // devices
    print(f"\n| {POD} devices, {images} images on each | global batch | bytes | start + transfer, computing |")
    print("|---|---|---|---|")
    for slice_of in (8, 16, 64, 256):
        purposes = needed(dataclasses.replace(program, batch_size=images * slice_of), state, slice_of)
        costs = _milliseconds(purposes, len(found), slice_of, flops, LINKS[POD])
        print(f"| {slice_of} | {images * slice_of} | {sum(purposes.values()):,} | {costs} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="layer")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1024, help="global batch")
    parser.add_argument("--only", default="", choices=["", "pmap", "mappings"], help="only one of the two parts")
    arguments = parser.parse_args()
    size = dict(width=arguments.width, batch=arguments.batch)
    print(
        f"ResNet-18, width {arguments.width}, 32x32, recipe {arguments.recipe}, global batch {arguments.batch}, float32"
    )
    print(f"jax {jax.__version__}, compiled for {jax.devices()[0].device_kind}; bytes of results on each device")
    if arguments.only != "mappings":
        print_devices(arguments.recipe, **size)
    if arguments.only != "pmap":
        print("\nby mapping, 8 devices\n")
        print_mappings(arguments.recipe, devices=8, **size)


if __name__ == "__main__":
    main()
