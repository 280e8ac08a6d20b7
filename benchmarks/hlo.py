"""Parse the text of a compiled program (`executable.as_text()`): its collectives, kernels and TPU cycles."""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import jax

from gradmix_jax.training import cost
from gradmix_jax.training.program_text import Instruction, arrays_in, computations, executed, size_of

COLLECTIVES = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
# Operations that start nothing on a device: names, views and the ends of asynchronous ones.
NOTHING = ("parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all", "optimization-barrier")
# Operations that read only a part of their first operand.
PARTS = ("slice", "dynamic-slice", "gather")


class Collective(NamedTuple):
    """One collective operation of a program: its kind, and the dtypes and shapes of its results on a device."""

    kind: str
    results: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def bytes(self) -> int:
        return sum(size_of(*result) for result in self.results)


class Kernel(NamedTuple):
    """A kernel of one instruction: bytes of operands and results, FLOPs of a library call, and how often it runs."""

    name: str
    bytes: int
    flops: int
    times: int


def collectives(text: str) -> list[Collective]:
    """The collectives of a program, asynchronous ones counted once."""
    found = []
    for line in text.splitlines():
        match = re.match(rf"\s*(?:ROOT )?\S+ = (.*?) ({COLLECTIVES})(-start)?\(", line)
        if match:
            results = arrays_in(match[1])
            if match[3] and match[2] == "all-gather":
                results = results[len(results) // 2 :]  # an asynchronous gather names its operands first
            found.append(Collective(match[2], results))
    return found


def kernels(text: str) -> list[Kernel]:
    """The kernels of a GPU program except collectives: fusions, convolutions, products, copies."""
    found = []
    programs = computations(text)
    for instruction, times, results in executed(programs, "ENTRY", 1):
        operation = instruction.operation
        if operation in NOTHING or operation.endswith("-done") or re.match(COLLECTIVES, operation):
            continue
        read = _bytes_read(instruction, results, programs)
        written = sum(size_of(*array) for array in instruction.results)
        flops = _convolution_flops(instruction, results) or _product_flops(instruction, results)
        found.append(Kernel(instruction.name, read + written, flops, times))
    return found


def calls_libraries(text: str) -> bool:
    """Whether cuDNN or cuBLAS computes convolutions or products, which XLA's own analysis then leaves out."""
    return 'custom_call_target="__cu' in text


def overlaps(text: str, seconds: Callable[[Kernel], float]) -> list[tuple[int, float]]:
    """(bytes, seconds of the kernels between start and end) for every asynchronous collective of a GPU program.

    Args:
      text: the program, in order of execution.
      seconds: how long a kernel takes.
    """
    lasting = {kernel.name: kernel.times * seconds(kernel) for kernel in kernels(text)}
    clock, started, found = 0.0, {}, []
    for instruction, _, _ in executed(computations(text), "ENTRY", 1):
        clock += lasting.get(instruction.name, 0.0)
        if re.match(COLLECTIVES, instruction.operation) and instruction.operation.endswith("-start"):
            started[instruction.name] = clock, collectives(instruction.line)[0].bytes
        elif instruction.operation.endswith("-done") and instruction.operands[0] in started:
            start, size = started[instruction.operands[0]]
            found.append((size, clock - start))
    return found


def _bytes_read(instruction: Instruction, results: dict, programs: dict) -> int:
    """Bytes of the operands, each counted once; of an operand that is only sliced, the bytes of its slices."""
    whole = {name: sum(size_of(*array) for array in results.get(name, ())) for name in instruction.operands}
    called = re.search(r"calls=%?([\w.-]+)", instruction.line)
    inside = programs.get(called[1], []) if called else []
    for parameter in inside:
        if parameter.operation != "parameter":
            continue
        users = [user for user in inside if parameter.name in user.operands]
        if users and all(user.operation in PARTS and user.operands[0] == parameter.name for user in users):
            name = instruction.operands[int(re.search(r"parameter\((\d+)\)", parameter.line)[1])]
            parts = sum(size_of(*array) for user in users for array in user.results)
            whole[name] = min(whole[name], parts)
    return sum(whole.values())


def _convolution_flops(instruction: Instruction, results: dict) -> int:
    """2 x positions x channels out x (kernel x channels in) of a cuDNN convolution; 0 for everything else."""
    target = re.search(r'custom_call_target="__cudnn\$conv(\w+)"', instruction.line)
    if target is None:
        return 0
    first, second = (results[operand][0][1] for operand in instruction.operands[:2])
    own = instruction.results[0][1]
    # Forward: (x, kernel) -> y. For the input: (dy, kernel) -> dx. For the kernel: (x, dy) -> dkernel.
    output, kernel = {"Forward": (own, second), "BackwardInput": (first, second), "BackwardFilter": (second, own)}[
        re.match("Forward|BackwardInput|BackwardFilter", target[1])[0]
    ]
    channels = output[re.search(r"dim_labels=\w+->(\w+)", instruction.line)[1].index("f")]
    return 2 * math.prod(output) * math.prod(kernel) // channels


def _product_flops(instruction: Instruction, results: dict) -> int:
    """2 x values x length of the sums of a cuBLAS matrix product; 0 for everything else."""
    if not re.search(r'custom_call_target="__cublas\$', instruction.line):
        return 0
    summed = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.line)[1]
    left = results[instruction.operands[0]][0][1]
    length = math.prod(left[int(axis)] for axis in re.findall(r"\d+", summed))
    return 2 * math.prod(instruction.results[0][1]) * length


def estimated_cycles(text: str) -> int:
    """Sum of the TPU compiler's cycle estimates of all instructions, as if run one after the other."""
    cycles = 0
    for instruction, times, _ in executed(computations(text), "ENTRY", 1):
        match = re.search(r'"estimated_cycles":"(\d+)"', instruction.line)
        # "Unknown" is the largest integer.
        if match and int(match[1]) < 1 << 50:
            cycles += times * int(match[1])
    return cycles


def cost_of(compiled: jax.stages.Compiled) -> cost.Cost:
    """`cost.of` plus our own count of what XLA's analyses leave out on a GPU: calls of cuDNN and cuBLAS."""
    known, text = cost.of(compiled), compiled.as_text()
    if not calls_libraries(text):
        return known
    found = kernels(text)
    flops = known.flops + sum(kernel.times * kernel.flops for kernel in found)
    return known._replace(flops=flops, bytes=sum(kernel.bytes for kernel in found))
