"""Write a report: the page, Markdown and LaTeX."""

import contextlib
import os

from gradmix_jax import workdir as workdir_lib
from gradmix_jax.report import contents, formats, page
from gradmix_jax.report.runs import Method, conditions, details, load
from gradmix_jax.report.tables import Table


def write(workdirs: list[str], out_dir: str) -> list[str]:
    """Write `report.html`, `results.md` and `results.tex`: all of them, or none on an error.

    Args:
      workdirs: directories of runs that have been evaluated.
      out_dir: made if need be; other files in it are left alone.

    Returns:
      The paths of the three files.

    Raises:
      ValueError: `out_dir` is a file, or as `runs.load`.
    """
    if os.path.exists(out_dir) and not os.path.isdir(out_dir):
        raise ValueError(f"--out must be a directory, got the file {out_dir!r}.")
    methods = load(workdirs)
    for run in (run for method in methods for run in method.runs):
        run.check()  # before anything is drawn
    tables = contents.all_tables(methods)
    texts = {
        "report.html": page.page(methods, tables),
        "results.md": _markdown(methods, tables),
        "results.tex": _latex(methods, tables),
    }
    os.makedirs(out_dir, exist_ok=True)
    paths = {os.path.join(out_dir, name): text for name, text in texts.items()}
    with contextlib.ExitStack() as written:
        for path, text in paths.items():
            written.enter_context(workdir_lib.replacing(path)).write(text)
    return list(paths)


def _markdown(methods: list[Method], tables: list[Table]) -> str:
    lines = [f"- {formats.escape_markdown(line)}" for line in [*conditions(methods), *details(methods)]]
    return "\n\n".join(["# Results", *map(formats.markdown, tables), "## Conditions", "\n".join(lines)]) + "\n"


def _latex(methods: list[Method], tables: list[Table]) -> str:
    r"""Tables to \input, and the conditions as comments."""
    needs = "% Needs \\usepackage{booktabs,graphicx}."
    lines = [f"% {' '.join(line.split())}" for line in [*conditions(methods), *details(methods)]]
    return "\n\n".join([needs, "\n".join(lines), *map(formats.latex, tables)]) + "\n"
