"""Reads metrics.jsonl, the only file of a run that grows, so that a crash may cut its last line short."""

import io
import json
import sys
from typing import Any

from gradmix_jax import workdir as workdir_lib
from gradmix_jax.stored.schema import mapping, number, record, whole
from gradmix_jax.workdir import storage


def metrics(workdir: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, {"step": ..., "loss": ..., ...} each; [] if there is no such file.

    A last line that a crash cut short is left out; a warning counts any other invalid lines.
    """
    path = workdir_lib.path(workdir, workdir_lib.METRICS)
    if not storage.exists(path):
        return []
    text = storage.read(path).decode(errors="replace")
    lines = [line for line in io.StringIO(text, newline=None) if line.strip()]
    parsed = [_metrics_line(line) for line in lines]
    is_cut = parsed[-1:] == [None] and lines[-1].startswith("{") and not lines[-1].endswith("\n")
    bad = sum(each is None for each in parsed) - is_cut
    if bad:
        print(f"warning: {path} is damaged: {bad} of {len(lines)} lines are left out.", file=sys.stderr)
    return [each for each in parsed if each is not None]


def _metrics_line(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
        record({"step": whole(required=True)}, required=("step",))("line", found)
        mapping(number())("line", found)
    except (ValueError, RecursionError):
        return None
    return found
