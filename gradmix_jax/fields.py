"""Config keys: how a section declares them and how their values are checked.

    @dataclasses.dataclass(frozen=True)
    class Spec(Section, section="mix"):
        fill: str = key("partner", "what fills the hole", choices=FILLS)
        keep_range: tuple[float, float] = key((0.5, 0.9), "share of pixels kept", least=0, most=1, length=2)

A key is stated only in its declaration, from which `config.default_config` and the configuration reference are
made. Table entries (mixing methods, scores) declare their options with `Key` directly.
"""

import dataclasses
import difflib
import math
import numbers
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Key:
    """A config key: its default, its meaning, and the values it takes.

    Attributes:
      default: the default; its type is the type of the key. A tuple's elements all have one type, that of the first
        (strings for an empty tuple).
      comment: the meaning of the key, in one line.
      choices: the values that a string may have: an iterable, a table, or a function that returns one.
      least, above: inclusive or exclusive lower bound of a number (or of each element of a tuple).
      most, below: inclusive or exclusive upper bound.
      length: number of elements of a tuple; None: any.
      may_change: whether a resumed run may use another value, because the key does not affect results.
    """

    default: Any
    comment: str
    choices: Iterable[str] | Callable[[], Iterable[str]] | None = None
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    length: int | None = None
    may_change: bool = False

    @property
    def described(self) -> str:
        """The comment, followed by the choices unless it already names them."""
        names = () if self.choices is None else tuple(self.choices() if callable(self.choices) else self.choices)
        return (
            self.comment
            if all(name in self.comment for name in names)
            else f"{self.comment} (one of {', '.join(names)})"
        )

    def check(self, name: str, value: Any) -> Any:
        """The value, with a list turned into a tuple. Raises ValueError, naming the key, for an invalid value."""
        if not isinstance(self.default, tuple):
            self._check_one(name, value, self.default)
            return value
        if not isinstance(value, (tuple, list)):
            raise ValueError(f"{name} must be a tuple such as {self.default or ('name',)!r}, got {value!r}.")
        if self.length is not None and len(value) != self.length:
            raise ValueError(f"{name} must have {self.length} elements, got {value!r}.")
        for element in value:
            self._check_one(f"each element of {name}", element, self.default[0] if self.default else "")
        return tuple(value)

    def _check_one(self, name: str, value: Any, example: Any) -> None:
        if isinstance(example, bool):
            if not isinstance(value, bool):
                raise ValueError(f"{name} must be True or False, got {value!r}.")
        elif isinstance(example, (int, float)):
            bounds = dict(least=self.least, above=self.above, most=self.most, below=self.below)
            check_number(name, value, whole=isinstance(example, int), **bounds)
        elif not isinstance(value, str):
            raise ValueError(f"{name} must be a string, got {value!r}; put it in quotes.")
        elif self.choices is not None:
            check_choice(name, value, self.choices() if callable(self.choices) else self.choices)


def key(default: Any, comment: str, **checks: Any) -> Any:
    """A field of a section; the arguments are those of `Key`."""
    return dataclasses.field(default=default, metadata={"key": Key(default, comment, **checks)})


def options(table: Callable[[], Mapping[str, Any]], comment: str) -> Any:
    """A field that holds the options of every entry of a table: {entry: {option: value}}.

    Args:
      table: returns {name: entry}; `entry.options` is {option: `Key`}. Called at each use, so that entries added
        later count.
      comment: describes the entries.
    """
    return dataclasses.field(default_factory=dict, hash=False, metadata={"table": table, "comment": comment})


def default_options(table: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{entry: {option: default}} of the entries that have options."""
    return {
        name: {option: each.default for option, each in entry.options.items()}
        for name, entry in table.items()
        if entry.options
    }


def check_options(name: str, table: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`default_options`, overridden by the given values. Raises ValueError for an unknown name or a bad value."""
    complete = default_options(table)
    for entry, values in given.items():
        check_choice(f"the key {name}.{entry}", entry, complete)
        for option, value in values.items():
            check_choice(f"the key {name}.{entry}.{option}", option, complete[entry])
            complete[entry][option] = table[entry].options[option].check(f"{name}.{entry}.{option}", value)
    return complete


class Section:
    """Base of the frozen dataclasses of a config's sections; checks every key on creation.

    Subclasses name their section, `class Spec(Section, section="mix")`, and may define `check` for checks of several
    keys.

    Raises:
      ValueError: an invalid value; one line with the key, the values it takes, and the value.
    """

    section = ""

    def __init_subclass__(cls, section: str, **rest: Any):
        super().__init_subclass__(**rest)
        cls.section = section

    def __post_init__(self):
        for field in dataclasses.fields(self):
            name, value = f"{self.section}.{field.name}", getattr(self, field.name)
            if "key" in field.metadata:
                object.__setattr__(self, field.name, field.metadata["key"].check(name, value))
            elif "table" in field.metadata:
                object.__setattr__(self, field.name, check_options(name, field.metadata["table"](), value))
        self.check()

    def check(self) -> None:
        """Checks of several keys together."""

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """{key: default}, options as nested dicts."""
        values = {}
        for field in dataclasses.fields(cls):
            if "table" in field.metadata:
                values[field.name] = default_options(field.metadata["table"]())
            else:
                values[field.name] = field.default
        return values


def nearest(value: Any, allowed: Iterable[str]) -> str:
    """The one of `allowed` that is most similar to a misspelled value; "" if none is."""
    return next(iter(difflib.get_close_matches(str(value), tuple(allowed), 1)), "")


def one_line(text: str) -> str:
    """The text with control characters, which file names may contain, escaped as in Python."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def escape_markdown(text: str) -> str:
    """Text of a table cell or a line: no markup, cell border, line break or control character."""
    text = one_line(" ".join(str(text).split())).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\|`*])", r"\\\1", text)


def check_choice(name: str, value: Any, allowed: Iterable[str], *, guess: str = "") -> None:
    """Raises ValueError unless `value` is one of `allowed`: one line with name, choices, value and a suggestion."""
    allowed = tuple(allowed)
    if value not in allowed:
        near = guess or nearest(value, allowed)
        hint = f"; did you mean {near!r}?" if near else "."
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}{hint}")


def check_number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    whole: bool = False,
) -> None:
    """Raises ValueError unless `value` is a finite number within the bounds: one line with the name and the value.

    Args:
      name: name of the value in the message.
      value: True and False do not count as numbers.
      least, above: inclusive or exclusive lower bound; at most one of them.
      most, below: inclusive or exclusive upper bound; at most one of them.
      whole: whether it must be an integer.
    """
    kind = numbers.Integral if whole else numbers.Real
    is_number = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
    within = is_number and (least is None or value >= least) and (above is None or value > above)
    if within and (most is None or value <= most) and (below is None or value < below):
        return
    noun = "an integer" if whole else "a number"
    positive = "a positive integer" if whole else "a positive number"
    if most is None and below is None and ((whole and least == 1) or (above == 0 and not whole)):
        least, above, noun = None, None, positive
    number = lambda bound: str(bound) if isinstance(bound, int) else f"{bound:g}"
    lower = f"at least {number(least)}" if least is not None else f"above {number(above)}" if above is not None else ""
    upper = f"at most {number(most)}" if most is not None else f"below {number(below)}" if below is not None else ""
    if least is not None and most is not None:
        bounds = f" from {number(least)} to {number(most)}"
    else:
        bounds = f" {' and '.join(filter(None, (lower, upper)))}" if lower or upper else ""
    raise ValueError(f"{name} must be {noun}{bounds}, got {value!r}.")
