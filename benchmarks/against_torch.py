"""Our train step against PyTorch's: recipe `layer`, self-supervised phase, ResNet-18 at 32 x 32 pixels.

python benchmarks/against_torch.py                              on a CPU: minutes, most of which is compiling
python benchmarks/against_torch.py --width=64 --batch=256 --dtype=bfloat16 --modes=reduce-overhead,max-autotune \
    --channels_last --steps=10                                  on a GPU

"eager" is the usual implementation (a separate forward and backward pass for the maps, boxes in a Python loop on the
host), "shared" is our algorithm in PyTorch, and "compiled" is "shared" under torch.compile; see `torch_gradmix.py`.
Each mode of torch.compile takes turns with our step and gets its own table; tuning may take many minutes. All steps
start from the same weights, and each one chooses its batch, makes views, maps, boxes and mixed images, and updates the
parameters (Adam). Crop and flip are the same batched code on the device for all PyTorch steps; color jitter and
grayscale are off everywhere.

The steps take turns in one process, so a slowdown of the machine hits all of them. A busy CPU is still unfair:
PyTorch's threads wait for each other after every operation, so one core taken by another process delays all of them.
Measure on an idle machine, or on one core (`taskset -c 0`). On a GPU, float32 may use TF32 in all steps. Only this
benchmark needs PyTorch.
"""

import argparse
import os
import statistics
import sys

import numpy as np
import turns

NUM_IMAGES = 1024
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def experiment_of(*, width: int, batch: int, dtype: str, group_size: int = 16):
    """The experiment that defines the settings of all steps."""
    import resnet18

    overrides = {"mix.group_size": group_size}
    return resnet18.settings("layer", resnet18.SSL, width=width, batch=batch, dtype=dtype, overrides=overrides)


def our_step(specs, data: tuple[np.ndarray, ...]):
    """(function that runs steps and returns the last one's metrics, first state)."""
    import jax
    import resnet18

    from gradmix_jax import assembly
    from gradmix_jax.training import cost

    sizes = dict(num_classes=resnet18.NUM_CLASSES, num_images=len(data[0]))
    program = assembly.make_program(specs, **sizes)
    state = assembly.initial_state(specs, program)
    executable = cost.compile_step(program, state)
    first = jax.device_get(state)
    return turns.of_executable(executable, state, jax.device_put(data)), first


class TorchSteps:
    """PyTorch's steps from our first state; each is a function that runs steps and returns the last one's loss."""

    def __init__(self, specs, images: np.ndarray, first, *, device: str, channels_last: bool):
        import torch_gradmix

        self._device = device
        layout = dict(channels_last=channels_last)
        model = lambda: torch_gradmix.network(specs, first.params, first.batch_stats, device=device, **layout)
        self._make = {
            "eager": lambda: torch_gradmix.Eager(model(), images, specs, **layout),
            "shared": lambda: torch_gradmix.Shared(model(), images, specs, **layout),
        }

    def uncompiled(self) -> dict:
        return {name: self._waited(make()) for name, make in self._make.items()}

    def compiled(self, mode: str):
        return self._waited(self._make["shared"]().compile(mode))

    def _waited(self, step):
        import torch

        def run(steps):
            for _ in range(steps):
                loss = step()
            if self._device == "cuda":
                torch.cuda.synchronize()
            return loss

        return run


def table(times: dict[str, list[float]], losses: dict[str, float], batch: int) -> str:
    """Markdown; each ratio is the median over the turns of our time divided by the other's."""

    def cell(values, scale, decimals):
        low, middle, high = (f"{scale * value:.{decimals}f}" for value in statistics.quantiles(values, n=4))
        return f"{middle} ({low} to {high})"

    lines = ["| step | ms, median (quartiles) | images/s | our time / its time | last loss |", "|---|---|---|---|---|"]
    for name, own in times.items():
        ratio = "" if name == "ours" else cell([our / its for our, its in zip(times["ours"], own)], 1, 3)
        speed = f"{batch / statistics.median(own):.0f}"
        lines.append(f"| {name} | {cell(own, 1e3, 1)} | {speed} | {ratio} | {losses[name]:.3f} |")
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=64, help="images; a multiple of 16")
    parser.add_argument("--repeats", type=int, default=10, help="timed turns of each, 2 or more")
    parser.add_argument("--steps", type=int, default=1, help="of a turn; some more on a GPU")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument(
        "--modes", default="default", help=f"modes of torch.compile, separated by commas: {', '.join(MODES)}"
    )
    parser.add_argument("--channels_last", action="store_true", help="PyTorch models and images in NHWC")
    parsed = parser.parse_args(arguments)
    if parsed.batch < 16 or parsed.batch > NUM_IMAGES or parsed.batch % 16:
        parser.error(f"--batch must be a multiple of 16 up to {NUM_IMAGES}, got {parsed.batch}.")
    if parsed.repeats < 2:
        parser.error(f"--repeats must be at least 2, got {parsed.repeats}.")
    parsed.modes = [mode for mode in parsed.modes.split(",") if mode]
    for mode in parsed.modes:
        if mode not in MODES:
            parser.error(f"--modes must be from {', '.join(MODES)}, or empty, got {mode!r}.")
    return parsed


def compare(steps: dict, ours, flags: argparse.Namespace) -> None:
    """Let them take turns and print their table."""
    # Three turns: to compile, to tune, and to capture a graph if requested.
    times = turns.timed({**steps, "ours": ours}, repeats=flags.repeats, steps=flags.steps, warm_up=3)
    losses = {name: float(run(1)) for name, run in steps.items()} | {"ours": float(ours(1)["loss"])}
    print(table(times, losses, flags.batch) + "\n", flush=True)


def compare_compiled(steps: TorchSteps, mode: str, ours, flags: argparse.Namespace) -> bool:
    """The same with PyTorch's compiled step; returns whether it could be compiled and run."""
    from torch._dynamo.utils import counters

    counters.clear()
    try:
        compare({f"compiled, {mode}": steps.compiled(mode)}, ours, flags)
    except Exception as error:  # whatever PyTorch's compiler raises: keep the other tables
        first_line = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"compiled, {mode}: failed ({first_line})\n", flush=True)
        return False
    if counters["inductor"]["cudagraph_skips"]:
        print(f"compiled, {mode}: PyTorch left CUDA graphs out\n", flush=True)
    return True


def main(arguments: list[str] | None = None) -> int:
    flags = parse(arguments)
    try:
        import torch
    except ImportError:
        needed = "install it with pip install torch==2.13.0 (only this benchmark needs it)."
        print(f"torch is not installed; {needed}", file=sys.stderr)
        return 2
    cuda = torch.cuda.is_available()
    if flags.device == "cuda" and not cuda:
        print("--device is 'cuda' but torch finds no GPU; use auto or cpu.", file=sys.stderr)
        return 2
    device = "cuda" if cuda and flags.device != "cpu" else "cpu"
    # Both must be set before JAX is imported: that it leaves memory to PyTorch, and where it runs.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import resnet18

    if jax.default_backend() != {"cpu": "cpu", "cuda": "gpu"}[device]:
        print(
            f"jax runs on {jax.default_backend()!r} but torch on {device!r}; use the same device for both.",
            file=sys.stderr,
        )
        return 2
    torch.manual_seed(0)
    if device == "cuda":
        torch.backends.cudnn.benchmark = True  # XLA tries algorithms too
        torch.set_float32_matmul_precision("high")
    specs = experiment_of(width=flags.width, batch=flags.batch, dtype=flags.dtype)
    data = resnet18.random_data(NUM_IMAGES)
    ours, first = our_step(specs, data)
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    settings = {key: getattr(flags, key) for key in ("width", "batch", "dtype", "repeats", "steps", "channels_last")}
    print(f"ResNet-18, 32x32, {settings}")
    jax_name = jax.devices()[0].device_kind
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    print(f"jax {jax.__version__} on {jax_name}; torch {torch.__version__} on {name}; {cores} cores, load {load}\n")
    images = data[0].reshape(-1, *specs.image_shape)
    steps = TorchSteps(specs, images, first, device=device, channels_last=flags.channels_last)
    compare(steps.uncompiled(), ours, flags)
    compiled = [compare_compiled(steps, mode, ours, flags) for mode in flags.modes]
    return int(not all(compiled))


if __name__ == "__main__":
    sys.exit(main())
