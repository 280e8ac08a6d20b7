"""Does a step on a Linux CPU become faster when malloc asks for huge pages?

python benchmarks/huge_pages.py --recipes=none,cutmix,layer,input   the table of benchmarks/README.md
python benchmarks/huge_pages.py --width=4 --batch=16 --repeats=1    smallest

A new process per setting of GLIBC_TUNABLES compiles the step of ResNet-18 at 32 x 32 pixels; then the processes take
turns. CPU time is that of all threads, and less disturbed by other programs than wall time.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

HUGE = "glibc.malloc.hugetlb=1"
# Name: GLIBC_TUNABLES. By default glibc returns most freed memory to the system; when it is allocated again, the kernel
# has to clear it.
SETTINGS = {
    "default": "",
    "huge pages": HUGE,
    "freed memory kept": "glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=8294967296",
}
SETTINGS["both"] = f"{HUGE}:{SETTINGS['freed memory kept']}"
MODE = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def serve(recipe: str, width: int, batch: int) -> None:
    """The child: run a turn of steps for each number read, and write its (CPU, wall) seconds per step."""
    import jax
    import resnet18
    import step_cost
    import turns

    executable, make_state = step_cost.compiled(recipe, {}, resnet18.SSL, width=width, batch=batch, dtype="float32")
    data = jax.device_put(resnet18.random_data(step_cost.NUM_IMAGES))
    run = turns.of_executable(executable, make_state(), data)
    for line in sys.stdin:
        cpu, wall = time.process_time(), time.perf_counter()
        run(int(line))
        seconds = (time.process_time() - cpu, time.perf_counter() - wall)
        print(json.dumps([value / int(line) for value in seconds]), flush=True)


def turn(child: subprocess.Popen, steps: int) -> list[float]:
    """(CPU, wall) seconds per step of a turn in a child.

    Raises:
      SystemExit: the child ended; its messages are on stderr.
    """
    with contextlib.suppress(BrokenPipeError):
        print(steps, file=child.stdin, flush=True)
    line = child.stdout.readline()
    if not line:
        raise SystemExit("a process of the benchmark ended early; its messages are above")
    return json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default="none,input")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2, help="of a turn")
    parser.add_argument("--repeats", type=int, default=10, help="turns")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments.serve, arguments.width, arguments.batch)
    if not MODE.exists():
        raise SystemExit(f"{MODE} does not exist: huge pages need Linux with transparent huge pages")
    import jax  # imported late: children do not need it before they are started

    mode = MODE.read_text().split("[")[1].split("]")[0]
    device = f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores"
    size = f"width {arguments.width}, {arguments.batch} images"
    print(f"ResNet-18, 32x32, {size}; jax {jax.__version__}, {device}; transparent_hugepage: {mode}")
    print(f"milliseconds per step: median (quartiles) of {arguments.repeats} turns\n")
    print("| recipe | malloc | CPU time | of default | wall time | of default |\n|---|---|---|---|---|---|", flush=True)
    for recipe in arguments.recipes.split(","):
        command = [sys.executable, __file__, f"--serve={recipe}"]
        command += [f"--width={arguments.width}", f"--batch={arguments.batch}"]
        with contextlib.ExitStack() as stack:
            children = {}
            for name, tunables in SETTINGS.items():
                environment = os.environ | {"GLIBC_TUNABLES": tunables}
                pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                children[name] = stack.enter_context(subprocess.Popen(command, env=environment, **pipes))
                turn(children[name], 1)  # compiles
            times = {name: [] for name in children}
            for _ in range(arguments.repeats):
                for name, child in children.items():
                    times[name].append(turn(child, arguments.steps))
        for name, turns_of in times.items():
            cells = []
            for own, default in zip(zip(*turns_of), zip(*times["default"])):
                cells.append(spread([1e3 * value for value in own], ".0f"))
                cells.append(spread([value / base for value, base in zip(own, default)], ".2f"))
            print(f"| {recipe} | {name} |", " | ".join(cells), "|", flush=True)


def spread(values: list[float], form: str) -> str:
    """Median (quartiles)."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


if __name__ == "__main__":
    main()
