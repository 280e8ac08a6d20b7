"""How every command of the package ends on a user's mistake or on Ctrl-C: one sentence, a status, no traceback."""

import os
import re
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable

import jax
from absl import app, flags, logging
from ml_collections.config_flags import config_path

from gradmix_jax import config as config_lib

HERE = os.path.dirname(os.path.abspath(__file__))


def run(main: Callable[[list[str]], None], *, required: tuple[str, ...] = ()) -> None:
    """Parse the flags and call `main(rest of the command line)`.

    A ValueError raised by this package is a user's mistake: its sentence is printed. One raised inside a library is
    a bug of ours and keeps its traceback.

    Args:
      main: takes the program name and the positional arguments.
      required: flags that must be given.
    """
    logging.set_verbosity(logging.WARNING)
    _keep_compiled_programs()
    try:
        app.run(main, flags_parser=lambda argv: _parse(argv, required))
    except ValueError as error:
        raised_in = os.path.abspath(traceback.extract_tb(error.__traceback__)[-1].filename)
        full = "No space left on device"
        if full in str(error):  # as TensorStore says it, in many words
            error = ValueError(f"{full.lower()}; what was saved before is kept.")
        elif not raised_in.startswith(HERE):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        said = textwrap.shorten(str(error), 120, placeholder=" ...")
        print(
            f"error: out of memory ({said}); allowed: less at a time, such as a smaller train.batch_size or "
            "evaluate.batch_size, or dataset.storage 'stream'.",
            file=sys.stderr,
        )
        sys.exit(2)
    except OSError as error:  # no room, no right, not there
        where = f": {error.filename}" if error.filename else ""
        print(f"error: {error.strerror or error}{where}.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        print(interrupt if interrupt.args else "interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def no_words(argv: list[str]) -> None:
    """Raises ValueError where the command line has words that are no flags: one without its dashes, say."""
    if argv[1:]:
        raise ValueError(f"{argv[1]!r} is no flag; allowed: flags alone, such as --{argv[1].lstrip('-')}.")


def _keep_compiled_programs():
    """Compile a program once per user and not once per run, unless JAX was told where to keep it, or not to."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "gradmix_jax", "xla"))
    # An evaluation is some hundred small programs, none of them worth keeping by JAX's own measure of a second.
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _parse(argv, required):
    try:
        rest = flags.FLAGS(argv)
        missing = [name for name in required if flags.FLAGS[name].value is None]
        # A config file that could not be read raises only when something is asked of it.
        for name in flags.FLAGS:
            getattr(flags.FLAGS[name].value, "lock", None)
    except Exception as error:  # whatever a flag or the config file raises
        # ml_collections puts the traceback of the config file into its message; the last line says what was wrong.
        said = error
        while isinstance(said, (AttributeError, KeyError)) and said.args:  # of a KeyError str() has quotes and \n
            said = said.args[0]
        lines = [line.strip() for line in str(said).splitlines() if line.strip()]
        sentence = lines[-1].removeprefix("ValueError: ") if lines else type(error).__name__
        sentence = re.sub(r"^\[Errno \d+\] (.*): '(.*)'$", r"\1: \2.", sentence)  # of a config file that is not there
        frames = traceback.extract_tb(error.__traceback__)
        looked_up = any(frame.filename.endswith("config_path.py") for frame in frames)  # ml_collections, for a flag
        if looked_up and isinstance(error, IndexError):
            places = [name for name in _named_keys(argv) if "[" in name]
            sentence = f"there is no {' or no '.join(places)}; allowed: phases[0] to the last one."
        elif looked_up:
            sentence = (
                f"unknown config key {_unknown_key(' '.join(lines), argv)}; allowed: the keys of gradmix_jax/config.py."
            )
        elif isinstance(error, (AttributeError, LookupError)):
            own = [frame for frame in frames if "ml_collections" not in frame.filename][-1]
            sentence = f"{own.filename}, line {own.lineno}: {type(error).__name__}: {' '.join(lines)}"
        raise ValueError(sentence) from error
    if missing:
        raise ValueError(f"--{missing[0]} is missing; allowed: see --help.")
    return rest


def _named_keys(argv: list[str]) -> list[str]:
    """The keys of the --config.KEY flags."""
    return [match[1] for match in (re.match(r"--?config\.([^=]+)", argument) for argument in argv) if match]


def _unknown_key(said: str, argv: list[str]) -> str:
    """The whole name of the key, of which an error says the last part at most, "'fil'", and perhaps a guess."""
    guess = re.search(r'Did you mean "(\w+)"', said)
    for name in _named_keys(argv):
        try:
            config_path.get_value(name, config_lib.default_config())
        except (AttributeError, KeyError, TypeError):
            return f"{name} (did you mean {guess[1]!r}?)" if guess else name
        except IndexError:
            continue  # a phase that only this config has
    return said
