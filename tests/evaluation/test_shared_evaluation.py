"""Two processes share the extraction of features, and agree with one process."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
from stored_data import write_folder
from untrained_runs import digits, untrained, write_noise

from gradmix_jax import config as config_lib
from gradmix_jax import corruptions, run
from gradmix_jax import data as data_lib
from gradmix_jax.evaluation import cache, images
from gradmix_jax.evaluation.processes import Team

ROOT = pathlib.Path(__file__).parents[2]
# Both processes count the images they read; the second one cannot read the dataset "broken".
JOB = """
import json, sys
import jax
port, index, config, workdir, counts = sys.argv[1:]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, int(index))
from ml_collections import ConfigDict
import numpy as np
from gradmix_jax import corruptions, run
from gradmix_jax.evaluation import features, images
from gradmix_jax.pod import agreement
agreement.WAIT = 120
corruptions.NAMES = ("contrast", "gaussian_noise")
read, counted = features.read, []
def count(source, start, stop):
    if not isinstance(source, np.ndarray):
        counted.append(stop - start)
    return read(source, start, stop)
features.read = images.read = count
share = images.Opener.share
def broken(self, name, *rest):
    if index == "1" and "broken" in str(name):
        raise OSError("no such disk")
    return share(self, name, *rest)
images.Opener.share = broken
plain = json.load(open(config))
try:
    results = run.run(ConfigDict(plain), workdir, "eval")
except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    jax.distributed.shutdown()
    sys.exit(2)
assert (results is None) == (index == "1")
json.dump(sum(counted), open(counts, "w"))
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def start(index, port, config, workdir, counts):
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    command = [sys.executable, "-c", JOB, str(port), str(index), str(config), str(workdir), str(counts)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def run_two(config, workdirs, counts, *, timeout=240):
    """[(exit status, stderr)] of two processes, each with its own workdir."""
    port = free_port()
    processes = [start(index, port, config, workdirs[index], counts[index]) for index in range(2)]
    try:
        errors = [process.communicate(timeout=timeout)[1] for process in processes]
        return [(process.returncode, error) for process, error in zip(processes, errors)]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow
def test_two_processes_read_half_of_the_images_each_and_agree_with_one(tmp_path, monkeypatch):
    monkeypatch.setattr(corruptions, "NAMES", ("contrast", "gaussian_noise"))
    broken = write_folder(tmp_path / "broken", train={"cat": 5, "dog": 5}, test={"cat": 3, "dog": 3})
    write_noise(tmp_path / "broken")
    config = digits(
        **{
            "evaluate.near": (broken,),
            "evaluate.far": ("noise:uniform",),
            "evaluate.corruptions": "regenerated",
            "evaluate.scores": ("topk_cosine",),
        }
    )
    plain, workdir = untrained(config, tmp_path / "run")
    (tmp_path / "config.json").write_text(json.dumps(plain))
    counts = [tmp_path / "count0", tmp_path / "count1"]
    ends = run_two(tmp_path / "config.json", [workdir, tmp_path / "none"], counts)
    assert [status for status, _ in ends] == [0, 0], ends
    assert not (tmp_path / "none").exists(), "only the main process writes"
    two = json.loads((tmp_path / "run" / "results.json").read_text())
    features = cache.load(workdir)

    (tmp_path / "run" / "features.npz").unlink()
    one = run.evaluate(plain, workdir)
    assert two["failed"] == {f"near dataset {broken}": "process 1: no such disk"} and not one["failed"]
    for name in ("accuracy", "auroc", "oscr", "macro_f1", "num_known", "num_unknown"):
        assert two[name] == pytest.approx(one[name], abs=1e-4), name
    for name in ("ood", "corruptions"):
        one[name].get("near", {}).clear()
        assert_close(two[name], one[name])
    for part, of_one in cache.load(workdir).items():
        np.testing.assert_allclose(features[part].outputs["features"], of_one.outputs["features"], atol=1e-4)
        for rows in ("hashes", "labels", "classes", "places"):
            np.testing.assert_array_equal(getattr(features[part], rows), getattr(of_one, rows))

    data = data_lib.open_set(data_lib.Spec(**plain["dataset"]))
    sizes = {part: len(getattr(data, part)) for part in ("train", "validation", "test_known", "test_unknown")}
    # Corrupted images are made from the test images, which are read once more.
    total = sum(sizes.values()) + 1000 + sizes["test_known"] + sizes["test_unknown"]
    read = [json.loads(path.read_text()) for path in counts]
    # The main process read its three images of the dataset that the other process could not read.
    assert read[0] - 3 + read[1] == total and abs(read[0] - read[1]) < 0.02 * total


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_close(found[name], value)
        else:
            assert found[name] == (pytest.approx(value, abs=2e-3) if isinstance(value, float) else value), name


@pytest.mark.slow
def test_all_processes_say_why_there_is_no_headline(tmp_path):
    plain = config_lib.to_plain(digits(**{"evaluate.scores": ("topk_cosine",)}))
    (tmp_path / "config.json").write_text(json.dumps(plain))
    ends = run_two(tmp_path / "config.json", [tmp_path / "empty"] * 2, [tmp_path / "0", tmp_path / "1"])
    for status, errors in ends:
        assert status == 2 and "error: no checkpoint in" in errors, ends


def test_shares_are_contiguous_and_complete():
    for size in (0, 1, 7, 8, 500):
        for count in (1, 2, 3, 8):
            shares = [images.share_of(size, index, count) for index in range(count)]
            assert [each for start, stop in shares for each in range(start, stop)] == list(range(size))
            assert max(stop - start for start, stop in shares) == -(-size // count)


def test_one_process_gathers_nothing():
    rows = np.arange(6, dtype=np.uint64)
    assert Team().gather(rows, 6) is rows
    with pytest.raises(ValueError, match="^a reason$"):
        Team().agree("a reason")
