"""Cost of the map: the GradMix step against the same step with random CutMix boxes, in one run.

python benchmarks/step_cost.py                      XLA's FLOPs and temporary memory
python benchmarks/step_cost.py --repeats=20         and wall time: the steps take turns; median and quartiles
python benchmarks/step_cost.py --every_fill         and twenty more rows: masks x fills x stages of `layer`

The graph is that of ResNet-18 at 32 x 32 pixels; --width and --batch set its size, --dtype its precision.
"""

import argparse
import statistics

import hlo
import jax
import resnet18
import turns

from gradmix_jax import assembly
from gradmix_jax.method import masks, mix
from gradmix_jax.training import cost

NUM_IMAGES = 1024
DETACHED = {"objective.detach_anchors": True, "attribution.loss": "training"}
CLASSIFIED = {"model.classifier": "linear", "attribution.loss": "training"}
# Keys that the step with CutMix shares.
SHARED = DETACHED.keys() | CLASSIFIED.keys()
STAGES = {"stages 3 and 4": ("stage3", "stage4"), "stage 4": ("stage4",)}
# Name: (recipe, other keys, phase). Each is compared with CutMix in the same phase with the same SHARED keys.
VARIANTS = {
    "layer, stages 3 and 4": ("layer", {}, resnet18.SSL),
    "layer, stage 4": ("layer", {"attribution.stages": STAGES["stage 4"]}, resnet18.SSL),
    "layer, threshold, partner": ("layer", {"mix.mask": "threshold", "mix.fill": "partner"}, resnet18.SSL),
    "input": ("input", {}, resnet18.SSL),
    "layer, joint phase": ("layer", {}, resnet18.JOINT),
    "input, joint phase": ("input", {}, resnet18.JOINT),
    "layer, detached anchors": ("layer", DETACHED, resnet18.SSL),
    "input, detached anchors": ("input", DETACHED, resnet18.SSL),
    "layer, cross-entropy": ("layer", CLASSIFIED, resnet18.CROSS_ENTROPY),
    "input, cross-entropy": ("input", CLASSIFIED, resnet18.CROSS_ENTROPY),
}
# The remaining variants of `layer`.
EVERY_FILL = {
    f"layer, {stages}, {mask}, {fill}": (
        "layer",
        {"attribution.stages": names, "mix.mask": mask, "mix.fill": fill, "mix.patch_size": 4},
        resnet18.SSL,
    )
    for stages, names in STAGES.items()
    for mask in masks.MASKS
    for fill in mix.FILLS
}


def shared(overrides: dict) -> dict:
    """The overrides that also apply to the step with CutMix."""
    return {key: value for key, value in overrides.items() if key in SHARED}


def compiled(recipe: str, overrides: dict, phase_of, *, width: int, batch: int, dtype: str):
    """(executable, function that makes its first state) of one variant on one device."""
    specs = resnet18.settings(recipe, phase_of, width=width, batch=batch, dtype=dtype, overrides=overrides)
    sizes = dict(num_classes=resnet18.NUM_CLASSES, num_images=NUM_IMAGES)
    program = assembly.make_program(specs, **sizes)
    make_state = lambda: assembly.initial_state(specs, program)
    return cost.compile_step(program, jax.eval_shape(make_state)), make_state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=0, help="timed turns of each; 0 compiles only")
    parser.add_argument("--every_fill", action="store_true", help="masks x fills x stages")
    parser.add_argument("--steps", type=int, default=1, help="of a turn; some more on a GPU or TPU")
    arguments = parser.parse_args()
    size = dict(width=arguments.width, batch=arguments.batch, dtype=arguments.dtype)
    device = jax.devices()[0].device_kind
    print(f"ResNet-18, 32x32, {size}; jax {jax.__version__}, {device}; every ratio is to CutMix in the same run\n")
    print("| variant | GFLOP | FLOPs | temporary memory | wall time, median (quartiles) |\n|---|---|---|---|---|")
    references: dict[str, tuple] = {}
    for name, (recipe, overrides, phase_of) in (VARIANTS | (EVERY_FILL if arguments.every_fill else {})).items():
        of_reference = f"{phase_of.name} {shared(overrides)}"
        if of_reference not in references:
            references[of_reference] = compiled("cutmix", shared(overrides), phase_of, **size)
        reference, candidate = references[of_reference], compiled(recipe, overrides, phase_of, **size)
        base, own = hlo.cost_of(reference[0]), hlo.cost_of(candidate[0])
        wall = "not timed"
        if arguments.repeats:
            data = jax.device_put(resnet18.random_data(NUM_IMAGES))
            runs = {
                role: turns.of_executable(executable, make_state(), data)
                for role, (executable, make_state) in (("reference", reference), ("candidate", candidate))
            }
            times = turns.timed(runs, repeats=arguments.repeats, steps=arguments.steps)
            ratios = [own / base for own, base in zip(times["candidate"], times["reference"])]
            low, middle, high = statistics.quantiles(ratios, n=4)
            milliseconds = 1e3 * statistics.median(times["candidate"])
            wall = f"{middle:.3f} x ({low:.3f} to {high:.3f}); {milliseconds:.2f} ms"
        memory = own.temporary_bytes / base.temporary_bytes
        print(
            f"| {name} | {own.flops / 1e9:.2f} | {own.flops / base.flops:.4f} x | {memory:.3f} x | {wall} |", flush=True
        )


if __name__ == "__main__":
    main()
