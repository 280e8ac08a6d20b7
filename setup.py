"""Packages of the wheel; everything else is in pyproject.toml.

The experiment files of `configs/` ship inside the package, where `--config=cifar_osr` finds them; so do the style and
script of the report.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["gradmix_jax*"]), "gradmix_jax.configs"],
    package_data={"gradmix_jax.data": ["protocols.json"], "gradmix_jax.report": ["page.css", "page.js"]},
    package_dir={"gradmix_jax.configs": "configs"},
)
