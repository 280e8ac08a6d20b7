"""Tables of the documentation that are made from the code: config keys and the entries of every table of parts."""

import dataclasses
import inspect
import re

from gradmix_jax import config as config_lib
from gradmix_jax import corruptions, data, list_names, models, objectives, scores
from gradmix_jax.config import recipes
from gradmix_jax.method import attribution, fills, masks, mix


def table(heads, rows):
    """A Markdown table."""
    escape = lambda cell: str(cell).replace("|", "\\|").replace("\n", " ")
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(escape, line)) + " |" for line in lines) + "\n"


def code(value):
    return f"`{value}`"


def summary(described):
    """The first sentence of the docstring of a function or module, with arrays marked as code."""
    return re.sub(r"(?<![`\w])(\w+_[A-Z]\w*)(?!`)", r"`\1`", list_names.summary(described))


def bounds(key):
    """The values that a key takes, in a few words."""
    if key.choices is not None:
        choices = key.choices() if callable(key.choices) else key.choices
        return ", ".join(map(code, choices))
    words = [(key.least, "at least"), (key.above, "above"), (key.most, "at most"), (key.below, "below")]
    said = [f"{word} {bound:g}" for bound, word in words if bound is not None]
    if key.length is not None:
        said.append(f"{key.length} values")
    return ", ".join(said)


def key_row(name, key):
    kind = type(key.default).__name__
    if isinstance(key.default, tuple):
        kind = f"tuple of {type(key.default[0]).__name__ if key.default else 'str'}"
    values = bounds(key)
    meaning = key.comment + (f" ({values})" if values else "")
    meaning += "; a resumed run may change it" if key.may_change else ""
    return [code(name), kind, code(repr(key.default)), meaning]


KEY_HEADS = ["key", "type", "default", "meaning"]


def options_rows(prefix, entries):
    return [
        key_row(f"{prefix}.{name}.{option}", each)
        for name, entry in entries.items()
        for option, each in entry.options.items()
    ]


def configuration():
    """Every key of every section, and the keys outside sections."""
    rows = [
        ["`name`", "str", "`''`", "name of this method in tables; empty: its recipe"],
        ["`seed`", "int", "`0`", "seed of initialization, batches, views, maps and mixing"],
    ]
    weights = ", ".join(code(name) for name in config_lib.phase("", epochs=1) if name not in ("name", "epochs"))
    phases = f"one after the other: a name, a number of epochs, and the weights {weights}"
    rows.append(["`phases[i].KEY`", "list", "", phases])
    parts = [f"## Top level\n\n{table(KEY_HEADS, rows)}"]
    for name, section in config_lib.SECTIONS.items():
        rows = []
        for field in dataclasses.fields(section):
            if "key" in field.metadata:
                rows.append(key_row(f"{name}.{field.name}", field.metadata["key"]))
            else:
                rows += options_rows(f"{name}.{field.name}", field.metadata["table"]())
        intro = inspect.getdoc(section).split("\n\n")[0].replace("\n", " ")
        parts.append(f"## {name}\n\n{intro}\n\n{table(KEY_HEADS, rows)}")
    return "\n".join(parts)


def recipe_rows():
    """Every recipe with the keys it sets."""
    plain = lambda values: {key: value for key, value in config_lib.flatten(values).items()}
    rows = [
        [code(name), "<br>".join(code(f"{key}={value!r}") for key, value in plain(values).items())]
        for name, values in recipes.RECIPES.items()
    ]
    return table(["recipe", "keys"], rows)


def _options(entry):
    return ", ".join(code(f"{name}={each.default!r}") for name, each in entry.options.items())


def methods():
    rows = [
        [code(name), summary(each.function), "yes" if each.needs_map else "", _options(each)]
        for name, each in mix.METHODS.items()
        if each.function is not None
    ]
    return table(["`mix.method`", "what", "needs a map", "options"], rows)


def maps():
    rows = [
        [code(name), each.taps or "", ", ".join(each.needs), _options(each)] for name, each in attribution.MAPS.items()
    ]
    return table(["`attribution.method`", "gradient at", "needs besides", "options"], rows)


def mask_rows():
    rows = [[code(name), summary(each.function), "yes" if each.aligned else ""] for name, each in masks.MASKS.items()]
    return table(["`mix.mask`", "what", "aligned to patches"], rows)


def fill_rows():
    rows = [[code(name), "yes" if each.needs_partner else ""] for name, each in fills.FILLS.items()]
    return table(["`mix.fill`", "needs a partner"], rows)


def objective_rows():
    rows = [
        [
            code(name),
            summary(inspect.getmodule(each.clean)),
            "yes" if each.uses_labels else "",
            "yes" if each.mixed is not None else "",
            "yes" if each.state is not None else "",
            _options(each),
        ]
        for name, each in objectives.OBJECTIVES.items()
    ]
    return table(["weight of a phase", "what", "uses labels", "mixed loss", "carries state", "options"], rows)


def score_rows():
    rows = [[code(name), ", ".join(each.needs), _options(each)] for name, each in scores.SCORES.items()]
    return table(["`evaluate.score`", "needs", "options"], rows)


def encoders():
    rows = [
        [
            code(name),
            each.width,
            each.num_stages,
            ", ".join(map(code, each.stems)),
            ", ".join(f"{size} ({stem})" for stem, size in (each.patches or {}).items()),
        ]
        for name, each in models.ENCODERS.items()
    ]
    return table(["`model.name`", "width", "stages", "`model.stem`", "patch size, pixels"], rows)


def readers():
    rows = []
    for name, each in data.READERS.items():
        forms = ", ".join(map(code, each.forms(name)))
        rows.append([forms, "training, test" if each.has_train else "test only, as an unknown dataset"])
    return table(["`dataset.name`", "images"], rows)


def corruption_rows():
    rows = [[code(name), summary(each.apply)] for name, each in corruptions.CORRUPTIONS.items()]
    return table(["corruption", "what"], rows)


PARTS = {
    "configuration": configuration,
    "recipes": recipe_rows,
    "methods": methods,
    "maps": maps,
    "masks": mask_rows,
    "fills": fill_rows,
    "objectives": objective_rows,
    "scores": score_rows,
    "encoders": encoders,
    "readers": readers,
    "corruptions": corruption_rows,
}
