"""The raw file of the study: one line per run, appended when the run ends."""

import csv
import fcntl
import io
import os
from typing import Any, NamedTuple

OK = "ok"


class Key(NamedTuple):
    """Identifies a run: dataset and part of the plan, name of the variant, class split, seed."""

    dataset: str
    part: str
    variant: str
    trial: int
    seed: int


class Row(NamedTuple):
    """A run; the numbers of a failed run, and those that could not be measured, are None.

    Attributes:
      key: identifies the run.
      epochs, width: epochs of training and width of the network.
      auroc, oscr, accuracy: metrics on the test images.
      train, known, unknown: numbers of training images and of known and unknown test images.
      seconds: duration of training and evaluation.
      flops: FLOPs of a train step, by XLA's count.
      effective_rank, intrinsic_dimension: of the encoder's features of the training images; the mean over classes.
      deleted, deleted_at_random: share of an image to delete until the class evidence halves, see `mechanism`.
      commit: 12 digits of the code's commit, followed by a + if files had changed.
      jax: version of JAX.
      hardware: devices and CPU cores.
      status: OK, or what is missing or failed.
    """

    key: Key
    epochs: int
    width: int
    auroc: float | None = None
    oscr: float | None = None
    accuracy: float | None = None
    train: int | None = None
    known: int | None = None
    unknown: int | None = None
    seconds: float | None = None
    flops: float | None = None
    effective_rank: float | None = None
    intrinsic_dimension: float | None = None
    deleted: float | None = None
    deleted_at_random: float | None = None
    commit: str = ""
    jax: str = ""
    hardware: str = ""
    status: str = OK

    @property
    def ok(self) -> bool:
        """Whether there are results."""
        return self.auroc is not None


FIELDS = (*Key._fields, *Row._fields[1:])
# Significant digits in the file, three more than any table shows; 7 by default.
_DIGITS = {"seconds": 4, "flops": 8}


def _written(name: str, value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.{_DIGITS.get(name, 7)}g}" if isinstance(value, float) else str(value)


def _read(name: str, text: str) -> Any:
    kind = str((Key.__annotations__ | Row.__annotations__)[name])
    for of, convert in (("int", int), ("float", float)):
        if of in kind:
            return convert(text) if text else None
    return text


def line_of(row: Row) -> str:
    """A line of the file."""
    text = io.StringIO()
    values = (*row.key, *row[1:])
    csv.writer(text, lineterminator="\n").writerow(_written(name, value) for name, value in zip(FIELDS, values))
    return text.getvalue()


def append(path: str, row: Row) -> None:
    """Append a run, after removing a line that a killed process left unfinished."""
    with open(path, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
        header = "" if content else ",".join(FIELDS) + "\n"
        file.write((header + line_of(row)).encode())
        file.flush()
        os.fsync(file.fileno())


def read(path: str) -> list[Row]:
    """The last row of every run, in the order of the file; [] if there is no file.

    Raises:
      ValueError: a line is not a valid row; the message names its number.
    """
    return list({row.key: row for row in history(path)}.values())


def history(path: str) -> list[Row]:
    """All rows of the file, including those of runs that were repeated later; raises as `read`."""
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8", newline="") as file:
        text = file.read()
    found = []
    for number, values in enumerate(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])), 1):
        if number == 1:
            if tuple(values) != FIELDS:
                raise ValueError(f"{path} has other columns than {', '.join(FIELDS)}.")
            continue
        try:
            row = dict(zip(FIELDS, (_read(name, value) for name, value in zip(FIELDS, values, strict=True))))
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not a row of this study: {error}.") from error
        found.append(Row(Key(*(row.pop(name) for name in Key._fields)), **row))
    return found
