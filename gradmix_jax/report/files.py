"""Write a report: the page, Markdown, LaTeX, and the numbers of every run."""

import contextlib
import dataclasses
import os

from gradmix_jax import workdir as workdir_lib
from gradmix_jax.fields import one_line
from gradmix_jax.report import contents, formats, page, raw
from gradmix_jax.report.conditions import conditions, details
from gradmix_jax.report.runs import Group, load_groups
from gradmix_jax.report.tables import Table
from gradmix_jax.workdir import storage


def write(workdirs: list[str], out_dir: str, *, apart: bool = False) -> list[str]:
    """Write `report.html`, `results.md`, `results.tex` and `runs.csv`: all of them, or none on an error.

    Args:
      workdirs: directories of runs that have been evaluated.
      out_dir: made if need be; other files in it are left alone.
      apart: see `runs.load_groups`.

    Returns:
      The paths of the files.

    Raises:
      ValueError: `out_dir` is a file, or as `runs.load_groups`.
    """
    if storage.exists(out_dir) and not storage.is_directory(out_dir):
        raise ValueError(f"--out must be a directory, got the file {out_dir!r}.")
    workdir_lib.check_directory(out_dir, "--out")
    groups = load_groups(workdirs, apart=apart)
    for run in (run for group in groups for method in group.methods for run in method.runs):
        run.check()  # before anything is drawn
    tables = [contents.all_tables(list(group.methods)) for group in groups]
    across = contents.across(groups) if len(groups) > 1 else None
    texts = {
        "report.html": page.page(groups, tables, across),
        "results.md": _markdown(groups, tables, across),
        "results.tex": _latex(groups, tables, across),
        "runs.csv": raw.rows((group.label, list(group.methods)) for group in groups),
    }
    storage.make_directory(out_dir)
    paths = {os.path.join(out_dir, name): text for name, text in texts.items()}
    with contextlib.ExitStack() as written:
        for path, text in paths.items():
            written.enter_context(workdir_lib.replacing(path)).write(text)
    return list(paths)


def _lines(group: Group) -> list[str]:
    return [*conditions(list(group.methods)), *details(list(group.methods))]


def _markdown(groups: list[Group], tables: list[list[Table]], across: Table | None) -> str:
    several, parts = len(groups) > 1, ["# Results"]
    parts += [formats.markdown(across)] if across else []
    for group, of_group in zip(groups, tables):
        parts += [f"# Data: {formats.escape_markdown(group.label)}"] if several else []
        lines = [f"- {formats.escape_markdown(line)}" for line in _lines(group)]
        parts += [*map(formats.markdown, of_group), "## Conditions", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _latex(groups: list[Group], tables: list[list[Table]], across: Table | None) -> str:
    r"""Tables to \input, and the conditions as comments."""
    parts = ["% Needs \\usepackage{booktabs,graphicx}."]
    parts += [formats.latex(across)] if across else []
    for index, (group, of_group) in enumerate(zip(groups, tables)):
        parts.append("\n".join(f"% {one_line(' '.join(line.split()))}" for line in _lines(group)))
        if len(groups) > 1:
            pre = page.prefix(index)
            of_group = [
                dataclasses.replace(table, name=pre + table.name, title=f"{group.label}: {table.title}")
                for table in of_group
            ]
        parts += map(formats.latex, of_group)
    return "\n\n".join(parts) + "\n"
