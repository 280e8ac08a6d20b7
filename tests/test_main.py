"""The command as its users run it: train, resume, evaluate, and its messages for mistakes."""

import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib

import commands
import jax
import numpy as np
import pytest
from marks import slow
from PIL import Image
from programs import final_state, small_config

from gradmix_jax import assembly, cli, figure, predict
from gradmix_jax import config as config_lib
from gradmix_jax import data as data_lib
from gradmix_jax import run as run_lib
from gradmix_jax import workdir as workdir_lib
from gradmix_jax.config import phase
from gradmix_jax.data import order
from gradmix_jax.training import loop, mapping, train
from gradmix_jax.training.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).parents[1]
PHASES = (phase("ssl", epochs=2, ssl=1.0), phase("joint", epochs=2, supcon=1.0, ssl=1.2))


def digits(recipe="input", **overrides):
    config = small_config(recipe, phases=PHASES, **overrides)
    config.seed = 1  # not the default, which would hide a seed that is not passed on
    config.dataset.channels = 1
    config.normalization.mean, config.normalization.std = (0.5,), (0.25,)
    config.train.batch_size = 256
    config.train.log_every_steps = 2
    config.evaluate.scores = ("topk_cosine",)
    return config


def fit(config, workdir):
    config = config_lib.to_plain(config)
    specs = run_lib.from_config(config, num_devices=jax.device_count())
    return run_lib.train(specs, config, str(workdir))


def checkpoint_steps(workdir):
    checkpoints = Checkpoints(str(workdir), of=None, read_only=True)
    steps = checkpoints.steps()
    checkpoints.close()
    return steps


def metrics_lines(workdir):
    lines = [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "steps_per_second"} for line in lines]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """(config, workdir) of an uninterrupted run of 4 epochs."""
    workdir = tmp_path_factory.mktemp("whole")
    config = digits()
    fit(config, workdir)
    return config, workdir


def test_nothing_is_compiled_after_the_first_step(tmp_path, monkeypatch, programs):
    config = digits()
    config.train.checkpoint_every_epochs, config.train.keep_checkpoints = 1, 3
    before_step = []

    class Writer(train.MetricsWriter):
        def advance(self):
            super().advance()
            before_step.append(len(programs))

    monkeypatch.setattr(train, "MetricsWriter", Writer)
    done, _ = fit(config, tmp_path)
    assert len(before_step) == done > 5, "both phases, several checkpoints and log lines"
    assert before_step[-1] == before_step[0] == len(programs), programs[before_step[0] :]
    # A new process compiles the initial state, the step and a cast or two.
    assert 1 <= before_step[0] <= 6, programs
    epoch = done // 4
    assert checkpoint_steps(tmp_path) == [2 * epoch, 3 * epoch, done], "the newest three of four"


def test_an_evaluation_compiles_nothing_that_an_earlier_one_did(whole_run, programs):
    config, workdir = whole_run
    plain = config_lib.to_plain(config)
    first = run_lib.evaluate(plain, str(workdir))
    seen = len(programs)
    assert run_lib.evaluate(plain, str(workdir))["auroc"] == first["auroc"]
    assert len(programs) - seen <= 0, programs[seen:]


@pytest.mark.parametrize("stop_at", [slow(1), 3, slow(5)])
def test_resume_gives_the_same_bits_as_an_uninterrupted_run(whole_run, tmp_path, monkeypatch, stop_at):
    config, workdir = whole_run
    with monkeypatch.context() as patch:
        run = loop.run
        stopping = {"should_stop": lambda step: step == stop_at}
        patch.setattr(loop, "run", lambda state, **options: run(state, **options | stopping))
        assert fit(config, tmp_path)[0] == stop_at
    fit(config, tmp_path)
    expected, state = final_state(config, workdir), final_state(config, tmp_path)
    assert int(state.step) == int(expected.step) > 5
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), state, expected)
    # The last line covers the same steps in both runs, and every step is in the file once.
    assert metrics_lines(tmp_path)[-1] == metrics_lines(workdir)[-1]
    steps = [line["step"] for line in metrics_lines(tmp_path)]
    assert steps == sorted(set(steps))


def test_streamed_training_equals_resident_training(whole_run, tmp_path):
    config = digits(**{"dataset.storage": "stream"})
    fit(config, tmp_path)
    expected, state = final_state(*whole_run), final_state(config, tmp_path)
    difference = jax.tree.map(lambda a, b: np.max(np.abs(np.asarray(a) - np.asarray(b))), state.params, expected.params)
    assert max(jax.tree.leaves(difference)) < 1e-6


def test_a_step_reuses_the_memory_of_its_input_state():
    specs = run_lib.from_config(config_lib.to_plain(digits()), num_devices=8)
    source = data_lib.open_set(specs.dataset).train
    mapped = mapping.Pmap()
    program = assembly.make_program(specs, num_classes=6, num_images=len(source), mapped=mapped)
    before = mapped.create(lambda: assembly.initial_state(specs, program))
    options = dict(storage="resident", seed=specs.seed, start_step=0)
    after, _ = train.make_step(program, specs.train, source, mapped, **options)(before)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))


@pytest.mark.parametrize("name", mapping.MAPPINGS)
def test_training_images_lie_on_every_device_as_rows_of_pixels(name):
    # In four dimensions, a TPU would copy all of them at every step (benchmarks/README.md). Filled up to whole batches,
    # they have one shape for all class splits of nearly the same size.
    specs = run_lib.from_config(config_lib.to_plain(digits()), num_devices=8)
    source = data_lib.open_set(specs.dataset).train
    program = assembly.make_program(specs, num_classes=6, num_images=len(source))
    start = program.steps_per_epoch - 1  # the last step of an epoch, then the first of the next one
    batches = train.resident_data(program, specs.train, source, mapping.MAPPINGS[name](), specs.seed, start)
    (images, labels, last), (same_images, same_labels, first) = next(batches), next(batches)
    kept = jax.tree.leaves(list(batches.gi_frame.f_locals.values()))
    assert not any(isinstance(each, np.ndarray) for each in kept), "the host keeps the images while training"
    assert same_images is images and same_labels is labels
    expected, expected_labels = data_lib.resident(source)
    missing, used = -len(source) % program.batch_size, program.steps_per_epoch * program.batch_size
    assert missing and used < len(source)
    pixels = np.pad(expected.reshape(len(source), -1), ((0, missing), (0, 0)))
    expected_labels = np.pad(expected_labels, (0, missing))
    copies = lambda array: [np.asarray(shard.data) for shard in array.addressable_shards]
    assert images.dtype == np.uint8 and len(copies(images)) == 8
    for copy, classes in zip(copies(images), copies(labels), strict=True):
        # `pmap` has an axis for the devices.
        assert copy.shape in (pixels.shape, (1, *pixels.shape))
        np.testing.assert_array_equal(copy.reshape(pixels.shape), pixels)
        np.testing.assert_array_equal(classes.reshape(-1), expected_labels)
    for epoch, order_N in enumerate((last, first)):
        for copy in copies(order_N):
            whole = order.epoch_order(specs.seed, epoch, size=len(source))
            np.testing.assert_array_equal(copy.reshape(-1), whole[:used])


def test_the_workdir_records_what_was_run(whole_run):
    config, workdir = whole_run
    assert json.loads((workdir / "config.json").read_text()) == config_lib.to_plain(config)
    environment = json.loads((workdir / "env.json").read_text())
    assert environment["packages"]["jax"] == jax.__version__
    assert len(environment["devices"]) == 8
    names = metrics_lines(workdir)[-1].keys()
    assert {"step", "loss", "simclr", "supcon", "mixed_simclr", "kept_share", "learning_rate"} <= names


def test_evaluation_works_from_a_checkpoint_alone(whole_run):
    _, workdir = whole_run
    config = json.loads((workdir / "config.json").read_text())
    results = run_lib.evaluate(config, str(workdir))
    arrays = results["arrays"]
    assert results["step"] == int(final_state(*whole_run).step)
    assert len(arrays["known_scores"]) == results["num_known"] == len(arrays["labels"])
    assert len(arrays["unknown_scores"]) == results["num_unknown"] > 0
    from sklearn.metrics import roc_auc_score

    truth = np.r_[np.ones(results["num_known"]), np.zeros(results["num_unknown"])]
    expected = roc_auc_score(truth, np.r_[arrays["known_scores"], arrays["unknown_scores"]])
    assert results["auroc"] == pytest.approx(expected, abs=1e-9)
    assert results["accuracy"] == pytest.approx(np.mean(arrays["predicted"] == arrays["labels"]))
    # Any batch size scores every image once, and gives the same scores.
    config["evaluate"]["batch_size"] = 17
    (workdir / "features.npz").unlink()
    again = run_lib.evaluate(config, str(workdir))
    np.testing.assert_allclose(again["arrays"]["known_scores"], arrays["known_scores"], rtol=1e-4)
    np.testing.assert_allclose(again["arrays"]["unknown_scores"], arrays["unknown_scores"], rtol=1e-4)


def test_another_config_in_the_same_workdir_is_refused(whole_run):
    config = digits(**{"mix.fill": "noise"})
    with pytest.raises(ValueError, match=r"holds a run with mix\.fill='partner', not 'noise'"):
        fit(config, whole_run[1])


def test_a_nonfinite_loss_names_the_step_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    run = loop.run

    def broken_after(state, *, fetch, **options):
        seen = itertools.count()
        spoil = lambda metrics: fetch(metrics) | ({"loss": np.float32("nan")} if next(seen) == 5 else {})
        return run(state, fetch=spoil, **options)

    monkeypatch.setattr(loop, "run", broken_after)
    with pytest.raises(ValueError, match=r"the loss of step 5 is nan; earlier checkpoints stay"):
        fit(digits(**{"train.checkpoint_every_epochs": 1}), tmp_path)
    assert checkpoint_steps(tmp_path) == [2, 4]


@pytest.mark.parametrize("number, raised", [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_during_the_last_step_ends_the_run_before_its_evaluation(number, raised, tmp_path, monkeypatch):
    def last_step(state, *, total_steps, **_):
        signal.raise_signal(number)
        return state, total_steps

    monkeypatch.setattr(loop, "run", last_step)
    monkeypatch.setattr(run_lib, "evaluate", lambda *_, **__: pytest.fail("an evaluation was started"))
    with pytest.raises(raised) as stopped:
        run_lib.run(digits(), str(tmp_path))
    assert stopped.value.args[0] == 143 or "rerun the command to resume" in stopped.value.args[0]


def test_parameters_that_explode_end_the_run(tmp_path):
    with pytest.raises(ValueError, match=r"the loss of step \d+ is (nan|inf)"):
        fit(digits(**{"optimizer.learning_rate": 1e30}), tmp_path)


def test_classifier_says_what_the_evaluation_scored(whole_run, tmp_path):
    _, workdir = whole_run
    arrays = run_lib.evaluate(json.loads((workdir / "config.json").read_text()), str(workdir))["arrays"]
    classifier = predict.OpenSetClassifier.load(str(workdir), keep=0.8)
    data = data_lib.open_set(config_lib.from_config(config_lib.read(str(workdir)), num_devices=1).dataset)
    images = data_lib.read_all(data.test_known)
    prediction = classifier.predict(images)
    np.testing.assert_allclose(prediction.score_N, arrays["known_scores"], rtol=1e-4)
    accepted = arrays["known_scores"] >= classifier.threshold
    assert 0.1 < accepted.mean() < 1
    np.testing.assert_array_equal(prediction.label_N, np.where(accepted, arrays["predicted"], -1))
    assert prediction.name_N[0] == (*classifier.class_names, "unknown")[prediction.label_N[0]]
    # The threshold keeps four fifths of the validation images, up to rounding.
    kept = classifier.predict(data_lib.read_all(data.validation)).label_N >= 0
    assert abs(kept.mean() - 0.8) < 0.02
    # A file of another size and mode is converted as in training.
    file = tmp_path / "digit.png"
    Image.fromarray(images[0].squeeze(-1)).convert("RGB").save(file)
    from_file = classifier.predict([file])
    np.testing.assert_allclose(from_file.score_N, prediction.score_N[:1], rtol=1e-4)
    (tmp_path / "broken.png").write_bytes(file.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"broken\.png cannot be read as an image"):
        classifier.predict([tmp_path / "broken.png"])
    # Half of its pixels, then a chunk without a name, for which Pillow raises a SyntaxError.
    broken, content = tmp_path / "broken.png", file.read_bytes()
    start = content.index(b"IDAT")
    half = content[start + 4 : start + 4 + int.from_bytes(content[start - 4 : start], "big") // 2]
    chunk = struct.pack(">I", len(half)) + b"IDAT" + half + struct.pack(">I", zlib.crc32(b"IDAT" + half))
    broken.write_bytes(content[: start - 4] + chunk + struct.pack(">I", 9) + bytes(20))
    with pytest.raises(ValueError, match="broken.png cannot be read as an image"):
        classifier.predict([broken])
    with pytest.raises(ValueError, match=r"gone\.png cannot be read as an image: No such file or directory$"):
        classifier.predict([tmp_path / "gone.png"])
    as_float = classifier.predict(images[:1].astype(np.float32) / 255)
    np.testing.assert_allclose(as_float.score_N, prediction.score_N[:1], rtol=1e-4)
    with pytest.raises(ValueError, match=r"images must be in \[0, 1\], got values from 0 to "):
        classifier.predict([images[0].astype(np.float32)])
    with pytest.raises(ValueError, match=r"images must be float in \[0, 1\] or uint8, .*, got int32 \(8, 8, 1\)"):
        classifier.predict([images[0].astype(np.int32)])
    with pytest.raises(ValueError, match="threshold must be a number, got nan"):
        predict.OpenSetClassifier.load(str(workdir), threshold=float("nan"))


def test_figure_shows_the_mix(whole_run, tmp_path):
    import matplotlib.image

    out = tmp_path / "grid.png"
    figure.grid(str(whole_run[1]), str(out), rows=3)
    picture = matplotlib.image.imread(out)
    assert picture.shape[0] > 400 and picture.std() > 0.1
    figure.grid(str(whole_run[1]), str(out), images=[2])
    third, width = matplotlib.image.imread(out), picture.shape[1]
    # The last row of the picture and the only one of the other: the same five panels, at the same scale.
    assert third.shape[0] < picture.shape[0] / 2 and abs(third.shape[1] - width) <= 1
    with pytest.raises(ValueError, match=r"--images must be positions from 0 to \d+, got \[2, 1000\]"):
        figure.grid(str(whole_run[1]), str(out), images=[2, 1000])
    for wrong in (str(tmp_path), str(tmp_path / "grid.jpg"), str(tmp_path / "nowhere" / "grid.png"), "grid"):
        with pytest.raises(ValueError, match=rf"--out must be a file in an existing folder, .* got '{wrong}'"):
            figure.grid(str(whole_run[1]), wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]


def run_command(*arguments):
    return commands.run("gradmix_jax.main", *arguments)


DIGITS = "--config=configs/digits_osr.py"


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ([DIGITS], "--workdir is required"),
        (["--config=configs/nothing.py", "--workdir=W"], "No such file or directory: configs/nothing.py."),
        (
            [DIGITS, "--workdir=W", "--config.mix.fil=noise"],
            "unknown config key mix.fil (did you mean 'fill'?).",
        ),
        (
            [DIGITS, "--workdir=W", "--config.mix.method=mixup", "--config.seed.y=2"],
            "unknown config key seed.y.",
        ),
        ([DIGITS, "--workdir=W", "--config.mix.fill.x=2"], "unknown config key mix.fill.x."),
        (
            [DIGITS, "--workdir=W", "--config.phases[1].epochs=2"],
            "no such phase: phases[1].epochs.",
        ),
        (
            [DIGITS, "--workdir=W", "--config.seed=2147483648"],
            "seed must be an integer from -2147483648 to 2147483647, got 2147483648.",
        ),
        (
            [DIGITS, "--workdir=W", "mode=eval"],
            "unexpected argument 'mode=eval'; did you mean --mode=eval?",
        ),
        ([DIGITS, "--workdir="], "--workdir must be a directory, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER, got ''."),
        (
            [DIGITS, "--workdir=ftp://host/run"],
            "--workdir must be a directory, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER, got 'ftp://host/run'.",
        ),
        (
            [DIGITS, "--workdir=README.md"],
            "--workdir must be a directory, got the file 'README.md'.",
        ),
        (
            [DIGITS, "--workdir=W", "--config.mix.fill=nois"],
            "got 'nois'; did you mean 'noise'?",
        ),
        ([DIGITS, "--workdir=W", "--config.train.batch_size=a"], "batch_size"),
        (["--config=configs/digits_osr.py:layers", "--workdir=W"], "the recipe must be one of input, layer"),
        ([DIGITS, "--workdir=W", "--mode=eval"], "no checkpoint in"),
        ([DIGITS, "--workdir=W", "--mode=test"], "train_and_eval"),
    ],
)
def test_a_mistake_gives_one_sentence_and_a_status(arguments, sentence, tmp_path):
    arguments = [word.replace("=W", f"={tmp_path / 'run'}") for word in arguments]
    result = run_command(*arguments)
    assert result.returncode not in (0, -signal.SIGABRT)
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2, result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "mistake, said", [("{}['mix']", "KeyError: mix"), ("[][0]", "IndexError: list index out of range")]
)
def test_a_mistake_in_a_config_file_names_its_line(tmp_path, mistake, said):
    own = tmp_path / "own.py"
    own.write_text(f"def get_config():\n    return {mistake}\n")
    result = run_command(f"--config={own}", f"--workdir={tmp_path / 'run'}", "--config.seed=1")
    assert (result.returncode, result.stderr) == (2, f"error: {own}, line 2: {said}.\n")


def test_system_errors_give_one_sentence():
    code = "from gradmix_jax import cli; cli.run(lambda argv: open('/nowhere/grid.png', 'w'))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (result.returncode, result.stderr) == (2, "error: No such file or directory: /nowhere/grid.png.\n")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError("Unable to allocate 9. GiB"), 2),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\nmore"), 2),
        (jax.errors.JaxRuntimeError("INTERNAL: a bug"), None),
    ],
)
def test_running_out_of_memory_gives_one_sentence(error, status, monkeypatch, capsys):
    monkeypatch.setattr(cli.app, "run", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(SystemExit if status else type(error)) as raised:
        cli.run(lambda argv: None)
    if status:
        said = capsys.readouterr().err
        assert raised.value.code == status and said.count("\n") == 1
        assert said.startswith("error: out of memory (") and "lower train.batch_size" in said


@pytest.mark.parametrize("command", ["main", "score"])
def test_a_missing_platform_gives_one_line(command, tmp_path):
    np.savez(tmp_path / "logits.npz", known_logits=np.eye(4), unknown_logits=np.eye(4))
    words = {"main": [DIGITS, f"--workdir={tmp_path / 'run'}"], "score": [str(tmp_path / "logits.npz")]}[command]
    environment = os.environ | {"JAX_PLATFORMS": "cuda"}
    command = [sys.executable, "-m", f"gradmix_jax.{command}", *words]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, env=environment)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1] == (
        "error: JAX finds no device of the platform asked for (cuda); check JAX_PLATFORMS."
    )
    assert "Traceback" not in result.stderr and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_results_do_not_depend_on_environment_variables(tmp_path):
    """A terminal that cannot show arrows is no problem either."""
    switches = {
        "JAX_DEFAULT_PRNG_IMPL": "rbg",
        "JAX_DISABLE_JIT": "1",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_TRANSFER_GUARD": "disallow",
        "JAX_ENABLE_X64": "1",
        "PYTHONIOENCODING": "ascii",
        "LC_ALL": "C",
    }
    found = []
    for name, extra in (("plain", {}), ("switched", switches)):
        workdir = tmp_path / name
        command = [sys.executable, "-m", "gradmix_jax.main", DIGITS, f"--workdir={workdir}", "--config.model.width=4"]
        command += ["--config.phases[0].epochs=1", "--config.train.log_every_steps=1"]
        result = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=os.environ | extra, errors="replace"
        )
        assert result.returncode == 0, result.stderr
        found.append((metrics_lines(workdir), json.loads((workdir / "results.json").read_text())["auroc"]))
    assert found[0] == found[1]


def test_a_missing_package_is_recorded_as_none(monkeypatch):
    monkeypatch.setattr(workdir_lib, "PACKAGES", ("jax", "no-such-package"))
    assert workdir_lib.environment()["packages"] == {"jax": jax.__version__, "no-such-package": None}


@pytest.mark.parametrize(
    ("told", "expected"), [("12ab", ("12ab", False)), ("12ab+", ("12ab", True)), ("", ("", False))]
)
def test_code_without_git_is_told_its_commit(told, expected, monkeypatch):
    monkeypatch.setenv("GRADMIX_JAX_COMMIT", told)
    monkeypatch.setattr(workdir_lib.subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError("git")))
    assert workdir_lib.commit() == expected


def test_a_run_continues_after_its_data_has_moved(whole_run):
    config, workdir = whole_run
    moved = config_lib.to_plain(config)
    moved["dataset"] |= {"data_dir": "/mnt/tfds", "download": not moved["dataset"]["download"]}
    run_lib.check_same_run(moved, str(workdir))
    moved["dataset"]["trial"] = 3
    with pytest.raises(ValueError, match=r"holds a run with dataset\.trial"):
        run_lib.check_same_run(moved, str(workdir))


def test_a_run_that_saved_nothing_does_not_occupy_the_workdir(whole_run, tmp_path):
    _, workdir = whole_run
    shutil.copy(workdir / "config.json", tmp_path)
    other = config_lib.to_plain(digits(**{"augment.flip_prob": 0.25}))
    (tmp_path / "checkpoints").mkdir()
    run_lib.check_same_run(other, str(tmp_path))
    (tmp_path / "checkpoints" / "2").mkdir()
    with pytest.raises(ValueError, match=r"holds a run with augment\.flip_prob=0\.5, not 0\.25"):
        run_lib.check_same_run(other, str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"holds a run without its config\.json; restore it"):
        run_lib.check_same_run(other, str(tmp_path))


def test_the_command_trains_evaluates_and_saves_when_it_is_told_to_stop(tmp_path):
    workdir = tmp_path / "run"
    arguments = [
        "--config=configs/digits_osr.py",
        f"--workdir={workdir}",
        "--config.dataset.image_size=8",
        "--config.augment.jitter_prob=0.0",
        "--config.model.width=4",
        "--config.train.log_every_steps=1",
        "--config.phases[0].epochs=2000",
    ]
    metrics, steps = workdir / "metrics.jsonl", []
    for number in (signal.SIGINT, signal.SIGTERM):
        command = [sys.executable, "-m", "gradmix_jax.main", *arguments, "--mode=train"]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        deadline = time.time() + 200
        lines = lambda: len(metrics.read_text().splitlines()) if metrics.exists() else 0
        while lines() <= sum(steps):
            assert process.poll() is None, process.stderr.read()
            assert time.time() < deadline
            time.sleep(0.2)
        process.send_signal(number)
        _, messages = process.communicate(timeout=60)
        assert process.returncode == 128 + number, messages
        assert "Traceback" not in messages
        steps.append(
            int(re.search(r"stopped at step (\d+) of \d+ and saved; rerun the command to resume", messages)[1])
        )
    assert 0 < steps[0] < steps[1], "the second run continues where the first one stopped"
    result = run_command(*arguments, "--mode=eval")
    assert result.returncode == 0, result.stderr
    results = json.loads((workdir / "results.json").read_text())
    assert 0 < results["auroc"] <= 1 and results["step"] > 0
    assert "AUROC" in result.stdout and str(workdir) in result.stdout
    scores = np.load(workdir / "scores.npz")
    assert len(scores["known_scores"]) == results["num_known"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"evaluate.near": ("folder:/nowhere",)}, "dataset 'folder:/nowhere' does not exist"),
        ({"evaluate.probes": ("idx:/nowhere",)}, "idx:/nowhere"),
        ({"evaluate.corruptions": "folder:/nowhere"}, "/nowhere has neither gaussian_noise.npy"),
        ({"evaluate.corruptions": "regenerated", "evaluate.corruption_reference": "/nowhere"}, "/nowhere"),
    ],
)
def test_missing_evaluation_data_is_found_before_training(changes, sentence, tmp_path):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        run_lib.run(digits(**changes), str(tmp_path / "run"), "train_and_eval")
    assert not (tmp_path / "run").exists()


def test_recipes_share_their_keys_with_the_default():
    default = config_lib.default_config()
    for recipe in config_lib.RECIPES.values():
        for section, keys in recipe.items():
            assert set(keys) <= set(default[section].keys())


def test_evaluation_belongs_to_the_config_that_was_trained(whole_run, tmp_path):
    config, workdir = whole_run
    shutil.copytree(workdir, tmp_path / "copy")
    other = digits(**{"augment.flip_prob": 0.25})
    with pytest.raises(ValueError, match=r"holds a run with augment\.flip_prob=0\.5, not 0\.25"):
        run_lib.run(other, str(tmp_path / "copy"), "eval")
    assert not (tmp_path / "copy" / "results.json").exists()
    judged = digits(**{"evaluate.k": 5})
    judged.name = "renamed"
    run_lib.run(judged, str(tmp_path / "copy"), "eval")
    kept = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert kept["name"] == "renamed" and kept["evaluate"]["k"] == 5
    assert "5 largest" in json.loads((tmp_path / "copy" / "results.json").read_text())["score"]
