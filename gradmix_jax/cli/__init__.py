"""Shared by the commands: flags, and configuration errors and Ctrl-C reported in one line with an exit status."""

import contextlib
import logging as stdlib_logging
import os
import re
import shlex
import signal
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections.config_flags import config_path

from gradmix_jax import config as config_lib
from gradmix_jax import pod
from gradmix_jax.cli import config_file, help_text, program_cache
from gradmix_jax.fields import check_choice, one_line
from gradmix_jax.workdir import storage

# Flags defined here are listed by the --help of the command that uses them.
flags.disclaim_key_flags()
HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# The experiment files: beside the package in a checkout, inside it when installed.
CONFIGS = (os.path.join(os.path.dirname(HERE), "configs"), os.path.join(HERE, "configs"))
# Process-wide JAX options that environment variables may have set. Results must not depend on them, and this code
# assumes these values.
SWITCHES = {
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_numpy_dtype_promotion": "standard",
    "jax_enable_x64": False,
    "jax_disable_jit": False,
    "jax_transfer_guard": "allow",
}

# Seconds that threads get to finish after a failure, such as writing a checkpoint.
_PATIENCE = 10.0
# Exit status if results are written but parts of an evaluation failed.
PARTS_FAILED = 3
# Exit status if a disk, a bucket or the workdir cannot be used now: unlike after 2, a scheduler should try again.
UNAVAILABLE = 5


def run(main: Callable[[list[str]], None], *, required: tuple[str, ...] = ()) -> None:
    """Parse the flags and call `main(rest of the command line)`.

    A ValueError raised by this package is a user error and is printed in one line. One raised inside a library is a bug
    of ours and keeps its traceback. If there are other processes, they are notified and this one ends at once.

    Args:
      main: takes the program name and the positional arguments.
      required: flags that must be given.
    """
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_handler().setFormatter(_Line())
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show an arrow or a name shows a question mark instead of stopping the work.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    for name, value in SWITCHES.items():
        jax.config.update(name, value)
    try:
        program_cache.keep_programs()
        try:
            app.run(main, flags_parser=lambda argv: _parse(argv, required))
        except SystemExit:  # app.run always ends like this; short output is still in the buffer
            if sys.stdout is not None:
                sys.stdout.flush()
            raise
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        _discard_output()
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt as interrupt:
        print(interrupt if interrupt.args else "interrupted", file=sys.stderr)
        if not interrupt.args:  # a message means that all processes have stopped together
            pod.leave("interrupted (SIGINT)", 128 + signal.SIGINT)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        said = _said(error)
        if said:
            print(f"error: {said}", file=sys.stderr)
            if isinstance(error, OSError):  # possibly from writing the output
                _discard_output()
            status = UNAVAILABLE if storage.may_pass(error) else 2
            pod.leave(said, status)
            _end_soon(status)
            sys.exit(status)
        if isinstance(error, jax.errors.JaxRuntimeError):  # a collective fails if another process does
            pod.wait_for_verdict()
        if pod.joined():
            traceback.print_exc()
            pod.leave(one_line(f"{type(error).__name__}: {error}")[:300], 1)
        raise


class _Line(stdlib_logging.Formatter):
    """Formats warnings like those that commands print, without time, thread and source line."""

    def format(self, record: stdlib_logging.LogRecord) -> str:
        said = f"{record.levelname.lower()}: {one_line(record.getMessage())}"
        return f"{said}\n{self.formatException(record.exc_info)}" if record.exc_info else said


def _discard_output() -> None:
    """Discard the rest of the output's buffer, which Python would otherwise try to flush at exit, with an error."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end_soon(status: int) -> None:
    """Keep threads from delaying the end of this process: some of Orbax's wait five minutes after a failure."""
    main, left = threading.main_thread(), [each for each in threading.enumerate() if not each.daemon]

    def end():
        main.join()  # Python is exiting, which joins the other threads
        deadline = time.monotonic() + _PATIENCE
        for each in left:
            each.join(max(0.0, deadline - time.monotonic()))
        if any(each.is_alive() for each in left):
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            os._exit(status)

    if len(left) > 1:
        threading.Thread(target=end, name="end", daemon=True).start()


def _said(error: Exception) -> str:
    """One line for an error that the user can fix; "" for any other."""
    said, raised_in = str(error), os.path.abspath(traceback.extract_tb(error.__traceback__)[-1].filename)
    if storage.is_full(error):  # TensorStore's wording is long
        return "no space left on device; what was saved before is kept."
    if isinstance(error, ValueError):
        return one_line(said) if raised_in.startswith(HERE) else ""
    if isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in said
    ):
        short = textwrap.shorten(said, 120, placeholder=" ...")
        options = "set train.micro_batch_size, lower train.batch_size or evaluate.batch_size"
        return f"out of memory ({short}); {options}, or set dataset.storage to 'stream'."
    if isinstance(error, (RuntimeError, AssertionError)) and not _has_devices():
        asked = os.environ.get("JAX_PLATFORMS") or "by default"
        return f"JAX finds no device of the platform asked for ({asked}); check JAX_PLATFORMS."
    if isinstance(error, OSError):  # disk full, no permission, not found
        where = f": {error.filename}" if error.filename else ""
        return one_line(f"{error.strerror or error}{where}") + "."
    return ""


def _has_devices() -> bool:
    """Whether JAX finds devices; the traceback of an error may not tell, because JAX hides its own frames."""
    with contextlib.suppress(RuntimeError, AssertionError):
        return bool(jax.devices())
    return False


def config_path_of(name: str) -> str:
    """The file for `--config=NAME`: an existing path, or a config that comes with the package.

    A recipe after a colon is kept. Raises ValueError for a name that is neither a file nor a config of the package.
    """
    path, colon, recipe = name.partition(":")
    if os.path.exists(path) or path.endswith(".py") or os.sep in path:
        return name
    folder = next((each for each in CONFIGS if os.path.isdir(each)), "")
    known = sorted(file.removesuffix(".py") for file in os.listdir(folder) if file.endswith(".py")) if folder else []
    check_choice("--config", path, known)
    return f"{os.path.join(folder, path)}.py{colon}{recipe}"


def no_words(argv: list[str]) -> None:
    """Raises ValueError for an argument that is not a flag, such as one without its dashes."""
    if argv[1:]:
        raise ValueError(f"unexpected argument {argv[1]!r}; did you mean --{argv[1].lstrip('-')}?")


def define_experiment_flags(*, workdir: bool = True) -> None:
    """Define --config and, by default, --workdir."""
    what = "Experiment file, or the name of one that comes with the package; override a key with --config.KEY=VALUE."
    config_file.define_flag("config", what)
    if workdir:
        flags.DEFINE_string(
            "workdir", None, "Directory of the run, or of all runs; also gs://BUCKET/FOLDER or s3://BUCKET/FOLDER."
        )


def define_protocol_flags() -> None:
    """Define the flags of a command that runs trials and seeds."""
    flags.DEFINE_list("trials", "0,1,2,3,4", "Class splits, by number.")
    flags.DEFINE_list("seeds", "0", "Seeds to train each class split with.")
    flags.DEFINE_bool("print_commands", False, "Print one command per run without running any.")


def numbers(name: str) -> list[int]:
    """The value of the flag `trials` or `seeds`. Raises ValueError unless it is a list of distinct numbers."""
    words = getattr(flags.FLAGS, name)
    if not words or not all(re.fullmatch("[0-9]{1,18}", word) for word in words):
        raise ValueError(f"--{name} must be numbers separated by commas, got {','.join(words)!r}.")
    if len(set(map(int, words))) < len(words):
        raise ValueError(f"--{name} must name every number once, got {','.join(words)!r}.")
    return [int(word) for word in words]


def config_words() -> list[str]:
    """The --config flags of this command line, each as one word."""
    words = iter(sys.argv[1:])
    return [word if "=" in word else f"{word}={next(words, '')}" for word in words if word.startswith("--config")]


def print_commands(config_words: list[str], workdir: str, trials: list[int], seeds: list[int]) -> None:
    """Print one `gradmix_jax.main` command for every trial and seed, with these --config flags."""
    for trial in trials:
        for seed in seeds:
            words = [
                *("python", "-m", "gradmix_jax.main"),
                *config_words,
                f"--config.dataset.trial={trial}",
                f"--config.seed={seed}",
                f"--workdir={os.path.join(workdir, f'trial{trial}_seed{seed}')}",
            ]
            print(shlex.join(words))


def _parse(argv, required):
    if help_text.is_asked(argv):  # absl's own ends with status 1
        print(help_text.text())
        sys.exit(0)
    sys.argv = [_renamed(word) for word in sys.argv]  # ml_collections looks for overridden keys there
    argv = [_with_config_path(_renamed(word)) for word in _joined(argv)]
    try:
        rest = flags.FLAGS(argv)
        missing = [name for name in required if flags.FLAGS[name].value is None]
    except config_file.ConfigFileError as error:
        raise ValueError(str(error)) from error
    except Exception as error:  # whatever a flag raises
        raise ValueError(_said_of_flag(error, argv)) from error
    if missing:
        raise ValueError(f"--{missing[0]} is required; see --help.")
    return rest


def _said_of_flag(error: Exception, argv: list[str]) -> str:
    """What is wrong with a flag, in one sentence."""
    said: Any = error
    while isinstance(said, (AttributeError, KeyError)) and said.args:  # of a KeyError str() has quotes and \n
        said = said.args[0]
    said = re.sub(r"\('(Non-boolean argument .*)', .*\)$", r"\1", str(said))  # absl's, a tuple
    lines = list(filter(None, map(str.strip, said.splitlines())))
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    looked_up = any(file.endswith("config_path.py") for file in files)  # of ml_collections
    if looked_up and isinstance(error, IndexError):
        return f"no such phase: {', '.join(name for name in _named_keys(argv) if '[' in name)}."
    if looked_up:
        return f"unknown config key {_unknown_key(' '.join(lines), argv)}."
    return " ".join(lines) if lines else type(error).__name__


def _joined(argv: list[str]) -> list[str]:
    """`--config NAME` joined into one word, a form that other flags allow too."""
    words, joined = iter(argv), []
    for word in words:
        joined.append(f"{word}={next(words, '')}" if word in ("--config", "-config") else word)
    return joined


def _with_config_path(word: str) -> str:
    flag, equals, value = word.partition("=")
    return f"{flag}={config_path_of(value)}" if equals and flag in ("--config", "-config") else word


def _renamed(word: str) -> str:
    """--config.KEY=VALUE with the key's current name."""
    flag, equals, value = word.partition("=")
    dashes, config, key = flag.partition("config.")
    return f"{dashes}{config}{config_lib.RENAMED.get(key, key)}{equals}{value}" if dashes in ("-", "--") else word


def _named_keys(argv: list[str]) -> list[str]:
    """The keys of the --config.KEY flags."""
    return [match[1] for match in (re.match(r"--?config\.([^=]+)", argument) for argument in argv) if match]


def _unknown_key(said: str, argv: list[str]) -> str:
    """The full name of the key and a guess, if any; the error has only the last part of the name, "'fil'"."""
    guess = re.search(r'Did you mean "(\w+)"', said)
    for name in _named_keys(argv):
        try:
            config_path.get_value(name, config_lib.default_config())
        except (AttributeError, KeyError, TypeError):
            return f"{name} (did you mean {guess[1]!r}?)" if guess else name
        except IndexError:
            continue  # a phase that exists only in this config
    return said
