"""python -m gradmix_jax.report WORKDIR... --out=DIR"""

from absl import flags

from gradmix_jax import cli, report


def main(argv: list[str]) -> None:
    if len(argv) < 2:
        raise ValueError("report got no directories; allowed: workdirs of runs that have been evaluated.")
    # Written first: where that fails, the sentence about it is all that is printed.
    written = report.write(argv[1:], flags.FLAGS.out) if flags.FLAGS.out else []
    print(report.summary(argv[1:]))
    if written:
        print("\n".join(["", *written]))


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Directory for report.html, results.md and results.tex, besides printing.")
    cli.run(main)
