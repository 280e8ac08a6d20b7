"""report.html: one file that loads nothing from elsewhere."""

import base64
import dataclasses
import hashlib
import pathlib

from gradmix_jax.config import flatten
from gradmix_jax.report import curves, drawing, formats, plots, sections
from gradmix_jax.report.conditions import conditions, details
from gradmix_jax.report.formats import MISSING, escape_html
from gradmix_jax.report.labels import cut
from gradmix_jax.report.runs import AVERAGED_OVER, Group, Method
from gradmix_jax.report.tables import Table

TITLE = "Open set recognition: results"
# Keys of the config that a table of differences shows.
MOST_KEYS = 60
# Size of the methods' sections beyond which later ones go without their large parts.
MOST_LETTERS = 5_000_000
_HERE = pathlib.Path(__file__).parent


def page(groups: list[Group], tables: list[list[Table]], across: Table | None = None) -> str:
    """The whole page.

    Args:
      groups: what it is about.
      tables: of each group, as `contents.all_tables` makes them.
      across: a table of all groups.
    """
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    with drawing.style():
        # Identifiers are unique on the page; those of the first group have no prefix.
        several, room = len(groups) > 1, Room()
        parts = [
            _group(group, of_group, prefix(index), room, several)
            for index, (group, of_group) in enumerate(zip(groups, tables))
        ]
    count = sum(len(method.runs) for group in groups for method in group.methods)
    methods = len({method.label for group in groups for method in group.methods})
    data = "; ".join(group.label for group in groups)
    lead = f"{count} run{'s' * (count > 1)} of {methods} method{'s' * (methods > 1)}, data: {data}."
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">',
            f"<title>{TITLE}</title><style>{(_HERE / 'page.css').read_text(encoding='utf-8')}</style></head><body>",
            '<a class="skip" href="#main">Skip the contents</a>',
            f"<header><h1>{TITLE}</h1><p>{escape_html(lead)}</p></header>",
            _contents(groups, tables, across),
            '<main id="main">',
            formats.html(across) if across else "",
            *parts,
            f"</main><script>{script}</script></body></html>",
            "",
        ]
    )


@dataclasses.dataclass
class Room:
    """Number of methods that the page shows in full: up to sections.MOST_IN_FULL, unless they are too large."""

    methods: int = 0
    letters: int = 0

    def section(self, method: Method, name: str) -> str:
        """The section of the next method."""
        in_full = self.methods < sections.MOST_IN_FULL and self.letters < MOST_LETTERS
        made = sections.section(method, name, in_full=in_full, first=self.methods)
        self.methods, self.letters = self.methods + in_full, self.letters + len(made)
        return made


def prefix(index: int) -> str:
    """The prefix of a group's identifiers."""
    return f"data-{index}-" if index else ""


def _policy(script: str) -> str:
    """Nothing may be loaded, and no script may run but ours."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _group(group: Group, tables: list[Table], pre: str, room: Room, several: bool) -> str:
    """Tables, curves and conditions of methods on the same data, then each method."""
    methods = list(group.methods)
    comparison = _comparison(methods, pre)
    names = [f"{pre}method-{index}" for index in range(len(methods))]
    lines = [*conditions(methods), *details(methods)]
    parts = [
        f'<h2 id="{pre}data">Data: {escape_html(group.label)}</h2>' if several else "",
        f'<section id="{pre}tables"><h2>Tables</h2>',
        *(formats.html(dataclasses.replace(table, name=pre + table.name)) for table in tables),
        "</section>",
        comparison,
        _differences(methods, pre),
        f'<section id="{pre}conditions"><h2>Conditions</h2><ul>',
        *(f"<li>{escape_html(line)}</li>" for line in lines),
        "</ul></section>",
    ]
    return "\n".join([*parts, *map(room.section, methods, names)])


def _contents(groups: list[Group], tables: list[list[Table]], across: Table | None) -> str:
    link = lambda name, text: f'<li><a href="#{name}">{escape_html(text)}</a></li>'
    lists = []
    for index, (group, of_group) in enumerate(zip(groups, tables)):
        pre, several = prefix(index), len(group.methods) > 1
        inner = "".join(link(pre + table.name, table.title) for table in of_group)
        names = "".join(link(f"{pre}method-{place}", m.label) for place, m in enumerate(group.methods))
        entries = [
            f'<li><a href="#{pre}tables">Tables</a><ul>{inner}</ul></li>',
            *([link(f"{pre}comparison", "Curves of all methods")] if _compares(group.methods) else []),
            *([link(f"{pre}differences", "Configs: what differs")] if several else []),
            link(f"{pre}conditions", "Conditions: data, seeds, hardware, versions"),
            f"<li>Methods<ul>{names}</ul></li>",
        ]
        heading = f'<p><a href="#{pre}data">{escape_html(group.label)}</a></p>' if len(groups) > 1 else ""
        lists.append(f"{heading}<ul>{''.join(entries)}</ul>")
    first = f"<ul>{link(across.name, across.title)}</ul>" if across else ""
    return f'<nav aria-label="contents"><p>Contents</p>{first}{"".join(lists)}</nav>'


def _compares(methods) -> bool:
    corrupted = any(run.results["corruptions"].get("results") for method in methods for run in method.runs)
    return corrupted or sum(any(run.headline for run in method.runs) for method in methods) > 1


def _comparison(methods: list[Method], pre: str) -> str:
    """Curves of all methods together; "" if there is nothing to compare."""
    inner = "".join([*(curves.methods_curve(methods, kind) for kind in curves.KINDS), plots.severities(methods)])
    return (
        f'<section id="{pre}comparison"><h2>Curves of all methods</h2><div class="plots">{inner}</div></section>'
        if inner
        else ""
    )


def _differences(methods: list[Method], pre: str) -> str:
    """key x method: the values of the config keys that not all methods share; "" for one method."""
    if len(methods) < 2:
        return ""
    flats = [flatten(method.example.config) for method in methods]
    keys = [key for key in dict.fromkeys(key for flat in flats for key in flat) if key not in (*AVERAGED_OVER, "name")]
    differing = [key for key in keys if len({repr(flat.get(key)) for flat in flats}) > 1]
    value = lambda flat, key: escape_html(cut(str(flat.get(key, MISSING)), 120))
    rows = "".join(
        f'<tr><th scope="row">{escape_html(key)}</th>{"".join(f"<td>{value(flat, key)}</td>" for flat in flats)}</tr>'
        for key in differing[:MOST_KEYS]
    )
    heads = "".join(f'<th scope="col">{escape_html(method.label)}</th>' for method in methods)
    more = f"<p>{len(differing) - MOST_KEYS} more keys differ.</p>" if len(differing) > MOST_KEYS else ""
    table = (
        '<div class="scroll" tabindex="0" role="group" aria-label="differing keys"><table class="keys"><thead><tr>'
        f'<th scope="col">key</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>{more}'
    )
    inner = table if differing else "<p>The configs are the same but for trial and seed.</p>"
    return f'<section id="{pre}differences"><h2>Configs: what differs</h2>{inner}</section>'
