"""The command `gradmix`, or `python -m gradmix_jax`: one subcommand for each command module of this package.

gradmix train --config=configs/digits_osr.py --workdir=runs/digits
"""

import ast
import difflib
import importlib.util
import pathlib
import runpy
import sys

# Subcommand -> (module, arguments that it implies).
COMMANDS = {
    "train": ("gradmix_jax.main", []),
    "eval": ("gradmix_jax.main", ["--mode=eval"]),
    "predict": ("gradmix_jax.predict", []),
    "score": ("gradmix_jax.score", []),
    "export": ("gradmix_jax.export", []),
    "report": ("gradmix_jax.report", []),
    "compare": ("gradmix_jax.compare", []),
    "protocol": ("gradmix_jax.protocol", []),
    "sweep": ("gradmix_jax.sweep", []),
    "figure": ("gradmix_jax.figure", []),
    "data": ("gradmix_jax.data", []),
    "config": ("gradmix_jax.show_config", []),
    "list": ("gradmix_jax.list_names", []),
}


def version() -> str:
    """The versions of this package and of its main dependencies, and the devices found."""
    import jax

    from gradmix_jax import __version__
    from gradmix_jax.workdir import environment

    found = environment()
    packages = ", ".join(f"{name} {number}" for name, number in found["packages"].items() if number)
    devices = f"{len(found['devices'])} x {found['devices'][0]} ({jax.default_backend()})"
    commit = found["commit"] and f", commit {found['commit'][:12]}{'+' if found['uncommitted_changes'] else ''}"
    return f"gradmix_jax {__version__}{commit}\nPython {found['python']}, {packages}\n{devices}"


def usage() -> str:
    """The commands, each with the first sentence of its module, without importing any."""
    lines = ["usage: gradmix COMMAND [arguments]", ""]
    for name, (module, implied) in COMMANDS.items():
        lines.append(f"  {name:10}{_about(module)}" if not implied else f"  {name:10}The same as train {implied[0]}.")
    return "\n".join(
        [*lines, "", "gradmix COMMAND --help lists the flags of a command; gradmix --version the versions."]
    )


def _about(module: str) -> str:
    origin = pathlib.Path(importlib.util.find_spec(module).origin)
    command = origin.with_name("__main__.py") if origin.name == "__init__.py" else origin
    return ast.get_docstring(ast.parse(command.read_text(encoding="utf-8"))).splitlines()[0]


def main() -> None:
    """Run the subcommand named by the first argument as `python -m` would."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("", "help", "-h", "--help"):
        print(usage())
        return
    if name == "--version":
        print(version())
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(COMMANDS)}."
        print(f"error: unknown command {name!r}; {hint}", file=sys.stderr)
        sys.exit(2)
    module, implied = COMMANDS[name]
    sys.argv[:2] = [f"gradmix {name}", *implied]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
