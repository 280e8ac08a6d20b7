"""List what a config can name: protocols, recipes, published methods, losses, mixing methods, maps and scores.

python -m gradmix_jax.list_names              everything
python -m gradmix_jax.list_names methods      one part: protocols, recipes, methods, losses, temperatures,
                                              mixing, masks, fills, maps, scores, models
"""

import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

from gradmix_jax import cli, models, objectives, scores
from gradmix_jax.config import recipes, rivals
from gradmix_jax.data.protocols import PROTOCOLS
from gradmix_jax.fields import check_choice
from gradmix_jax.method import attribution, fills, masks, mix


def summary(described: Any) -> str:
    """The first sentence of the docstring of a function or module."""
    while isinstance(described, functools.partial):
        described = described.func
    text = (inspect.getdoc(described) or "").split("\n\n")[0].replace("\n", " ")
    return re.sub(r"(?<!\.)[.:]$", "", re.split(r"(?<=[a-z)`\d]\.)\s(?=[A-Z])", text)[0])


def _flat(keys: dict[str, dict[str, Any]]) -> str:
    return ", ".join(f"{section}.{key}={value}" for section, of in keys.items() for key, value in of.items())


def _map(entry: attribution.Map) -> str:
    gradient = {"input": "the gradient at the images", "stages": "activations of stages and their gradients", None: ""}
    needed = [gradient[entry.taps], *("the gradient at several images" if n == "gradient" else n for n in entry.needs)]
    return "from " + " and ".join(filter(None, needed)) if any(needed) else "noise, the control"


Rows = Iterable[tuple[str, str]]
# Group -> (where its names go, rows of a name and what it is).
GROUPS: dict[str, tuple[str, Callable[[], Rows]]] = {
    "protocols": ("--config=NAME", lambda: ((each.config, each.title) for each in PROTOCOLS.values())),
    "recipes": ("--config=FILE:NAME", lambda: ((name, _flat(keys)) for name, keys in recipes.RECIPES.items())),
    "methods": (
        "published; --config=FILE:NAME",
        lambda: ((name, f"{each.about} ({each.paper})") for name, each in rivals.RIVALS.items()),
    ),
    "losses": (
        "phases[i].NAME=WEIGHT",
        lambda: ((name, summary(inspect.getmodule(each.clean))) for name, each in objectives.OBJECTIVES.items()),
    ),
    "temperatures": (
        "objective.temperature_schedule",
        lambda: ((name, summary(each.function) or "no change") for name, each in objectives.SCHEDULES.items()),
    ),
    "mixing": ("mix.method", lambda: ((name, summary(each.function)) for name, each in mix.METHODS.items())),
    "masks": ("mix.mask", lambda: ((name, summary(each.function)) for name, each in masks.MASKS.items())),
    "fills": (
        "mix.fill",
        lambda: ((name, "needs a partner" if each.needs_partner else "") for name, each in fills.FILLS.items()),
    ),
    "maps": ("attribution.method", lambda: ((name, _map(each)) for name, each in attribution.MAPS.items())),
    "scores": (
        "evaluate.score",
        lambda: ((name, f"from {', '.join(each.needs)}") for name, each in scores.SCORES.items()),
    ),
    "models": ("model.name", lambda: ((name, "") for name in models.ENCODERS)),
}


def text(names: Iterable[str] = GROUPS) -> str:
    """The groups with these names, each a title and a line or more for each entry."""
    parts = []
    for name in names:
        where, rows = GROUPS[name]
        lines = [f"{name} ({where})"]
        for entry, about in rows():
            lines += textwrap.wrap(f"{entry:27} {about}", 116, initial_indent="  ", subsequent_indent=" " * 30)
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def main(argv: list[str]) -> None:
    for name in argv[1:]:
        check_choice("what is listed", name, GROUPS)
    print(text(argv[1:] or GROUPS))


if __name__ == "__main__":
    cli.run(main)
