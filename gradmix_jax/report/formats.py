"""One table in three formats. Text is escaped here and nowhere else."""

import html as html_library

from gradmix_jax.fields import escape_markdown, one_line
from gradmix_jax.report.comparison import Value
from gradmix_jax.report.tables import Metric, Table

MISSING = "–"
DAGGER = "†"
# The last columns of every table.
COUNTS = ("splits", "runs")
_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: "\\" + character for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "†": r"$^{\dagger}$",
    "–": "--",
}


def escape_html(text: str) -> str:
    return html_library.escape(str(text), quote=True)


def escape_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in one_line(" ".join(str(text).split())))


def arrow(metric: Metric) -> str:
    return {True: " ↑", False: " ↓", None: ""}[metric.higher_is_better]


def number(value: Value, of_row: tuple[int, int]) -> str:
    """ "mean ± std", and the number of runs if it differs from that of the row."""
    text = f"{value.mean:.4f}" if value.std is None else f"{value.mean:.4f} ± {value.std:.4f}"
    return text if (value.splits, value.runs) == of_row else f"{text} ({value.runs} of {of_row[1]} runs)"


def interval(value: Value) -> str:
    return "" if value.interval is None else f"[{value.interval[0]:.4f}, {value.interval[1]:.4f}]"


def markdown_rows(table: Table) -> list[str]:
    """The lines of the table alone."""
    heads = [*table.heads, *(metric.label + arrow(metric) for metric in table.metrics), *COUNTS]
    lines = [_markdown_row(map(escape_markdown, heads)), "|---" * len(heads) + "|"]
    for labels, values, counts in zip(table.labels, table.values, table.counts):
        cells = [*map(escape_markdown, labels), *(_markdown_cell(v, counts) for v in values), *map(str, counts)]
        lines.append(_markdown_row(cells))
    return lines


def _markdown_row(cells) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_cell(value: Value | None, counts: tuple[int, int]) -> str:
    if value is None:
        return MISSING
    text = f"**{number(value, counts)}**" if value.best else number(value, counts)
    return " ".join(filter(None, [text + DAGGER * value.tied, interval(value)]))


def markdown(table: Table) -> str:
    """A section: title, table, notes."""
    notes = [f"- {escape_markdown(note)}" for note in table.notes]
    return "\n".join([f"## {escape_markdown(table.title)}", "", *markdown_rows(table), "", *notes])


def latex(table: Table) -> str:
    """A table environment with booktabs rules, as wide as the line at most."""
    heads = [*table.heads, *(metric.label for metric in table.metrics), *COUNTS]
    arrows = [""] * len(table.heads) + [_latex_arrow(metric) for metric in table.metrics] + [""] * len(COUNTS)
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{escape_latex(table.title)}}}",
        rf"\label{{tab:{table.name}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{'l' * len(table.heads)}{'c' * len(table.metrics)}{'r' * len(COUNTS)}}}",
        r"\toprule",
        _latex_row(escape_latex(head) + mark for head, mark in zip(heads, arrows)),
        r"\midrule",
    ]
    for labels, values, counts in zip(table.labels, table.values, table.counts):
        cells = [_latex_cell(value, counts) for value in values]
        lines.append(_latex_row([*map(escape_latex, labels), *cells, *map(str, counts)]))
        if any(value and value.interval for value in values):
            brackets = [rf"{{\scriptsize {interval(value)}}}" if value and value.interval else "" for value in values]
            # Without the empty group, \\ would take a bracket at the start of the next line for its argument.
            lines.append(_latex_row(["{}", *[""] * (len(labels) - 1), *brackets, *[""] * len(COUNTS)]))
    notes = rf"\par\smallskip{{\footnotesize\raggedright {' '.join(map(escape_latex, table.notes))}\par}}"
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}}", notes, r"\end{table}"])


def _latex_row(cells) -> str:
    return " & ".join(cells) + r" \\"


def _latex_arrow(metric: Metric) -> str:
    return {True: r" $\uparrow$", False: r" $\downarrow$", None: ""}[metric.higher_is_better]


def _latex_cell(value: Value | None, counts: tuple[int, int]) -> str:
    if value is None:
        return "--"
    text = escape_latex(number(value, counts))
    return (rf"\textbf{{{text}}}" if value.best else text) + r"$^{\dagger}$" * value.tied


def html(table: Table) -> str:
    """A section with the table in a box that scrolls sideways, and the notes below."""
    heads = [f'<th scope="col" class="label">{escape_html(head)}</th>' for head in table.heads]
    heads += [
        f'<th scope="col"{_better(metric)}>{escape_html(metric.label)}{_html_arrow(metric)}</th>'
        for metric in table.metrics
    ]
    heads += [f'<th scope="col" class="count">{head}</th>' for head in COUNTS]
    rows = []
    for labels, values, counts in zip(table.labels, table.values, table.counts):
        cells = [f'<th scope="row">{escape_html(label)}</th>' for label in labels]
        cells += [_html_cell(value, counts) for value in values]
        cells += [f"<td>{count}</td>" for count in counts]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    notes = "".join(f"<li>{escape_html(note)}</li>" for note in table.notes)
    return (
        f'<section id="{table.name}"><h3>{escape_html(table.title)}</h3>\n'
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape_html(table.title)}">'
        f'<table class="sortable">\n<thead><tr>{"".join(heads)}</tr></thead>\n'
        f"<tbody>\n{chr(10).join(rows)}\n</tbody></table></div>\n"
        f'<ul class="notes">{notes}</ul></section>'
    )


def _html_arrow(metric: Metric) -> str:
    return arrow(metric).replace(" ", "&nbsp;")


def _better(metric: Metric) -> str:
    """Where lower is better, the page's script sorts upward first."""
    return ' data-better="low"' if metric.higher_is_better is False else ""


def _html_cell(value: Value | None, counts: tuple[int, int]) -> str:
    if value is None:
        return f"<td>{MISSING}</td>"
    text = escape_html(number(value, counts))
    text = f"<b>{text}</b>" if value.best else text
    text += f"<sup>{DAGGER}</sup>" * value.tied
    text += f"<br><small>{interval(value)}</small>" if value.interval else ""
    return f'<td data-v="{float(value.mean)!r}">{text}</td>'
