"""Print a table of finished runs; with --out, also write an HTML page, Markdown and LaTeX.

python -m gradmix_jax.report runs/digits/*/trial* --out=runs/digits/report
"""

from absl import flags

from gradmix_jax import cli, report
from gradmix_jax.workdir import storage


def main(argv: list[str]) -> None:
    if len(argv) < 2:
        raise ValueError("report got no directories; give the workdirs of evaluated runs.")
    # Before printing, so that an error is the only output.
    workdirs = list(map(storage.expand, argv[1:]))
    out = storage.expand(flags.FLAGS.out, "--out") if flags.FLAGS.out else ""
    written = report.write(workdirs, out) if out else []
    print(report.summary(workdirs))
    if written:
        print("\n".join(["", *written]))


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Directory to write report.html, results.md, results.tex and runs.csv to.")
    cli.run(main)
