"""The command `gradmix`, or `python -m gradmix_jax`: one subcommand for each command module of this package.

gradmix train --config=configs/digits_osr.py --workdir=runs/digits
"""

import runpy
import sys

# Subcommand -> (module, arguments that it implies).
COMMANDS = {
    "train": ("gradmix_jax.main", []),
    "eval": ("gradmix_jax.main", ["--mode=eval"]),
    "predict": ("gradmix_jax.predict", []),
    "report": ("gradmix_jax.report", []),
    "protocol": ("gradmix_jax.protocol", []),
    "sweep": ("gradmix_jax.sweep", []),
    "figure": ("gradmix_jax.figure", []),
}


def main() -> None:
    """Run the subcommand named by the first argument as `python -m` would."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("", "help", "-h", "--help"):
        print(f"usage: gradmix COMMAND [arguments]\n\ncommands: {', '.join(COMMANDS)}\n")
        print("gradmix COMMAND --help lists the flags of a command.")
        return
    if name not in COMMANDS:
        print(f"error: unknown command {name!r}; use one of {', '.join(COMMANDS)}.", file=sys.stderr)
        sys.exit(2)
    module, implied = COMMANDS[name]
    sys.argv[:2] = [f"gradmix {name}", *implied]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
