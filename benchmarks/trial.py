"""How long does a whole trial take? A stretch of it through `main`, extrapolated to all epochs.

python benchmarks/trial.py [--config=configs/cifar_osr.py:layer] [--epochs=20] [--config.dataset.name=folder:PATH ...]

The stretch consists of the first `--epochs` epochs of the first phase and one of every other phase, with logging and
checkpoints as configured, followed by the evaluation of the whole test set. It starts without compiled programs. The
phases share one program, so their steps take the same time. With as many epochs as the config has, the trial is
measured, and nothing is extrapolated.
"""

import argparse
import os
import runpy
import statistics
import tempfile

import numpy as np
import startup

SKIPPED = 2  # steps after the first that may still wait for its leftovers


def phases_of(config: str) -> list[int]:
    """Epochs of the phases of an experiment file, `PATH` or `PATH:RECIPE`."""
    path, *recipe = config.split(":")
    return [phase["epochs"] for phase in runpy.run_path(path)["get_config"](*recipe).phases]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/cifar_osr.py:layer")
    parser.add_argument("--epochs", type=int, default=20, help="of the first phase")
    arguments, rest = parser.parse_known_args()
    planned = phases_of(arguments.config)
    if not 1 <= arguments.epochs <= planned[0]:
        parser.error(f"--epochs must be from 1 to {planned[0]}, the config's, got {arguments.epochs}.")
    measured = [arguments.epochs, *(1 for _ in planned[1:])]
    if arguments.epochs == planned[0]:
        measured = planned
    overrides = [f"--config.phases[{index}].epochs={epochs}" for index, epochs in enumerate(measured)]
    with tempfile.TemporaryDirectory() as cache:
        marks = startup.run_main(arguments.config, [*overrides, *rest], cache=cache)
    import jax  # imported late, so that the parent does not slow the child down

    steps_per_epoch = len(marks["steps"]) // sum(measured)
    total_steps = steps_per_epoch * sum(planned)
    if len(marks["steps"]) < SKIPPED + 2:
        parser.error(f"the stretch has {len(marks['steps'])} steps but needs {SKIPPED + 2}; raise --epochs.")
    # The mean, not the median, because checkpoints and logging count.
    after = marks["steps"][SKIPPED:]
    step = (after[-1] - after[0]) / (len(after) - 1)
    ends = np.array(marks["steps"][SKIPPED::steps_per_epoch])
    epochs = np.diff(ends) if len(ends) > 1 else np.array([step * steps_per_epoch])
    low, middle, high = np.quantile(epochs, [0.25, 0.5, 0.75])
    start, end = marks["first step"], marks["results"] - marks["steps"][-1]
    training = marks["steps"][-1] - start if measured == planned else step * (total_steps - 1)
    longest = max(np.diff(after)) - statistics.median(np.diff(after))

    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores"
    print(f"{arguments.config} {' '.join(rest)}; {planned} epochs of {steps_per_epoch} steps, measured: {measured}")
    print(f"jax {jax.__version__}, {device}\n")
    print("| part | seconds | of the whole |\n|---|---|---|")
    whole = start + training + end
    for name, seconds in (("until the first step", start), ("training", training), ("last step to results", end)):
        print(f"| {name} | {seconds:.1f} | {100 * seconds / whole:.1f} % |")
    print(f"| whole trial, {whole / 60:.1f} min | {whole:.1f} | 100 % |\n")
    print(f"an epoch: {middle:.2f} s, median ({low:.2f} to {high:.2f}, quartiles of {len(epochs)})")
    print(f"a step, checkpoints included: {1e3 * step:.2f} ms, mean of {len(after) - 1}")
    print(f"longest step in excess of the median: {longest:.2f} s")


if __name__ == "__main__":
    main()
