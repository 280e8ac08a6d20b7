"""Memory of large batches: the contrastive loss, whole and in blocks of anchors, and a step on one of 8 devices.

python benchmarks/large_batch.py [--width=64] [--step_batches=1024,8192]
python benchmarks/large_batch.py --micro_batch=128 [--width=64] [--step_batches=1024]     the step in micro batches, too

Temporary memory of the compiled programs by XLA's count; nothing is run. Two views, 8 devices: each has a quarter of
the global batch in anchors and twice the global batch in contrast features.
"""

import argparse
import sys

import communication
import jax
import jax.numpy as jnp
import resnet18

from gradmix_jax import assembly, objectives
from gradmix_jax import config as config_lib

DEVICES, VIEWS, PROJECTION = 8, 2, 128
BLOCKS = (256, 4096, sys.maxsize)
RECIPES = ("none", "layer", "input")


def loss_bytes(images: int, block_size: int) -> int:
    """Temporary bytes of value and gradient of SimCLR and SupCon on one device, for a global batch of images."""
    section = config_lib.to_plain(config_lib.default_config())["objective"] | {"block_size": block_size}
    spec = objectives.Spec(**section)

    def loss(z_BxD, contrast_MxD, labels_b):
        batch = objectives.make_batch(z_BxD, contrast_MxD, labels_b, views=VIEWS)
        return objectives.simclr(batch, spec) + objectives.supcon(batch, spec)

    rows, contrast = VIEWS * images // DEVICES, VIEWS * images
    # Without an axis, the classes of other devices are unknown, so this device's classes stand in for them.
    shapes = [(rows, PROJECTION), (contrast, PROJECTION)]
    z, gathered = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    labels = jax.ShapeDtypeStruct((images // DEVICES,), jnp.int32)
    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(z, gathered, labels).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def print_micro_batches(width: int, batch: int, size: int) -> None:
    """FLOPs and temporary memory of steps on one device, with the whole batch and in micro batches."""
    print(f"ResNet-18, width {width}, batch {batch}, float32, one device\n")
    print("| recipe | images in a pass | TFLOP | FLOPs | temporary GB | memory |\n|---|---|---|---|---|---|")
    for recipe in RECIPES:
        whole = None
        for images in (batch, size):
            keys = {"train.micro_batch_size": images}
            specs = resnet18.settings(recipe, resnet18.JOINT, width=width, batch=batch, overrides=keys)
            own = assembly.step_cost(specs, num_classes=resnet18.NUM_CLASSES, num_images=batch)
            whole = whole or own
            flops, memory = own.flops / whole.flops, own.temporary_bytes / whole.temporary_bytes
            cells = f"{own.flops / 1e12:.2f} | {flops:.3f} x | {own.temporary_bytes / 1e9:.2f} | {memory:.3f} x"
            print(f"| {recipe} | {images} | {cells} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--step_batches", default="1024,8192", help="global batches to compile the whole step for")
    parser.add_argument("--micro_batch", type=int, default=0, help="images per pass; 0: print the other tables")
    arguments = parser.parse_args()
    if arguments.micro_batch:
        print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
        for batch in arguments.step_batches.split(","):
            print_micro_batches(arguments.width, int(batch), arguments.micro_batch)
        return
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}; MB of temporary memory on each of 8 devices\n")
    heads = [f"blocks of {size}" if size < sys.maxsize else "whole" for size in BLOCKS]
    print("| global batch |", " | ".join(heads), "|\n|---|---|---|---|")
    for images in (1024, 2048, 4096, 8192):
        cells = [f"{loss_bytes(images, size) / 1e6:.1f}" for size in BLOCKS]
        print(f"| {images} |", " | ".join(cells), "|", flush=True)
    print(f"\n| step of ResNet-18, width {arguments.width}, recipe layer, float32: global batch | GB |\n|---|---|")
    for batch in arguments.step_batches.split(","):
        executable, _, _ = communication.compile_step(
            "layer", devices=DEVICES, width=arguments.width, batch=int(batch), overrides={"objective.block_size": 256}
        )
        print(f"| {batch} | {executable.memory_analysis().temp_size_in_bytes / 1e9:.2f} |", flush=True)


if __name__ == "__main__":
    main()
