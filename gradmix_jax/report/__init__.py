"""Tables, curves and an HTML page from the results of one or many runs.

python -m gradmix_jax.report runs/digits/*/trial* --out=report
"""

from gradmix_jax.report.text import ROWS, summary, table, write_summary


def write(workdirs: list[str], out_dir: str, *, apart: bool = False) -> list[str]:
    """Write the FILES of finished runs into `out_dir`; see `files.write`."""
    # Imported here so that training, which prints a table, does not wait for matplotlib.
    from gradmix_jax.report import files

    return files.write(workdirs, out_dir, apart=apart)


# The files that `write` writes.
FILES = ("report.html", "results.md", "results.tex", "runs.csv")

__all__ = ["FILES", "ROWS", "summary", "table", "write", "write_summary"]
