"""Compile the step for an absent GPU or TPU: does it fit, what does it move, how long should it take?

python benchmarks/ahead_of_time.py h100 [--batch=256] [--devices=1] [--dtype=bfloat16] [--only="layer"] [--save=FOLDER]
    [--image_size=224] [--remat]
python benchmarks/ahead_of_time.py v5e

XLA's own compiler for the device does the work, so layouts, fusions, memory and collectives are the real ones; nothing
is run, and the times are models, not measurements.
  h100 (needs `pip install "jax[cuda12]"`, no driver): every kernel takes as long as its bytes or its convolution's
    FLOPs at the card's peak, the longer of the two, and 2 us to start. What a kernel reads twice counts once.
    Collectives take no time; a line says what is computed while they run.
  v5e (needs `pip install "jax[tpu]"`): the compiler's own estimates of cycles, added up, at 1.5 GHz. Compiling
    takes minutes.
Ratios are to the step with random CutMix boxes, compiled in the same run.
"""

import argparse
import importlib.util
import os
import pathlib
import sys
import time
from typing import NamedTuple


class Target(NamedTuple):
    """A target device: bytes/s of its memory, FLOP/s by dtype, bytes of memory, and the package to install."""

    platform: str
    kind: str
    bandwidth: float
    flops: dict[str, float]
    memory: float
    package: str
    module: str


# The vendors' figures, dense; JAX multiplies float32 in TF32 on an H100 and in six passes of bfloat16 on a TPU.
TARGETS = {
    "h100": Target(
        "cuda",
        "NVIDIA H100 80GB HBM3",
        3.35e12,
        {"bfloat16": 989e12, "float32": 495e12},
        8.5e10,
        "jax[cuda12]",
        "jax_plugins.xla_cuda12",
    ),
    "v5e": Target("tpu", "TPU v5e", 8.2e11, {"bfloat16": 197e12, "float32": 33e12}, 1.7e10, "jax[tpu]", "libtpu"),
}
# 4 matrix units of 128 x 128 multiply and add once a cycle: 197e12 / (4 * 128 * 128 * 2).
CYCLES_A_SECOND = 1.5e9
KERNEL_START = 2e-6
SLICES = {1: "2x2", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
# 600 + 10 epochs of the 30,000 training images of a CIFAR-10 trial: configs/cifar_osr.py holds none out.
TRIAL_IMAGES, TRIAL_EPOCHS = 30_000, 610
# XLA's `GpuTargetConfigProto` of an H100, in place of a card that could be queried.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


class Estimate(NamedTuple):
    """Estimates for one step on one device. `launches` is the number of kernels (on a TPU, of fusions)."""

    flops: float
    bytes: float
    launches: int
    temporary_bytes: int
    seconds: float


def prepare(target: Target) -> None:
    """Set the environment before JAX is imported. No device is queried.

    Raises:
      SystemExit: the compiler is not installed.
    """
    try:
        found = importlib.util.find_spec(target.module) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        sys.exit(f'ahead_of_time: no compiler for {target.kind} here: pip install "{target.package}".')
    if target.platform == "cuda":
        settings = {"JAX_PLATFORMS": "cuda,cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
        # Autotuning measures kernels.
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"
    else:
        settings = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        settings |= {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost"}
    os.environ |= settings


def devices_of(target: Target, number: int) -> list:
    """`number` devices of an absent topology."""
    from jax.experimental import topologies

    if target.platform == "cuda":
        options = dict(topology=f"1x1x{number}", target_config=H100)
    else:
        options = dict(topology_name=f"v5e:{SLICES[number]}")
    return list(topologies.get_topology_desc(platform=target.platform, **options).devices[:number])


def compile_step(recipe: str, overrides: dict, phase_of, devices: list, **size):
    """The step, compiled for `devices`; `size` as in resnet18.config."""
    import resnet18

    options = dict(num_images=TRIAL_IMAGES, overrides=overrides, **size)
    return resnet18.compile_mapped(recipe, phase_of, devices, **options)[0]


def estimate(executable, target: Target, dtype: str) -> Estimate:
    """The estimate, by the models described above."""
    import hlo

    text = executable.as_text()
    temporary = executable.memory_analysis().temp_size_in_bytes
    if target.platform == "tpu":
        analysis = executable.cost_analysis()
        fusions = sum(instruction.operation == "fusion" for instruction in hlo.computations(text)["ENTRY"])
        seconds = hlo.estimated_cycles(text) / CYCLES_A_SECOND
        return Estimate(analysis["flops"], analysis["bytes accessed"], fusions, temporary, seconds)
    kernels = hlo.kernels(text)
    return Estimate(
        sum(kernel.times * kernel.flops for kernel in kernels),
        sum(kernel.times * kernel.bytes for kernel in kernels),
        sum(kernel.times for kernel in kernels),
        temporary,
        sum(kernel.times * kernel_seconds(kernel, target, dtype) for kernel in kernels),
    )


def kernel_seconds(kernel, target: Target, dtype: str) -> float:
    """Seconds of one launch of an `hlo.Kernel`, by the GPU model described above."""
    return KERNEL_START + max(kernel.bytes / target.bandwidth, kernel.flops / target.flops[dtype])


def describe_overlap(text: str, target: Target, dtype: str) -> str:
    """Describe what a GPU computes while it communicates."""
    import hlo

    found = sorted(hlo.overlaps(text, lambda kernel: kernel_seconds(kernel, target, dtype)), reverse=True)
    large = [f"{size / 1e6:.1f} MB behind {1e3 * seconds:.2f} ms" for size, seconds in found if size > 4e6]
    waiting = sum(seconds < KERNEL_START for size, seconds in found)
    return f"{len(found)} asynchronous collectives: {', '.join(large)}; {waiting} with nothing to compute meanwhile"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--batch", type=int, default=256, help="global batch")
    parser.add_argument("--devices", type=int, default=1, choices=SLICES)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--remat", action="store_true", help="recompute the blocks in the backward pass")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--only", default="", help="names of variants, separated by ;")
    parser.add_argument("--save", type=pathlib.Path, help="folder for the text of the programs")
    arguments = parser.parse_args()
    target = TARGETS[arguments.target]
    prepare(target)

    import jax
    import resnet18
    import step_cost

    variants = {"cutmix": ("cutmix", {}, resnet18.SSL), **step_cost.VARIANTS, **step_cost.EVERY_FILL}
    chosen = [name.strip() for name in arguments.only.split(";") if name.strip()] or list(step_cost.VARIANTS)
    for name in chosen:
        if name not in variants:
            parser.error(f"--only names {name!r}: it must be of {'; '.join(variants)}.")
    devices = devices_of(target, arguments.devices)
    size = dict(width=arguments.width, batch=arguments.batch, dtype=arguments.dtype)
    what = f"ResNet-18, {arguments.image_size} pixels{', remat' * arguments.remat}"
    print(f"{what}, {size}, compiled for {len(devices)} x {target.kind}; jax {jax.__version__}", flush=True)
    print("Compilers' counts and models, nothing was run; numbers of one device; ratios to CutMix in the same run\n")
    print("| step | TFLOP | GB moved | kernels | temporary MB | ms | images/s | FLOPs | bytes | memory | time |")
    print("|---" * 11, "|", sep="")
    sizes = resnet18.size_keys(arguments.image_size)
    references: dict[str, Estimate] = {}
    slowest = 0.0
    if arguments.remat:
        resnet18.recomputed().start()
    for name in dict.fromkeys(["cutmix", *chosen]):
        recipe, overrides, phase_of = variants[name]
        shared = step_cost.shared(overrides)
        of_reference = f"{phase_of.name} {shared}"
        if name != "cutmix" and of_reference not in references:
            reference = compile_step("cutmix", sizes | shared, phase_of, devices, **size)
            references[of_reference] = estimate(reference, target, arguments.dtype)
        started = time.perf_counter()
        executable = compile_step(recipe, sizes | overrides, phase_of, devices, **size)
        slowest = max(slowest, time.perf_counter() - started)
        if arguments.save:
            arguments.save.mkdir(parents=True, exist_ok=True)
            (arguments.save / f"{name}.txt").write_text(executable.as_text())
        own = estimate(executable, target, arguments.dtype)
        base = references.setdefault(of_reference, own)
        pairs = zip(
            (own.flops, own.bytes, own.temporary_bytes, own.seconds),
            (base.flops, base.bytes, base.temporary_bytes, base.seconds),
        )
        ratios = " | ".join(f"{mine / theirs:.3f} x" for mine, theirs in pairs)
        row = f"{own.flops / 1e12:.3f} | {own.bytes / 1e9:.2f} | {own.launches} | {own.temporary_bytes / 1e6:.0f}"
        print(
            f"| {name} | {row} | {1e3 * own.seconds:.2f} | {arguments.batch / own.seconds:.0f} | {ratios} |", flush=True
        )
    steps = TRIAL_IMAGES // arguments.batch * TRIAL_EPOCHS
    minutes = steps * own.seconds / 60
    print(f"\nslowest compilation {slowest:.0f} s; device memory {target.memory / 1e9:.0f} GB")
    if target.platform == "cuda" and arguments.devices > 1:
        print(describe_overlap(executable.as_text(), target, arguments.dtype))
    print(f"a trial of {TRIAL_EPOCHS} epochs has {steps} steps: {minutes:.1f} min of {name!r}, by this model")


if __name__ == "__main__":
    main()
