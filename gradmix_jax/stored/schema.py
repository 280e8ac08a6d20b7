"""Schemas of JSON files: small functions that check a value and say where it is wrong.

RUN = record({"auroc": number(0, 1), "known_classes": listing(text), "probes": mapping(record({}))})
RUN("results", content)     # raises Wrong: results.auroc must be a number from 0 to 1, got 'high'
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[str, Any], None]
_SHOWN = 40


class Wrong(ValueError):
    """A value that violates its schema; one clause with the place and the value."""


def shown(value: Any) -> str:
    """A value, shortened to fit on a line."""
    text = " ".join(repr(value)[: 4 * _SHOWN].split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def number(least: float = -math.inf, most: float = math.inf) -> Check:
    """A finite number within bounds, NaN or null, because not every number can be computed."""

    def check(where: str, value: Any) -> None:
        if value is None:
            return
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        try:
            fits = is_number and (math.isnan(value) or (math.isfinite(value) and least <= value <= most))
        except OverflowError:  # an integer of hundreds of digits
            fits = False
        if not fits:
            bounds = f" from {least:g} to {most:g}" if math.isfinite(most) else ""
            raise Wrong(f"{where} must be a finite number{bounds}, got {shown(value)}")

    return check


def whole(least: int = 0, most: int = 2**63 - 1, *, required: bool = False) -> Check:
    """An integer within bounds, or null unless it is required."""

    def check(where: str, value: Any) -> None:
        if value is None and not required:
            return
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            too_many = isinstance(value, int) and value > most
            bounds = f"of at most {most}" if too_many else f"of at least {least}"
            raise Wrong(f"{where} must be an integer {bounds}, got {shown(value)}")

    return check


def text(where: str, value: Any) -> None:
    """A string."""
    if not isinstance(value, str):
        raise Wrong(f"{where} must be a string, got {shown(value)}")


def anything(where: str, value: Any) -> None:
    """Any value."""


def listing(of: Check, *, length: int | None = None) -> Check:
    """A list whose elements all fit."""

    def check(where: str, value: Any) -> None:
        if not isinstance(value, (list, tuple)):
            raise Wrong(f"{where} must be a list, got {shown(value)}")
        if length is not None and len(value) != length:
            raise Wrong(f"{where} must have {length} elements, got {len(value)}")
        for index, each in enumerate(value):
            of(f"{where}[{index}]", each)

    return check


def mapping(of: Check) -> Check:
    """An object of any keys whose values all fit."""

    def check(where: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise Wrong(f"{where} must be an object, got {shown(value)}")
        for name, each in value.items():
            of(f"{where}.{name[:_SHOWN]}", each)

    return check


def record(fields: Mapping[str, Check], *, required: tuple[str, ...] = ()) -> Check:
    """An object with some known keys, which are checked if present; other keys belong to newer versions."""

    def check(where: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise Wrong(f"{where} must be an object, got {shown(value)}")
        for name in required:
            if name not in value:
                raise Wrong(f"{where}.{name} is missing")
        for name, of in fields.items():
            if name in value:
                of(f"{where}.{name}", value[name])

    return check


def nullable(of: Check) -> Check:
    """Null, or a value that `of` accepts."""
    return lambda where, value: None if value is None else of(where, value)


def like(default: Any) -> Check:
    """A value of the type of a default: an object of such values, a list, a string, a number, or true and false."""
    if isinstance(default, dict):
        return record({name: like(each) for name, each in default.items()})
    if isinstance(default, (list, tuple)):
        return listing(anything)
    if isinstance(default, bool):
        return _boolean
    if isinstance(default, (int, float)):
        return _given_number
    return text


def _boolean(where: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise Wrong(f"{where} must be true or false, got {shown(value)}")


def _given_number(where: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < math.inf:
        raise Wrong(f"{where} must be a finite number, got {shown(value)}")
