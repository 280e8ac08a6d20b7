"""A checkpoint is evaluated and drawn only as part of the run that it belongs to, as for resuming."""

import jax
import pytest
from untrained_runs import digits

from gradmix_jax import assembly, figure
from gradmix_jax import config as config_lib
from gradmix_jax import workdir as workdir_lib
from gradmix_jax.data import open_set
from gradmix_jax.evaluation import fitting
from gradmix_jax.report import overlays, runs
from gradmix_jax.training.checkpoint import Checkpoints
from gradmix_jax.training.identity import identity

OTHERS = {
    "trial": ({"dataset.trial": 1}, "trial 0, not 1"),
    "seed": ({"seed": 5}, "seed 0, not 5"),
    "classes": (
        {"dataset.benchmark": "named", "dataset.known": ("0", "1", "2", "3", "4", "5")},
        "known classes '{first}', not '0'",
    ),
    # The model would be tested on classes that it was trained on.
    "negative classes": ({"dataset.num_negative": 1}, "negative classes None, not '{unknown}'"),
    "number of classes": ({"dataset.benchmark": "named", "dataset.known": ("0", "1")}, "classes 6, not 2"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(setup, data, workdir) with a checkpoint of the first state, which records its run; no config.json."""
    workdir = str(tmp_path_factory.mktemp("run"))
    specs = config_lib.from_config(config_lib.to_plain(digits()), num_devices=jax.device_count())
    data = open_set(specs.dataset)
    program = assembly.make_program(specs, num_classes=data.num_classes, num_images=10**4)
    checkpoints = Checkpoints(workdir, of=identity(specs.dataset, specs.seed, data.class_names, data.negative_names))
    checkpoints.save(assembly.initial_state(specs, program))
    checkpoints.close()
    return specs, data, workdir


def test_a_checkpoint_of_the_same_run_is_restored(saved):
    specs, data, workdir = saved
    assert fitting.restore(specs.setup, workdir, data=data).step == 0


@pytest.mark.parametrize("what", OTHERS)
def test_a_checkpoint_of_another_run_is_rejected(saved, tmp_path, what):
    changed, said = OTHERS[what]
    _, data, workdir = saved
    config = digits(**{key: value for key, value in changed.items() if key != "seed"})
    config.seed = changed.get("seed", config.seed)
    plain = config_lib.to_plain(config)
    said = said.format(first=data.class_names[0], unknown=data.stored_names[data.split.unknown[0]])
    said = rf"checkpoints/0 is of a run with {said}; give another workdir\.$"
    with pytest.raises(ValueError, match=said):
        fitting.restore(config_lib.from_config(plain, num_devices=1).setup, workdir)
    workdir_lib.write_json(workdir, workdir_lib.CONFIG, plain)
    with pytest.raises(ValueError, match=said):
        figure.grid(workdir, str(tmp_path / "grid.png"))
    assert not list(tmp_path.iterdir())
    shown = overlays.overlays(runs.Run(workdir, plain, {}))
    assert shown.startswith("<p>Maps and masks over training cannot be shown: ") and "is of a run with" in shown
