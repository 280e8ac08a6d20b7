"""Formats numbers and tables of the page."""

from collections.abc import Sequence

from gradmix_jax.report import comparison

from .differences import Difference


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, or a sentence in place of an empty one."""
    if not rows:
        return "Not run yet."
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.4f}"


def interval(one: Difference) -> str:
    return "–" if one.interval is None else f"{one.interval[0]:+.4f} to {one.interval[1]:+.4f}"


def difference(one: Difference) -> str:
    """The mean and, in parentheses, its interval."""
    return f"{signed(one.mean)} ({interval(one)})"


def probability(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.5f}" if value < 0.001 else f"{value:.3f}"


def mean(by_split: dict[int, float], digits: int = 4) -> str:
    """Mean ± standard deviation over splits."""
    found = comparison.value({(trial, 0): value for trial, value in by_split.items()})
    if found is None:
        return "–"
    return f"{found.mean:.{digits}f}" + (f" ± {found.std:.{digits}f}" if found.std is not None else "")
