"""Load the user's experiment file; an error in it gives one line with the file and the line number."""

import os
import sys
import traceback
import types
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import tuple_parser

flags.disclaim_key_flags()  # as in `cli`
FUNCTION = "get_config"
LONGEST = 1000  # characters of a reason; all recipes and methods fit, and the wrong name behind them


class ConfigFileError(Exception):
    """A mistake in an experiment file, in one line. Not a ValueError, which absl would wrap in another one."""


def define_flag(name: str, help_string: str, *, flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Define a flag for an experiment file whose keys are flags too, `--config.KEY=VALUE`.

    If a key is given twice, the last value wins, for tuples as for everything else.
    """
    config_flags.register_flag_parser_for_type(tuple, _TupleParser())
    config_flags.DEFINE_config_file(name, None, help_string, flag_values=flag_values)
    flag_values[name].parser = _Parser()


class _TupleParser(flags.ArgumentParser):
    """Replaces ml_collections' parser, which joins the values of repeated flags."""

    syntactic_help = "a tuple such as (1, 2)"

    def parse(self, argument: Any) -> tuple:
        return tuple_parser.TupleParser().parse(argument)

    def flag_type(self) -> str:
        return "tuple"


class _Parser(flags.ArgumentParser):
    """FILE or FILE:RECIPE -> the locked config."""

    def parse(self, argument: str) -> ConfigDict:
        config = load(argument)
        config.lock()
        return config

    def flag_type(self) -> str:
        return "experiment file"


def load(argument: str) -> ConfigDict:
    """The config returned by `get_config` of an experiment file.

    Args:
      argument: FILE, or FILE:RECIPE, where RECIPE is passed to get_config. The file is the user's and is executed.

    Raises:
      ConfigFileError: the file is missing or does not return a config; one line with file and line number.
    """
    path, *recipe = argument.split(":", 1)
    module = types.ModuleType("gradmix_jax_config_file")
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses look up their module
    try:
        code = compile(_source(path), path, "exec", dont_inherit=True)
        exec(code, module.__dict__)
    except BaseException as error:
        raise _translated(error, path) from error
    function = getattr(module, FUNCTION, None)
    if not callable(function):
        raise ConfigFileError(f"{path} has no function {FUNCTION}; define `def {FUNCTION}(recipe='input')` in it.")
    try:
        config = function(*recipe)
    except BaseException as error:
        raise _translated(error, path) from error
    if not isinstance(config, ConfigDict):
        raise ConfigFileError(
            f"{FUNCTION} of {path} must return a config as gradmix_jax.config.default_config makes it, "
            f"got {repr(config)[:80]}."
        )
    return config


def _source(path: str) -> bytes:
    try:
        if os.path.isdir(path):
            raise ConfigFileError(f"--config must be a file, got the directory {path!r}.")
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ConfigFileError(f"{error.strerror}: {path}.") from error


def _translated(error: BaseException, path: str) -> BaseException:
    """The error to raise instead: one line with file and line number, whatever the file did."""
    if isinstance(error, (KeyboardInterrupt, ConfigFileError)):
        return error
    said = error
    while isinstance(said, (AttributeError, KeyError)) and said.args and not isinstance(said.args[0], str):
        said = said.args[0]
    text = str(said.args[0]) if isinstance(said, (AttributeError, KeyError)) and said.args else str(said)
    if isinstance(error, SyntaxError):
        line = f", line {error.lineno}" if error.lineno else ""  # unknown in a file with null bytes
        where, text = f"{error.filename or path}{line}", error.msg
    else:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        where = f"{path}, line {own[-1].lineno}" if own else path
    if isinstance(error, SystemExit):
        text = f"it ends the command with {error.code!r} instead of returning a config"
    said = " ".join(text.split()) or "no reason given"
    kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
    return ConfigFileError(f"{where}: {kind}{said[:LONGEST]}{'' if said.endswith(('.', '?')) else '.'}")
