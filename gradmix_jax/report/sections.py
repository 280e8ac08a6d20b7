"""The part of the page about one method."""

import json
import statistics
from collections.abc import Callable
from typing import Any

from gradmix_jax.config import default_config, flatten, to_plain
from gradmix_jax.report import classes, curves, plots, threshold
from gradmix_jax.report.embedding import embedding
from gradmix_jax.report.formats import MISSING, escape_html
from gradmix_jax.report.gallery import gallery
from gradmix_jax.report.overlays import overlays
from gradmix_jax.report.runs import MOST_CLASSES, Method, Run

# Part of the section's address -> heading.
PARTS = {
    "curves": "Curves over all thresholds",
    "threshold": "One threshold: what is accepted",
    "classes": "Classes",
    "gallery": "Most confident mistakes",
    "embedding": "PCA and t-SNE",
    "maps": "Maps and masks over training",
    "training": "Training loss",
    "diversity": "Diversity of the features",
    "config": "Config and environment",
}
# Parts that the slider of "threshold" controls, kept together.
MOVED = ("threshold", "classes", "gallery")
# Parts that are slow to make and large; later methods of a report go without them.
HEAVY = ("threshold", "embedding", "gallery", "maps")
MOST_IN_FULL = 12
# Parts that show the images, features and training of a run, which stored outputs of another model do not have.
OF_A_RUN = ("gallery", "embedding", "maps", "training", "diversity")


def section(method: Method, name: str, *, in_full: bool = True, first: int = MOST_IN_FULL) -> str:
    """Everything about one method.

    Args:
      method: the runs.
      name: identifier of the section; those of its parts start with it.
      in_full: whether to include the parts of HEAVY.
      first: otherwise, how many methods include them.
    """
    run = method.example
    left_out = () if in_full else HEAVY
    left_out += OF_A_RUN if run.results["step"] is None else ()
    parts = [part for part in PARTS if part not in left_out]
    made = _contents(method, name, in_full)
    names, count = "; ".join(each.name for each in method.runs), len(method.runs)
    lead = f"{count} run{'s' * (count > 1)}: {names}."
    lead += f" What cannot be averaged is shown of {run.name}." if count > 1 else ""
    if not in_full:
        heavy = ", ".join(PARTS[part] for part in HEAVY)
        lead += f" To bound the size of the page, these are shown for the first {first} methods only: {heavy}."
    inner = {part: f'<section id="{name}-{part}"><h3>{PARTS[part]}</h3>{made[part]()}</section>' for part in parts}
    moved = "".join(inner.pop(part) for part in MOVED if part in inner)
    first, *rest = inner.values()
    links = "".join(f'<li><a href="#{name}-{part}">{PARTS[part]}</a></li>' for part in parts)
    return (
        f'<section id="{name}" class="method"><h2>{escape_html(method.label)}</h2>'
        f'<p>{escape_html(lead)}</p><ul class="parts">{links}</ul>'
        f'{first}<div class="decisions">{moved}</div>{"".join(rest)}</section>'
    )


def _contents(method: Method, name: str, in_full: bool) -> dict[str, Callable[[], str]]:
    """{part: function that makes its content}."""
    run = method.example
    slider, moved = threshold.parts(run, name) if in_full else ("", threshold.tables(run))
    return {
        "curves": lambda: _plots(
            *(curves.runs_curve(method, kind) for kind in curves.KINDS),
            plots.histogram(run),
            plots.reliability(run),
            curves.scores_curve(run),
        ),
        "threshold": lambda: slider,
        "classes": lambda: _plots(moved, classes.bars(run)) + classes.table(run),
        "embedding": lambda: _plots(embedding(run)),
        "gallery": lambda: gallery(run),
        "maps": lambda: _plots(overlays(run)),
        "training": lambda: _plots(plots.losses(method)),
        "diversity": lambda: _diversity(run),
        "config": lambda: _config(run) + _environment(run),
    }


def _plots(*figures: str) -> str:
    return f'<div class="plots">{"".join(figures)}</div>'


def _diversity(run: Run) -> str:
    """Rows: effective rank, and intrinsic dimension of each class; columns: features."""
    found = run.results["diversity"]
    if not found:
        return "<p>The results hold no measures of diversity.</p>"
    dimensions = [each.get("intrinsic_dimension", {}) for each in found.values()]
    names = list(dict.fromkeys(name for each in dimensions for name in each))
    rows = [["effective rank, all classes", *(each.get("effective_rank") for each in found.values())]]
    if len(names) <= MOST_CLASSES:
        rows += [[f"intrinsic dimension, class {name}", *(each.get(name) for each in dimensions)] for name in names]
    else:
        finite = [[value for value in each.values() if value is not None and value == value] for each in dimensions]
        rows += [
            [f"intrinsic dimension, {what} of {len(names)} classes", *(of(each) if each else None for each in finite)]
            for what, of in {"lowest": min, "median": statistics.median, "highest": max}.items()
        ]
    body = "".join(
        f'<tr><th scope="row">{escape_html(label)}</th>{"".join(f"<td>{_two_digits(n)}</td>" for n in numbers)}</tr>'
        for label, *numbers in rows
    )
    heads = '<th scope="col" class="label">measure</th>'
    heads += "".join(f'<th scope="col">{escape_html(name)}</th>' for name in found)
    return (
        f"<p>Of {escape_html(run.name)}: the exponential of the entropy of the singular values, and the "
        "maximum-likelihood dimension by class. Neither is good or bad by itself.</p>"
        f'<div class="scroll" tabindex="0" role="group" aria-label="diversity"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _two_digits(number: float | None) -> str:
    return MISSING if number is None or number != number else f"{number:.2f}"


def _config(run: Run) -> str:
    """The keys that differ from the default, and all keys."""
    default = flatten(to_plain(default_config()))
    flat = flatten(run.config)
    differs = {key for key, value in flat.items() if key not in default or default[key] != value}
    changed = [(key, flat[key], default.get(key, MISSING)) for key in flat if key in differs]
    text = lambda value: escape_html(
        value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    )
    row = lambda key, *values: (
        f'<tr{" class=changed" if key in differs else ""}><th scope="row">{escape_html(key)}</th>'
        + "".join(f"<td>{text(value)}</td>" for value in values)
        + "</tr>"
    )
    return (
        f"<p>Config of {escape_html(run.name)}, {len(changed)} keys differ from the default:</p>"
        + _table("keys that differ", ("key", "value", "default"), "".join(row(*each) for each in changed))
        + "<details><summary>All keys; those that differ are highlighted</summary>"
        + _table("all keys", ("key", "value"), "".join(row(key, value) for key, value in flat.items()))
        + "</details>"
    )


def _environment(run: Run) -> str:
    flat: dict[str, Any] = flatten(run.results["environment"])
    flat |= {"checkpoint": run.results["checkpoint"], "evaluation, seconds": run.results["seconds"]}
    words = lambda value: " ".join(map(str, value)) if isinstance(value, list) else str(value)
    rows = "".join(
        f'<tr><th scope="row">{escape_html(key)}</th><td>{escape_html(words(value))}</td></tr>'
        for key, value in flat.items()
    )
    table = _table("environment", ("what", "value"), rows)
    return f"<details><summary>Environment of the evaluation</summary>{table}</details>"


def _table(name: str, heads: tuple[str, ...], rows: str) -> str:
    cells = "".join(f'<th scope="col">{head}</th>' for head in heads)
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{name}">'
        f'<table class="keys"><thead><tr>{cells}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
