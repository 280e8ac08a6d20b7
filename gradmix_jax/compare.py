"""Compare runs on one page, opened in the browser: tables, curves, thresholds, mistakes, what differs in their configs.

python -m gradmix_jax.compare runs/input runs/none               every evaluated run in these folders
python -m gradmix_jax.compare runs/a runs/b --out=DIR --noopen   write the page only

Unlike `report`, it takes folders of runs, any datasets together, and runs of one recipe that differ in other keys.
"""

import os
import pathlib
import sys
import webbrowser

from absl import flags

from gradmix_jax import cli, report
from gradmix_jax import workdir as workdir_lib
from gradmix_jax.workdir import storage

# Folders below a given one: <protocol>/<recipe>/<trial and seed>.
DEPTH = 3


def expand(paths: list[str]) -> list[str]:
    """The workdirs: each path that is one, and the evaluated runs in each folder, in the order of their names.

    Raises:
      ValueError: a path is neither a workdir nor a folder with evaluated runs.
    """
    found: list[str] = []
    for path in paths:
        inside = [path] if storage.exists(os.path.join(path, workdir_lib.CONFIG)) else _evaluated(path, DEPTH)
        if not inside:
            raise ValueError(f"{path} holds no evaluated run; give workdirs or folders of them.")
        found += inside
    return list(dict.fromkeys(found))


def _evaluated(folder: str, depth: int) -> list[str]:
    if storage.exists(os.path.join(folder, workdir_lib.RESULTS)):
        return [folder]
    if depth == 0 or not storage.is_directory(folder):
        return []
    return [run for name in storage.names(folder) for run in _evaluated(os.path.join(folder, name), depth - 1)]


def can_open() -> bool:
    """Whether there is a screen to open a browser on; without one, `webbrowser` may start one in the terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def main(argv: list[str]) -> None:
    if len(argv) < 2:
        raise ValueError("compare got no runs; give workdirs of evaluated runs, or folders of them.")
    out = storage.expand(flags.FLAGS.out, "--out")
    workdirs = expand(list(map(storage.expand, argv[1:])))
    page, *others = report.write(workdirs, out, apart=True)
    print(report.summary(workdirs, apart=True))
    print("\n".join(["", page, *others]))
    if flags.FLAGS.open and can_open() and not storage.is_remote(page):
        webbrowser.open(pathlib.Path(page).absolute().as_uri())


if __name__ == "__main__":
    flags.DEFINE_string("out", "comparison", "Directory to write report.html, results.md, results.tex and runs.csv to.")
    flags.DEFINE_bool("open", True, "Whether to open the page in the browser if there is a screen.")
    cli.run(main)
