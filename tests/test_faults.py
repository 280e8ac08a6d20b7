"""What a run does when it is killed, when its disk is full or read-only, and when its files are damaged.

docs/faults.md states the counts of these tests. The slow ones fork every start from one process that has imported the
package, and end it by KILL.
"""

import contextlib
import itertools
import json
import os
import pathlib
import random
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from programs import small_program, small_state

from gradmix_jax.training.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).parents[1]
KILLS = 30
ARGUMENTS = [
    "--config=configs/digits_osr.py",
    "--config.dataset.image_size=8",
    "--config.augment.jitter_prob=0.0",
    "--config.model.width=4",
    "--config.phases[0].epochs=5",
    "--config.train.log_every_steps=1",
    "--config.train.checkpoint_every_epochs=1",
    "--config.evaluate.scores=('topk_cosine',)",
    "--config.evaluate.stages=()",
]
# Reads [arguments, seconds, log] a line; forks, runs the main job, kills it after so many seconds (0: never).
FORKER = """
import json, os, runpy, signal, sys, time
import gradmix_jax.main
for line in sys.stdin:
    arguments, seconds, log = json.loads(line)
    child = os.fork()
    if not child:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1); os.dup2(out, 2)
        sys.argv = ["main", *arguments]
        status = 1
        try:
            runpy.run_module("gradmix_jax.main", run_name="__main__", alter_sys=True)
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            sys.stdout.flush(); sys.stderr.flush()
            os._exit(status or 0)
    started = time.monotonic()
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() - started > (seconds or 250):
            os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            break
        time.sleep(0.005)
    print(json.dumps([os.waitstatus_to_exitcode(status), time.monotonic() - started]), flush=True)
"""


@pytest.fixture
def start(tmp_path):
    """A function (workdir, seconds until KILL) -> (exit status, seconds that it ran)."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    pipe = subprocess.PIPE
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", FORKER], stdin=pipe, stdout=pipe, text=True, env=environment, cwd=ROOT
    )

    def run(workdir, seconds=0.0, *more):
        request = [[*ARGUMENTS, f"--workdir={workdir}", *more], seconds, str(tmp_path / "log")]
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    yield run
    server.kill()
    server.wait()


def content(workdir):
    """What a run leaves behind, without timestamps and durations."""
    metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    results = json.loads((workdir / "results.json").read_text())
    digests = {}
    for path in sorted((workdir / "checkpoints").glob("[0-9]*")):
        digests[path.name] = json.loads((path / "about" / "metadata").read_text())["sha256"]
    with np.load(workdir / "scores.npz") as scores:
        arrays = {name: scores[name].tolist() for name in scores.files}
    drop = lambda found, *names: {name: value for name, value in found.items() if name not in names}
    lines = [drop(line, "steps_per_second") for line in metrics]
    return {
        "metrics": lines,
        "results": drop(results, "seconds", "environment"),
        "checkpoints": digests,
        "scores": arrays,
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_that_is_killed_again_and_again_leaves_what_an_uninterrupted_one_does(start, tmp_path):
    moments = random.Random(0)
    start(tmp_path / "warm")  # compiles
    status, whole = start(tmp_path / "whole")
    assert status == 0, (tmp_path / "log").read_text()
    expected = content(tmp_path / "whole")
    assert [line["step"] for line in expected["metrics"]] == list(range(1, 26))
    killed, finished = 0, 0
    for number in itertools.count():
        workdir = tmp_path / f"run{number}"
        while True:
            # No more kills; the last run finishes.
            status, _ = start(workdir, moments.uniform(0.2, whole) if killed < KILLS else 0.0)
            if status == 0:
                break
            assert status == -9, (tmp_path / "log").read_text()
            killed += 1
        assert content(workdir) == expected
        finished += 1
        if killed >= KILLS:
            break
    print(f"{killed} kills, {finished} runs finished, {whole:.1f} s each")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_same_seed_gives_the_same_bits_also_in_the_report(start, tmp_path):
    contents, pages, workdir = [], [], tmp_path / "run"
    for name in ("a", "b"):
        assert start(workdir)[0] == 0, (tmp_path / "log").read_text()
        contents.append(content(workdir))
        command = [sys.executable, "-m", "gradmix_jax.report", str(workdir), f"--out={tmp_path / 'out'}"]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
        assert result.returncode == 0, result.stderr
        seconds = str(json.loads((workdir / "results.json").read_text())["seconds"]).encode()
        files = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
        pages.append({path.name: path.read_bytes().replace(b">" + seconds + b"<", b"><") for path in files})
        os.rename(workdir, tmp_path / f"run_{name}")
        os.rename(tmp_path / "out", tmp_path / f"out_{name}")
    assert contents[0] == contents[1]
    assert pages[0] and pages[0].keys() == pages[1].keys()
    assert [name for name in pages[0] if pages[0][name] != pages[1][name]] == []


@contextlib.contextmanager
def mounted(path, options):
    """A small separate file system at `path`; skips the test without the rights to mount one."""
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(path)], capture_output=True).returncode:
        pytest.skip("no right to mount a file system")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def _errors(log):
    """The lines that are neither the progress bar nor warnings about optional files."""
    lines = [line.rpartition("\r")[2].strip() for line in log.read_text().splitlines()]
    return [line for line in lines if line and not line.startswith(("training:", "warning:", "derived:"))]


@pytest.mark.slow
@pytest.mark.parametrize("options", ["size=1m", "size=40m,nr_inodes=60"])
def test_a_full_disk_is_one_line_soon_and_keeps_what_is_there(options, start, tmp_path):
    """Without room for bytes or for files; in the latter case, Orbax has threads that wait for five minutes.

    Not forked, because Python joins these threads when it exits.
    """
    with mounted(tmp_path / "small", options) as small, open(tmp_path / "said", "w") as log:
        keep = ["--config.train.keep_checkpoints=12", "--mode=train", "--config.phases[0].epochs=12"]
        command = [sys.executable, "-m", "gradmix_jax.main", *ARGUMENTS, f"--workdir={small / 'run'}", *keep]
        environment = os.environ | {"XLA_FLAGS": ""}
        status = subprocess.run(command, cwd=ROOT, stderr=log, env=environment, timeout=150).returncode
        said = _errors(tmp_path / "said")
        assert status == 5 and len(said) == 1, said
        assert re.fullmatch(r"error: .*no space left on device.*", said[0], re.IGNORECASE), said
        steps = [path.name for path in (small / "run" / "checkpoints").glob("[0-9]*") if path.name.isdigit()]
        subprocess.run(["mount", "-o", "remount,size=80m,nr_inodes=10000", str(small)], check=True)
        status, _ = start(small / "run", 0.0, *keep)
        assert status == 0 and steps, (tmp_path / "log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["start", "training", "evaluation"])
def test_a_workdir_that_cannot_be_written_is_one_line_at_each_stage(stage, start, tmp_path):
    with mounted(tmp_path / "disk", "size=80m") as disk:
        if stage == "evaluation":
            assert start(disk / "run", 0.0, "--mode=train")[0] == 0
        mode = {"start": "train", "training": "train", "evaluation": "eval"}[stage]
        read_only = ["mount", "-o", "remount,ro", str(disk)]
        if stage != "training":
            subprocess.run(read_only, check=True)
            status, _ = start(disk / "run", 0.0, f"--mode={mode}")
        else:
            # An open file keeps a file system from becoming read-only, so detach it.
            remount = f"while [ ! -d {disk}/run/checkpoints/10 ]; do sleep 0.05; done; mount -o remount,ro {disk}; "
            remount += f"umount -l {disk}; mount -t tmpfs -o ro,size=1m none {disk}"
            with subprocess.Popen(["bash", "-c", remount]) as helper:
                status, _ = start(disk / "run", 0.0, "--mode=train", "--config.phases[0].epochs=400")
                helper.wait(20)
        said = _errors(tmp_path / "log")
        assert status == 5 and len(said) == 1 and "Traceback" not in said[0], said
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


DAMAGES = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "one bit": lambda path: path.write_bytes(_flipped(path.read_bytes())),
    "deleted": lambda path: path.unlink(),
}


def _flipped(content: bytes) -> bytes:
    changed = bytearray(content)
    if changed:
        changed[len(changed) // 2] ^= 4
    return bytes(changed)


@pytest.mark.slow
def test_damage_to_any_file_of_a_checkpoint_is_found_or_harmless(tmp_path, capsys):
    """Any damage gives the same bits of this step, or the step before it with both names in a warning."""
    state = jax.device_get(small_state(*small_program()))
    at = lambda step: state.replace(step=np.int32(step))
    checkpoints = Checkpoints(str(tmp_path), of=None)
    for step in (1, 2):
        checkpoints.save(at(step))
    checkpoints.close()
    newest = tmp_path / "checkpoints" / "2"
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    counts = {"harmless": 0, "found": 0}
    for path, (kind, damage) in itertools.product(files, DAMAGES.items()):
        before = path.read_bytes()
        damage(path)
        reader = Checkpoints(str(tmp_path), of=None, read_only=True)
        restored = reader.restore(state)
        reader.close()
        said = capsys.readouterr().err
        what = f"{path.relative_to(newest)} {kind}: {said}"
        if reader.restored_step == 2:
            counts["harmless"] += 1
        else:
            counts["found"] += 1
            assert re.search(r"checkpoints/2 .*Using \S+checkpoints/1\.\n", said), what
        jax.tree.map(np.testing.assert_array_equal, restored, at(reader.restored_step))
        path.write_bytes(before)
    assert len(files) > 8 and counts["found"] > len(files), counts
    print(counts, len(files))
