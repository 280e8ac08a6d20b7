"""Print every key of a config with its value, default and meaning.

python -m gradmix_jax.show_config --config=configs/cifar_osr.py:layer
python -m gradmix_jax.show_config --config=configs/cifar_osr.py --changed
"""

import textwrap

from absl import flags

from gradmix_jax import cli
from gradmix_jax import config as config_lib


def main(argv: list[str]) -> None:
    cli.no_words(argv)
    config = flags.FLAGS.config
    config_lib.from_config(config, num_devices=1)
    for key, value, default, comment in config_lib.described(config):
        if value == default and flags.FLAGS.changed:
            continue
        was = "" if value == default else f"  (default {default!r})"
        print(f"{key} = {value!r}{was}")
        print(textwrap.indent(textwrap.fill(comment, 110), "    "))


if __name__ == "__main__":
    cli.define_experiment_flags(workdir=False)
    flags.DEFINE_bool("changed", False, "Print only the keys that differ from their defaults.")
    cli.run(main, required=("config",))
