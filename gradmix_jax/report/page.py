"""report.html: one file that loads nothing from elsewhere."""

from gradmix_jax.report import curves, drawing, formats, sections
from gradmix_jax.report.formats import escape_html
from gradmix_jax.report.runs import Method, conditions, details
from gradmix_jax.report.tables import Table

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c1e21; --soft: #5b6068; --rule: #d5d8dc; --shade: #f3f5f7;
  --blue: #0072b2; --orange: #d55e00; --mark: #fff3cd; }
@media (prefers-color-scheme: dark) { :root { --paper: #15171a; --ink: #e6e8eb; --soft: #a3a9b2; --rule: #3a3f46;
  --shade: #1f2226; --blue: #3b8fdd; --orange: #f08a3c; --mark: #4a3f16; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.35rem; margin-top: 2.5rem; }
h3 { font-size: 1.1rem; margin: 2rem 0 .5rem; } h4 { font-size: 1.05rem; margin: 1.8rem 0 .5rem; }
h5 { font-size: .92rem; margin: 1rem 0 .3rem; }
a { color: var(--blue); }
p, li, figcaption, summary, tbody th, td { overflow-wrap: anywhere; }
nav { background: var(--shade); padding: .6rem 1rem; border-radius: 6px; font-size: .92rem; }
nav ul { margin: .3rem 0; padding-left: 1.1rem; } nav p { margin: .2rem 0; font-weight: 600; }
.parts { font-size: .85rem; } nav li { margin: .25rem 0; }
nav li ul, .parts { display: flex; flex-wrap: wrap; gap: 0 1rem; padding: 0; list-style: none; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--rule); }
td { white-space: nowrap; } thead th { vertical-align: bottom; border-bottom: 2px solid var(--ink); min-width: 4.5rem; }
tbody th { font-weight: 500; text-align: left; white-space: nowrap; }
thead th.label { text-align: left; white-space: nowrap; min-width: 0; } thead th.count { min-width: 0; }
td small { color: var(--soft); } sup { line-height: 0; }
table.keys th, table.keys td { text-align: left; } table.keys td { white-space: normal; min-width: 8rem; }
tr.changed th, tr.changed td { background: var(--mark); } tr.changed th { font-weight: 700; }
.notes { font-size: .82rem; color: var(--soft); padding-left: 1.1rem; margin: .5rem 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr));
  gap: 1rem; align-items: start; }
.plots p { grid-column: 1 / -1; margin: 0; }
figure { margin: 0; min-width: 0; } figure.wide { grid-column: 1 / -1; }
figure svg, img { display: block; max-width: 100%; height: auto; }
.large svg { min-width: 38rem; }
figcaption { font-size: .82rem; color: var(--soft); margin-top: .3rem; max-width: 46rem; }
.gallery { display: flex; flex-wrap: wrap; gap: .6rem; list-style: none; margin: 0; padding: 0; }
.gallery li { width: 5.4rem; font-size: .75rem; line-height: 1.3; }
.gallery img { width: 5.4rem; image-rendering: pixelated; border-radius: 3px; }
.gallery span { display: block; }
.method { border-top: 3px solid var(--rule); margin-top: 3rem; }
details { margin: .6rem 0; } summary { cursor: pointer; }
@media print { nav { display: none; } .scroll { overflow: visible; } }
"""


def page(methods: list[Method], tables: list[Table]) -> str:
    """The whole page.

    Args:
      methods: what it is about.
      tables: as `contents.all_tables` makes them.
    """
    names = [f"method-{index}" for index in range(len(methods))]
    count = sum(len(method.runs) for method in methods)
    with drawing.style():
        comparison = _comparison(methods)
        about = [
            sections.section(method, name, in_full=index < sections.MOST_IN_FULL)
            for index, (method, name) in enumerate(zip(methods, names))
        ]
    title = "Open set recognition: results"
    lead = f"{count} run{'s' * (count > 1)} of {len(methods)} method{'s' * (len(methods) > 1)}"
    data = methods[0].example.config["dataset"]["name"]
    lines = [*conditions(methods), *details(methods)]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title><style>{STYLE}</style></head><body>",
            f"<h1>{title}</h1><p>{escape_html(lead)}, data: {escape_html(data)}.</p>",
            _contents(methods, names, tables, bool(comparison)),
            '<main><section id="tables"><h2>Tables</h2>',
            *map(formats.html, tables),
            "</section>",
            comparison,
            '<section id="conditions"><h2>Conditions</h2><ul>',
            *(f"<li>{escape_html(line)}</li>" for line in lines),
            "</ul></section>",
            *about,
            "</main></body></html>",
            "",
        ]
    )


def _contents(methods, names, tables, compares: bool) -> str:
    link = lambda name, text: f'<li><a href="#{name}">{escape_html(text)}</a></li>'
    entries = [
        '<li><a href="#tables">Tables</a><ul>' + "".join(link(t.name, t.title) for t in tables) + "</ul></li>",
        *([link("comparison", "Curves of all methods")] if compares else []),
        link("conditions", "Conditions: data, seeds, hardware, versions"),
        "<li>Methods<ul>" + "".join(link(name, m.label) for m, name in zip(methods, names)) + "</ul></li>",
    ]
    return f'<nav aria-label="contents"><p>Contents</p><ul>{"".join(entries)}</ul></nav>'


def _comparison(methods: list[Method]) -> str:
    """Curves of all methods together; "" where there is nothing to compare."""
    figures = [curves.methods_curve(methods, with_class=False), curves.methods_curve(methods, with_class=True)]
    inner = "".join([*figures, curves.severities(methods)])
    return (
        f'<section id="comparison"><h2>Curves of all methods</h2><div class="plots">{inner}</div></section>'
        if inner
        else ""
    )
