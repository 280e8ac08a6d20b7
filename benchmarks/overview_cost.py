"""FLOPs of a train step of every row of the overview, relative to the first: its cost column without any training.

python benchmarks/overview_cost.py                                      digits, every row
python benchmarks/overview_cost.py --config=configs/cifar_osr.py --only=CutMix --only="GradMix, input"

The numbers are those that `python -m gradmix_jax.sweep overview` writes beside the results.
"""

import argparse
import runpy

import jax

from gradmix_jax import assembly, sweep
from gradmix_jax import config as config_lib

# Numbers of the digits' first split that the step's FLOPs depend on.
NUM_CLASSES, NUM_IMAGES = 6, 1280


def flops(base, label: str) -> float:
    """FLOPs of one step of a row on one device."""
    one = sweep.config_of(base, label, sweep.OVERVIEW[label])
    experiment = config_lib.from_config(config_lib.to_plain(one), num_devices=1)
    return assembly.step_cost(experiment, num_classes=NUM_CLASSES, num_images=NUM_IMAGES).flops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/digits_osr.py")
    parser.add_argument("--only", action="append", choices=sweep.OVERVIEW, help="a row; may be given several times")
    arguments = parser.parse_args()
    base = runpy.run_path(arguments.config)["get_config"]()
    first = next(iter(sweep.OVERVIEW))
    labels = arguments.only or list(sweep.OVERVIEW)
    print(f"{arguments.config}; jax {jax.__version__}, {jax.devices()[0].device_kind}\n")
    print("| method | config | source | FLOPs |\n|---|---|---|---|")
    reference = flops(base, first)
    for label in labels:
        variant = sweep.OVERVIEW[label]
        words = ", ".join([variant.recipe, *(f"{key}={value}" for key, value in variant.keys.items())])
        print(f"| {label} | {words} | {variant.paper} | {flops(base, label) / reference:.3f} x |", flush=True)


if __name__ == "__main__":
    main()
