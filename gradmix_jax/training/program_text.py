"""Reading the text of a compiled program (`executable.as_text()`): its instructions, and the FLOPs of its loops."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
# One FLOP for each element of the result. Operations that XLA counts as transcendental, such as exp, are left out.
ELEMENTWISE = (
    "abs|add|and|ceil|clamp|compare|complex|convert|count-leading-zeros|divide|floor|imag|is-finite|maximum|minimum|"
    "multiply|negate|not|or|popcnt|real|reduce-precision|remainder|round-nearest-afz|round-nearest-even|select|"
    "shift-left|shift-right-arithmetic|shift-right-logical|sign|subtract|xor"
)


class Instruction(NamedTuple):
    """One instruction: name, results (dtype and shape of each), operation, operands' names, and its whole line."""

    name: str
    results: tuple[tuple[str, tuple[int, ...]], ...]
    operation: str
    operands: tuple[str, ...]
    line: str


def size_of(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of an array."""
    return SIZES[dtype] * math.prod(shape)


def arrays_in(text: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """(dtype, shape) of every array that a text names."""
    found = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", text)
    return tuple((dtype, tuple(int(side) for side in sides.split(",") if side)) for dtype, sides in found)


def computations(text: str) -> dict[str, list[Instruction]]:
    """The instructions of every computation of a program; the main one is called "ENTRY"."""
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?(\S+) \(.*\) -> .* \{$", line)
        if head:
            current = found.setdefault("ENTRY" if head[1] else head[2], [])
            continue
        match = re.match(r"\s+(?:ROOT )?%?(\S+) = (\(.*?\)|\S+) ([\w-]+)\((.*)", line)
        if match:
            name, results, operation, rest = match.groups()
            operands = rest[: _closing(rest)]
            current.append(
                Instruction(name, arrays_in(results), operation, tuple(re.findall(r"%([\w.-]+)", operands)), line)
            )
    return found


def _closing(text: str) -> int:
    """Index of the parenthesis that closes one opened before `text`."""
    depth = 1
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return index
    return len(text)


def _called(instruction: Instruction, attribute: str) -> str:
    """The computation that an attribute of an instruction (body, calls, to_apply) names."""
    return re.search(rf"\b{attribute}=%?([\w.-]+)", instruction.line)[1]


def trips(instruction: Instruction) -> int:
    """How often the body of a `while` runs; 1 if the compiler does not know."""
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', instruction.line)
    return int(known[1]) if known else 1


def executed(programs: dict, name: str, times: int) -> Iterator[tuple[Instruction, int, dict]]:
    """(instruction, number of executions, results by name) for a computation and the loops in it."""
    results = {instruction.name: instruction.results for instruction in programs[name]}
    for instruction in programs[name]:
        if instruction.operation == "while":
            yield from executed(programs, _called(instruction, "body"), times * trips(instruction))
        elif instruction.operation == "call":
            yield from executed(programs, _called(instruction, "to_apply"), times)
        else:
            yield instruction, times, results


def flops(text: str, *, rounds: bool = True) -> float:
    """FLOPs of a program by the rules of XLA's own analysis, without library calls.

    Products and convolutions are exact; the longest branch of a conditional counts.

    Args:
      text: text of the program.
      rounds: count the body of a loop as often as it runs, if the compiler knows; otherwise once, as XLA does.
    """
    programs, known = computations(text), {}

    def of(name: str) -> float:
        if name not in known:
            results = {each.name: each.results for each in programs.get(name, ())}
            known[name] = sum(of_one(each, results) for each in programs.get(name, ()))
        return known[name]

    def of_one(instruction: Instruction, results: dict) -> float:
        operation, line = instruction.operation, instruction.line
        elements = sum(math.prod(shape) for _, shape in instruction.results)
        if operation == "while":
            times = trips(instruction) if rounds else 1
            return times * (of(_called(instruction, "body")) + of(_called(instruction, "condition")))
        if operation == "fusion":
            return of(_called(instruction, "calls"))
        if operation == "call":
            return of(_called(instruction, "to_apply"))
        if operation == "conditional":
            named = re.search(r"branch_computations=\{(.*?)\}", line)
            names = named[1] if named else " ".join(re.findall(r"(?:true|false)_computation=(%?[\w.-]+)", line))
            return max(of(name) for name in re.findall(r"[\w.-]+", names))
        if operation == "dot":
            return _product(instruction, results)
        if operation == "convolution":
            return _convolution(instruction, results)
        if operation in ("reduce", "reduce-window", "scatter"):
            return of(_called(instruction, "to_apply")) * _combined(instruction, results)
        return float(elements) if re.fullmatch(ELEMENTWISE, operation) else 0.0

    return of("ENTRY")


def _combined(instruction: Instruction, results: dict) -> int:
    """How often a reduction, a windowed reduction or a scatter applies its function."""
    first, written = (math.prod(each[0][1]) for each in (results[instruction.operands[0]], instruction.results))
    if instruction.operation == "reduce":
        return first - written
    if instruction.operation == "reduce-window":
        return written * (math.prod(size for size, *_ in _window(instruction)) - 1)
    return math.prod(results[instruction.operands[-1]][0][1])


def _product(instruction: Instruction, results: dict) -> int:
    """2 x values x length of the sums."""
    left = results[instruction.operands[0]][0][1]
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.line)
    length = math.prod(left[int(axis)] for axis in re.findall(r"\d+", axes[1] if axes else ""))
    return 2 * math.prod(instruction.results[0][1]) * length


def _convolution(instruction: Instruction, results: dict) -> int:
    """2 x (pairs of an output and a kernel position that meet inside the input) x channels in and out x batch."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.line)
    shapes = [results[name][0][1] for name in instruction.operands[:2]] + [instruction.results[0][1]]
    left, kernel, output = (dict(zip(label, shape)) for label, shape in zip(labels.groups(), shapes))
    groups = {
        name: int(found[1])
        for name in ("feature", "batch")
        if (found := re.search(rf"{name}_group_count=(\d+)", instruction.line))
    }
    pairs = 1
    for axis, (size, stride, low, dilation, hole) in enumerate(_window(instruction)):
        inside = (left[str(axis)] - 1) * dilation + 1
        place = np.arange(output[str(axis)])[:, None] * stride + np.arange(size)[None] * hole - low
        pairs *= int(np.sum((place >= 0) & (place < inside) & (place % dilation == 0)))
    channels = left["f"] // groups.get("feature", 1) * output["f"]
    return 2 * pairs * channels * left["b"] // groups.get("batch", 1)


def _window(instruction: Instruction) -> list[tuple[int, int, int, int, int]]:
    """(size, stride, padding below, dilation of the input, dilation of the window) of each axis of a window."""
    found = re.search(r"window=\{(.*?)\}", instruction.line)
    fields = dict(part.split("=") for part in found[1].split()) if found else {}
    sizes = [int(size) for size in fields.get("size", "").split("x") if size]

    def of(name: str, default: str) -> list[int]:
        given = fields.get(name, "x".join([default] * len(sizes))).split("x")
        return [int(each.split("_")[0]) for each in given if each]

    return list(zip(sizes, of("stride", "1"), of("pad", "0_0"), of("lhs_dilate", "1"), of("rhs_dilate", "1")))
