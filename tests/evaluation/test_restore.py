"""A checkpoint is evaluated only as part of the run that it belongs to, as for resuming."""

import jax
import pytest
from untrained_runs import digits

from gradmix_jax import config as config_lib
from gradmix_jax import run as run_lib
from gradmix_jax.data import open_set
from gradmix_jax.evaluation import fitting
from gradmix_jax.training.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(setup, data, workdir) with a checkpoint of the first state, which records its run; no config.json."""
    workdir = str(tmp_path_factory.mktemp("run"))
    specs = config_lib.from_config(config_lib.to_plain(digits()), num_devices=jax.device_count())
    data = open_set(specs.dataset)
    program = run_lib.make_program(specs, num_classes=data.num_classes, num_images=10**4)
    of = {"dataset": specs.dataset.name, "trial": 0, "seed": specs.seed, "classes": data.num_classes}
    checkpoints = Checkpoints(workdir, of=of)
    checkpoints.save(run_lib.initial_state(specs, program))
    checkpoints.close()
    return specs, data, workdir


def test_a_checkpoint_of_the_same_run_is_restored(saved):
    specs, data, workdir = saved
    assert fitting.restore(specs.setup, workdir, data=data).step == 0


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("dataset.trial", 1, "is of a run with trial 0, not 1"), ("seed", 5, "is of a run with seed 0, not 5")],
)
def test_a_checkpoint_of_another_run_is_rejected(saved, key, value, said):
    _, data, workdir = saved
    config = digits(**({key: value} if "." in key else {}))
    config.seed = value if key == "seed" else config.seed
    specs = config_lib.from_config(config_lib.to_plain(config), num_devices=1)
    with pytest.raises(ValueError, match=f"{said}; give another workdir.$"):
        fitting.restore(specs.setup, workdir, data=data)
