"""The --help of a command: the text of its module and its own flags."""

import inspect
import os
import re
import sys

from absl import flags

WORDS = ("--help", "-help", "-h", "-?")


def is_asked(argv: list[str]) -> bool:
    """Whether a command line asks for help; what comes after `--` are arguments."""
    return any(word in WORDS for word in (argv[: argv.index("--")] if "--" in argv else argv)[1:])


def text() -> str:
    """What the running command does, examples, and its flags."""
    about = inspect.cleandoc(sys.modules["__main__"].__doc__ or "")
    listed = re.sub(r"^.*\.py:\n", "", flags.FLAGS.main_module_help().strip("\n"))
    listed = listed.replace("\n    (default: 'None')", "")  # of an experiment file
    return _as_called(about) + (f"\n\nflags:\n{listed}" if listed else "")


def _as_called(about: str) -> str:
    """The examples as one calls the installed command, which knows the files of configs/ by name."""
    words = sys.orig_argv
    if len(words) < 3 or os.path.basename(words[1]) != "gradmix":
        return about
    name = {"eval": "train"}.get(words[2], words[2])  # one text for both
    about = re.sub(r"python -m gradmix_jax\.\w+", f"gradmix {name}", about)
    return re.sub(r"--config=configs/(\w+)\.py", r"--config=\1", about)
