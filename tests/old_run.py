"""The workdir of an old digits run, for the tests of everything that reads runs; see `test_old_runs.py`."""

import pathlib
import tarfile

from gradmix_jax import config as config_lib
from gradmix_jax.evaluation import fitting

ARCHIVE = pathlib.Path(__file__).with_name("old_run.tar.xz")


def unpack(folder):
    """Unpack the run into `folder`; returns it."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def unpack_with_features(folder):
    """Unpack the run and compute the features of its checkpoint, as an evaluation leaves them; returns `folder`."""
    unpack(folder)
    setup = config_lib.from_config(config_lib.read(str(folder)), num_devices=1).setup
    fitting.compute_parts(fitting.restore(setup, str(folder)), str(folder))
    return folder
