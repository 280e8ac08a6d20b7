"""Which cases of a parametrized test are slow."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow(*values: Any):
    """A case of `make test-slow`."""
    return pytest.param(*values, marks=pytest.mark.slow)


def slow_but(quick: Iterable[Any], cases: Iterable[Any]) -> list[Any]:
    """The cases, slow but for the `quick` ones; a tuple is the values of a case.

    Raises:
      ValueError: a quick case is none of the cases.
    """
    quick, cases = list(quick), list(cases)
    if unknown := [each for each in quick if each not in cases]:
        raise ValueError(f"{unknown} are none of the cases {cases}.")
    values = lambda case: case if isinstance(case, tuple) else (case,)
    return [case if case in quick else slow(*values(case)) for case in cases]
