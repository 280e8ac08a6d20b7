"""Bad input to every command gives one line that says what is wrong and a nonzero status, and writes nothing."""

import json
import os
import pathlib
import signal

import commands
import numpy as np
import pytest
from evaluated_runs import write_run
from PIL import Image

CONFIG = "--config=digits_osr"
RUN = "--workdir={new}"


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """A folder of broken files and folders."""
    root = tmp_path_factory.mktemp("bad")
    for name, text in CONFIG_FILES.items():
        (root / f"{name}.py").write_text(text)
    _write_data(root)
    _write_runs(root)
    _write_outputs(root)
    return root


CONFIG_FILES = {
    "syntax": "def get_config(:\n",
    "name_error": "\ndef get_config():\n    return foo\n",
    "no_function": "x = 1\n",
    "five": "def get_config():\n    return 5\n",
    "braces": "def get_config():\n    return {}\n",
    "exits": "import sys\nsys.exit(0)\n",
    "empty_config": "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict()\n",
    "more_keys": "from gradmix_jax import config\ndef get_config():\n"
    "    c = config.default_config()\n    c.mix.fil = 'noise'\n    return c\n",
    "section": "from gradmix_jax import config\ndef get_config():\n"
    "    c = config.default_config()\n    with c.ignore_type():\n        c.mix = 5\n    return c\n",
}


def _image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16), np.uint8)).save(path)


def _write_data(root):
    for part in ("train", "test"):
        for name in ("cat", "dog", "cow"):
            _image(root / "tree" / part / name / "0.png")
    _image(root / "no_test" / "train" / "cat" / "0.png")
    _image(root / "image.png")
    (root / "no_images" / "cat").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "link").symlink_to("nowhere")
    (root / "broken.png").write_bytes(b"\x89PNG nothing")
    (root / "text.txt").write_text("hello\n")
    (root / "columns.csv").write_text("file,class\na.png,cat\n")
    (root / "no_rows.csv").write_text("path,label\n")
    (root / "binary.csv").write_bytes(bytes(range(256)))
    (root / "idx").mkdir()
    for part in ("train", "t10k"):
        (root / "idx" / f"{part}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + bytes(5))
        (root / "idx" / f"{part}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + bytes(4))


def _write_runs(root):
    write_run(root / "good")
    (root / "good" / "features.npz").unlink()
    for name, file, content in (
        ("results_cut", "results.json", b'{"auroc": 0.'),
        ("results_infinite", "results.json", b'{"auroc": Infinity}'),
        ("results_newer", "results.json", b'{"version": 99}'),
        ("config_list", "config.json", b"[]"),
        ("config_section", "config.json", None),
        ("scores_garbage", "scores.npz", b"x"),
        ("scores_pickled", "scores.npz", b"\x80\x04]\x94."),
    ):
        write_run(root / name)
        if content is None:
            content = json.dumps(json.loads((root / name / file).read_text()) | {"mix": 5}).encode()
        (root / name / file).write_bytes(content)
    write_run(root / "other_seed", results={"seed": 5})
    write_run(root / "no_results")
    (root / "no_results" / "results.json").unlink()
    write_run(root / "no_config")
    (root / "no_config" / "config.json").unlink()
    (root / "no_config" / "checkpoints" / "3").mkdir(parents=True)
    for name in ("export_cut", "export_newer", "export_bare"):
        (root / name).mkdir()
        (root / name / "model.stablehlo").write_bytes(b"x")
    (root / "export_cut" / "metadata.json").write_text("{")
    (root / "export_newer" / "metadata.json").write_text('{"format": "gradmix_jax classifier", "version": 99}')
    (root / "weights.pth").write_bytes(b"x")
    (root / "weights.safetensors").write_bytes(b"x")


def _write_outputs(root):
    known, unknown = (np.random.default_rng(seed).normal(size=(8, 3)) for seed in (0, 1))
    for name, arrays in {
        "logits": {"known_logits": known, "unknown_logits": unknown},
        "no_unknown": {"known_logits": known},
        "nan": {"known_logits": known * np.nan, "unknown_logits": unknown},
        "other_name": {"known_logits": known, "unknown_logits": unknown, "validation": known},
        "widths": {"known_logits": known, "unknown_logits": unknown[:, :2]},
        "rows": {"known_logits": known, "unknown_logits": unknown, "known_labels": np.zeros(3, int)},
        "labels": {"known_logits": known, "unknown_logits": unknown, "known_labels": np.full(8, 9)},
        "negative": {"known_logits": known, "unknown_logits": unknown, "known_labels": np.full(8, -1)},
        "floats": {"known_logits": known, "unknown_logits": unknown, "known_labels": np.zeros(8)},
        "objects": {"known_logits": np.array([{}]), "unknown_logits": unknown},
        "no_columns": {"known_logits": known[:, :0], "unknown_logits": unknown[:, :0]},
        "empty_part": {"known_logits": known[:0], "unknown_logits": unknown},
    }.items():
        np.savez(root / f"{name}.npz", **arrays)
    (root / "garbage.npz").write_bytes(b"PK nothing")
    (root / "arrays").mkdir()
    (root / "arrays" / "known_logits.npy").write_bytes(b"x")


def key(assignment, said, *more):
    """A config key followed by bad data, so the command also ends if the value happens to be valid."""
    return "main", [CONFIG, RUN, "--config.dataset.name=folder:/nowhere", f"--config.{assignment}", *more], said


def late(assignment, said):
    """A config key that is checked only after the data is read."""
    return "main", [CONFIG, RUN, f"--config.{assignment}"], said


def data(name, said, *more):
    options = ("--config.dataset.benchmark=all", "--config.dataset.unknown_name=noise:uniform")
    return "main", [CONFIG, RUN, f"--config.dataset.name={name}", *options, *more], said


# Kinds of datasets that are named by a path.
PATHS = ("folder", "csv", "idx", "imglist", "hf", "cub", "aircraft", "cars", "imagenet")
CASES = []
# fmt: off
CASES += [  # experiment files
    ("main", ["--config={bad}/syntax.py", RUN], "{bad}/syntax.py, line 1: SyntaxError: "),
    ("main", ["--config={bad}/name_error.py", RUN], "{bad}/name_error.py, line 3: NameError: name 'foo' is"),
    ("main", ["--config={bad}/no_function.py", RUN], "{bad}/no_function.py has no function get_config;"),
    ("main", ["--config={bad}/five.py", RUN], "get_config of {bad}/five.py must return a config"),
    ("main", ["--config={bad}/braces.py", RUN], "get_config of {bad}/braces.py must return a config"),
    ("main", ["--config={bad}/exits.py", RUN], "{bad}/exits.py, line 2: SystemExit: it ends the command with 0"),
    ("main", ["--config={bad}/empty_config.py", RUN], "missing config key "),
    ("main", ["--config={bad}/more_keys.py", RUN], "unknown config key mix.fil; did you mean mix.fill?"),
    ("main", ["--config={bad}/section.py", RUN], "mix must be a section with keys, got 5."),
    ("main", ["--config={bad}/gone.py", RUN], "No such file or directory: {bad}/gone.py."),
    ("main", ["--config={bad}", RUN], "--config must be a file, got the directory "),
    ("main", ["--config=digits_ors", RUN], "did you mean 'digits_osr'?"),
    ("main", ["--config=digits_osr:layers", RUN], "the recipe must be one of "),
    ("show_config", ["--config={bad}/syntax.py"], "{bad}/syntax.py, line 1: SyntaxError: "),
    ("protocol", ["--config={bad}/five.py", RUN], "get_config of {bad}/five.py must return a config"),
]
CASES += [  # flags
    ("main", [RUN], "--config is required"),
    ("main", [CONFIG], "--workdir is required"),
    ("main", [CONFIG, RUN, "--mod=eval"], "Unknown command line flag 'mod'"),
    ("main", [CONFIG, RUN, "--mode=test"], "value should be one of <train|eval|train_and_eval>"),
    ("main", [CONFIG, RUN, "eval"], "unexpected argument 'eval'"),
    ("main", [CONFIG, "--workdir="], "--workdir must be a directory"),
    ("main", [CONFIG, "--workdir=ftp://a/b"], "--workdir must be a directory"),
    ("main", [CONFIG, "--workdir=gs://a"], "--workdir must be gs://BUCKET/FOLDER, got 'gs://a'."),
    ("protocol", [CONFIG, "--workdir=ftp://a/b"], "--workdir must be a directory"),
    ("report", ["ftp://a/b"], "the workdir must be a directory"),
    ("predict", ["ftp://a/b", "x.png"], "the model must be a directory"),
    ("export", ["runs/x", "--out=gs://a/b"], "--out must be a directory on this machine"),
    ("main", [CONFIG, "--workdir={bad}/text.txt"], "--workdir must be a directory, got the file"),
    ("main", [CONFIG, "--workdir={new}/a[0]"], "--workdir must not have [ ] in its absolute path"),
    ("main", [CONFIG, "--workdir={bad}/text.txt/run"], "'{bad}/text.txt/run', which is below the file '{bad}/text.tx"),
    ("main", [CONFIG, "--workdir={bad}/link"], "--workdir must be a directory, got the dangling link '{bad}/link'."),
    ("protocol", [CONFIG, "--workdir={bad}/link/a"], "which is below the dangling link '{bad}/link'."),
    ("protocol", [CONFIG, RUN, "--trials=\u00b2"], "--trials must be numbers separated by commas, got '\u00b2'."),
    ("protocol", [CONFIG, RUN, "--print_commands=maybe"], "maybe: Non-boolean argument to boolean flag"),
    ("protocol", [CONFIG, RUN, "--trials=a"], "--trials must be numbers separated by commas, got 'a'."),
    ("protocol", [CONFIG, RUN, "--trials=0,0"], "--trials must name every number once, got '0,0'."),
    ("protocol", [CONFIG, RUN, "--seeds="], "--seeds must be numbers separated by commas"),
    ("protocol", [CONFIG, RUN, "--trials=7"], "must be an integer from 0 to 4, got 7."),
    ("protocol", [CONFIG, "--workdir={bad}/text.txt"], "--workdir must be a directory, got the file"),
    ("sweep", ["map", CONFIG, "--workdir={bad}/text.txt"], "--workdir must be a directory, got the file"),
    ("main", [CONFIG, RUN, "--coordinator=a:99999", "--num_processes=2", "--process_id=0"], "--coordinator must be "),
    ("main", [CONFIG, RUN, "--num_processes=2"], "--num_processes needs --coordinator, HOST:PORT of process 0."),
    ("main", [CONFIG, RUN, "--process_id=1"], "--multihost finds no other processes"),
    ("sweep", [CONFIG, RUN], "name one sweep, "),
    ("sweep", [CONFIG, RUN, "everything"], "name one sweep, "),
    ("sweep", ["overview", "--config=digits_osr:layer", RUN], "every row has its own recipe"),
]
CASES += [  # config keys
    key("nothing=1", "unknown config key nothing"),
    key("mix.fil=noise", "unknown config key mix.fil (did you mean 'fill'?)."),
    key("seed.y=1", "unknown config key seed.y."),
    key("phases[3].epochs=1", "no such phase: phases[3].epochs."),
    key("phases[0].epochs=-1", "epochs"),
    key("phases[0].supcom=1.0", "unknown config key phases[0].supcom"),
    key("seed=a", "seed"),
    key("seed=99999999999", "seed must be an integer from -2147483648"),
    key("mix.method=gradmixx", "did you mean 'gradmix'?"),
    key("mix.mask=circle", "mix.mask must be one of "),
    key("mix.fill=nois", "did you mean 'noise'?"),
    key("mix.keep_range=(0.9,0.5)", "mix.keep_range"),
    key("mix.keep_range=(0.5,)", "mix.keep_range must have 2 elements"),
    key("mix.keep_range=(0.5,2)", "mix.keep_range must be a number from 0 to 1, got 2."),
    key("mix.keep_range=a", "mix.keep_range"),
    key("mix.keep_range=((0.5,1)", "mix.keep_range"),
    key("mix.group_size=3", "mix.group_size"),
    key("mix.options.mixup.alpha=-1.0", "mix.options.mixup.alpha"),
    key("attribution.method=cam", "attribution.method must be one of "),
    key("attribution.stages=('stage9',)", "attribution.stages", "--config.attribution.method=layer"),
    key("normalization.mean=(1e999,)", "each element of normalization.mean must be a number, got inf."),
    key("normalization.std=(0.0,)", "each element of normalization.std must be a positive number, got 0.0."),
    key("normalization.std=(1e999,)", "each element of normalization.std must be a positive number, got inf."),
    key("normalization.std=(0.1,0.2)", "normalization.std must have 1 elements, one per channel"),
    key("augment.policy=autoaugment", "augment.policy must be one of "),
    key("augment.flip_prob=2.0", "augment.flip_prob must be a number from 0 to 1, got 2.0."),
    key("augment.flip_prob=nan", "augment.flip_prob must be a number from 0 to 1, got nan."),
    key("model.name=resnet", "model.name must be one of "),
    key("model.width=-1", "model.width must be "),
    late("model.width=1000000", "the state of the model, "),
    late("dataset.image_size=1000000", "the training images, "),
    late("model.init_from=/nowhere/a.pth", "'/nowhere/a.pth' does not exist"),
    late("model.init_from={bad}/weights.pth", "{bad}/weights.pth cannot be read as a PyTorch checkpoint"),
    late("model.init_from={bad}/weights.safetensors", "{bad}/weights.safetensors "),
    late("model.init_from={bad}/good", "no checkpoint in {bad}/good"),
    key("objective.temperature=0.0", "objective.temperature must be a positive number, got 0.0."),
    key("objective.ssl=simclrr", "did you mean 'simclr'?"),
    key("optimizer.name=adamm", "optimizer.name must be one of "),
    key("optimizer.learning_rate=-1.0", "optimizer.learning_rate must be a positive number, got -1.0."),
    key("optimizer.learning_rate=inf", "optimizer.learning_rate must be a positive number, got inf."),
    key("train.batch_size=-1", "train.batch_size must be "),
    key("train.batch_size=7", "train.batch_size must be a multiple of the 8 devices, got 7."),
    key("train.batch_size=1.5", "train.batch_size"),
    key("train.num_views=0", "train.num_views"),
    key("train.mapping=mpi", "train.mapping must be one of "),
    key("dataset.storage=tape", "dataset.storage must be one of "),
    key("dataset.trial=-1", "dataset.trial"),
    key("dataset.image_size=-3", "dataset.image_size"),
    key("dataset.channels=2", "dataset.channels"),
    key("dataset.validation_fraction=1.5", "dataset.validation_fraction must be"),
    key("evaluate.score=magic", "evaluate.score (of evaluate.feature 'features') must be one of "),
    key("evaluate.k=0", "evaluate.k must be a positive integer, got 0."),
    key("evaluate.stages=('top',)", "evaluate.stages"),
    late("evaluate.near=('digits',)", "evaluate.near must be other data"),
    late("evaluate.near=('folder:/nowhere',)", "dataset 'folder:/nowhere' does not exist"),
    key("evaluate.corruptions=fog", "evaluate.corruptions"),
    late("evaluate.corruptions=folder:/nowhere", "/nowhere has neither gaussian_noise.npy"),
]
CASES += [  # data
    data("cifar11", "dataset.name must be one of "),
    data("", "dataset.name must be one of "),
    data("folder:/nowhere", "dataset 'folder:/nowhere' does not exist"),
    data("folder:{bad}/text.txt", "dataset 'folder:{bad}/text.txt' "),
    data("folder:{bad}/empty", "{bad}/empty"),
    data("folder:{bad}/no_images", "{bad}/no_images has no images"),
    data("folder:{bad}/no_test", "{bad}/no_test has no test images"),
    data("csv:/nowhere", "dataset 'csv:/nowhere' does not exist"),
    data("csv:{bad}/columns.csv", "must have the columns path and label, got file, class."),
    data("csv:{bad}/no_rows.csv", "{bad}/no_rows.csv has no rows"),
    data("csv:{bad}/binary.csv", "{bad}/binary.csv must be a CSV file in UTF-8"),
    data("idx:/nowhere", "dataset 'idx:/nowhere' does not exist"),
    data("idx:{bad}/idx", "{bad}/idx/t10k-images-idx3-ubyte"),
    data("mnist", "dataset 'mnist' is not prepared in {bad}/empty", "--config.dataset.data_dir={bad}/empty"),
    data("folder:{bad}/tree", "did you mean 'cat'?", "--config.dataset.benchmark=named", "--config.dataset.known=cart"),
    data("noise:uniform", "dataset.name must be one of "),
]
CASES += [  # checkpoints and workdirs
    ("main", [CONFIG, RUN, "--mode=eval"], "no checkpoint in {new}"),
    ("main", [CONFIG, "--workdir={bad}/no_config"], "{bad}/no_config holds a run without its config.json"),
    ("main", [CONFIG, "--workdir={bad}/good", "--mode=eval"], "{bad}/good holds a run with "),
    ("main", [CONFIG, RUN, "--mode=eval", "--config.model.init_from={bad}/weights.pth"], "{bad}/weights.pth cannot be"),
    ("figure", ["{bad}/gone"], "no config.json in {bad}/gone"),
    ("figure", ["{bad}/good", "--out={new}.jpg"], "--out must be a file in an existing folder"),
    ("figure", ["{bad}/good", "--out={new}.png"], "no checkpoint in {bad}/good"),
    ("figure", ["{bad}/good", "--out={new}.png", "--rows=0"], "rows"),
    ("figure", ["{bad}/good", "--out={new}.png", "--images=a"], "--images must be numbers separated by commas"),
    ("figure", ["{bad}/config_section", "--out={new}.png"], "config.json is damaged: mix must be an object, got 5."),
    ("figure", [], "figure takes one workdir of a run, got 0."),
    ("export", ["{bad}/good", "--out={bad}/tree"], "--out must be a new or empty directory"),
    ("export", ["{bad}/good"], "--out is required"),
    ("export", ["{bad}/good", "--out={new}"], "no checkpoint in {bad}/good"),
    ("export", ["{bad}/gone", "--out={new}"], "no config.json in {bad}/gone"),
    ("export", ["{bad}/config_list", "--out={new}"], "config.json is damaged: expected an object, found a list."),
    ("export", ["{bad}/good", "--out={new}", "--layout=onnx"], "layout"),
    ("export", ["--out={new}"], "export takes one workdir of a run, got 0 arguments."),
]
CASES += [  # reports
    ("report", [], "report got no directories"),
    ("report", ["{bad}/gone"], "no config.json in {bad}/gone"),
    ("report", ["{bad}/no_results"], "no results.json in {bad}/no_results"),
    ("report", ["{bad}/results_cut"], "{bad}/results_cut/results.json is damaged: "),
    ("report", ["{bad}/results_infinite"], "results.json is damaged: auroc must be a finite number"),
    ("report", ["{bad}/results_newer"], "results.json was written by a newer gradmix_jax (version 99 of the file"),
    ("report", ["{bad}/config_list"], "{bad}/config_list/config.json is damaged: expected an object, found a list."),
    ("report", ["{bad}/config_section"], "{bad}/config_section/config.json is damaged: mix must be an object, got 5."),
    ("report", ["{bad}/scores_garbage", "--out={new}"], "{bad}/scores_garbage/scores.npz is damaged: File is"),
    ("report", ["{bad}/scores_pickled", "--out={new}"], "{bad}/scores_pickled/scores.npz is damaged: File is"),
    ("report", ["{bad}/good", "{bad}/good"], "have the same trial and seed; give each run once."),
    ("report", ["{bad}/good", "--out={bad}/text.txt"], "--out must be a directory, got the file"),
    ("report", ["{bad}/good", "--out={bad}/link/a"], "which is below the dangling link '{bad}/link'."),
    ("report", ["{bad}/other_seed"], "results.json is of seed 5, and config.json of seed 0; restore the file"),
]
CASES += [  # comparisons and datasets
    ("compare", ["{bad}/gone"], "{bad}/gone holds no evaluated run"),
    ("compare", ["{bad}/results_cut"], "{bad}/results_cut/results.json is damaged: "),
    ("compare", ["{bad}/scores_garbage"], "{bad}/scores_garbage/scores.npz is damaged: File is"),
    ("data", ["{bad}/gone"], "{bad}/gone"),
    ("data", ["{bad}/no_images"], "{bad}/no_images"),
    ("data", ["folder:"], "got 'folder:'; did you mean 'folder:PATH'?"),
    *(("data", [f"{kind}:~nobody_here/x"], "~nobody_here") for kind in PATHS),
    ("data", ["{bad}/tree", "--out={bad}/tree"], "--out must be a file in an existing folder, got '{bad}/tree'."),
    ("data", ["{bad}/tree", "--out={new}/x.png"], "--out must be a file in an existing folder, got '{new}/x.png'."),
]
CASES += [  # predictions
    ("predict", [], "predict takes the workdir of a run or an export"),
    ("predict", ["{bad}/gone", "{bad}/image.png"], "no config.json in {bad}/gone"),
    ("predict", ["{bad}/good", "{bad}/empty"], "{bad}/empty has no image"),
    ("predict", ["{bad}/good", "{bad}/image.png", "--explain={bad}/text.txt"], "--explain must be a directory"),
    ("predict", ["{bad}/good", "-"], "no image to classify"),
    ("predict", ["{bad}/export_bare", "{bad}/image.png"], "cannot be read as an export: it has no metadata.json"),
    ("predict", ["{bad}/export_cut", "{bad}/image.png"], "{bad}/export_cut/metadata.json is damaged: "),
    ("predict", ["{bad}/export_newer", "{bad}/image.png"], "was written by a newer gradmix_jax (version 99)"),
    ("predict", ["{bad}/config_list", "{bad}/image.png"], "config.json is damaged: expected an object, found a list."),
    ("predict", ["{bad}/good", "{bad}/image.png", "--json", "--csv"], "--json and --csv exclude each other"),
    ("predict", ["{bad}/good", "{bad}/image.png", "--keep=2"], "keep"),
    ("predict", ["{bad}/good", "{bad}/image.png", "--keep=0.5", "--threshold=1"], "exclude each other"),
    ("predict", ["{bad}/good", "{bad}/image.png", "--threshold=nan"], "threshold must be a number, got nan."),
    ("predict", ["{bad}/good", "{bad}/image.png", "--top=0"], "top"),
]
CASES += [  # stored outputs
    ("score", [], "score needs one file or more"),
    ("score", ["{bad}/logits.npz", "--scores="], "--scores must be names separated by commas, got ''."),
    ("score", ["{bad}/gone.npz"], "{bad}/gone.npz does not exist."),
    ("score", ["{bad}/text.txt"], "{bad}/text.txt cannot be read: give a .npz"),
    ("score", ["{bad}/garbage.npz"], "{bad}/garbage.npz is damaged: File is not a zip file."),
    ("score", ["{bad}/objects.npz"], "{bad}/objects.npz is damaged: known_logits holds Python objects"),
    ("score", ["{bad}/weights.safetensors"], "{bad}/weights.safetensors "),
    ("score", ["{bad}/empty"], "it is a folder without .npy files."),
    ("score", ["{bad}/arrays"], "{bad}/arrays cannot be read: known_logits.npy: "),
    ("score", ["{bad}/no_unknown.npz"], "unknown_features or unknown_logits is needed, got neither."),
    ("score", ["{bad}/nan.npz"], "known_logits must be finite in float32"),
    ("score", ["{bad}/other_name.npz"], "unexpected array 'validation'"),
    ("score", ["{bad}/widths.npz"], "logits of all parts must have one width"),
    ("score", ["{bad}/no_columns.npz"], "known_logits must have at least 1 column, got shape [8, 0]."),
    ("score", ["{bad}/rows.npz"], "{bad}/rows.npz: "),
    ("score", ["{bad}/labels.npz"], "known_labels must be from 0 to 2, got 9."),
    ("score", ["{bad}/negative.npz"], "known_labels must be of known classes only"),
    ("score", ["{bad}/floats.npz"], "known_labels must be integers, got float64."),
    ("score", ["{bad}/empty_part.npz"], "{bad}/empty_part.npz: "),
    ("score", ["{bad}/logits.npz", "--score=magic"], "The score must be one of "),
    ("score", ["{bad}/logits.npz", "--score=knn", "--scores=msp"], "the score knn of "),
    ("score", ["{bad}/logits.npz", "--k=0"], "k must be a positive integer, got 0."),
    ("score", ["{bad}/logits.npz", "--feature=pixels"], "feature must be one of features, logits, got 'pixels'"),
    ("score", ["{bad}/logits.npz", "--out={bad}/text.txt"], "--out must be a directory, got the file"),
]
# fmt: on


def _listing(root):
    found = {}
    for parent, _, files in os.walk(root):
        for name in files:
            status = os.lstat(os.path.join(parent, name))
            found[os.path.join(parent, name)] = status.st_size, status.st_mtime_ns
    return found


@pytest.mark.parametrize(
    ("module", "arguments", "said"), CASES, ids=[f"{module} {' '.join(words)}"[:90] for module, words, _ in CASES]
)
def test_bad_input_is_one_line_and_writes_nothing(module, arguments, said, bad, tmp_path):
    places = {"{bad}": str(bad), "{new}": str(tmp_path / "new")}
    for name, path in places.items():
        arguments, said = [word.replace(name, path) for word in arguments], said.replace(name, path)
    before = _listing(bad)
    result = commands.run(f"gradmix_jax.{module}", *arguments, cwd=pathlib.Path(commands.ROOT))
    lines = [line for line in result.stderr.splitlines() if not line.startswith("derived: ")]
    assert result.returncode not in (0, -signal.SIGABRT, -signal.SIGSEGV), result
    assert len(lines) == 1 and lines[0].startswith("error: ") and result.stdout == "", result
    assert said in lines[0] and len(lines[0]) < 1000, result
    for word in ("Traceback", "[Errno", "NoneType", "Error("):
        assert word not in lines[0]
    assert _listing(bad) == before and not list(tmp_path.iterdir()), "something was written"


def test_there_are_a_hundred_cases():
    assert len(CASES) >= 100 and len({json.dumps(case) for case in CASES}) == len(CASES)


def test_names_with_line_breaks_and_escapes_stay_on_one_line(tmp_path):
    path = tmp_path / "a\nb\x1b[31m.png"
    for words in (["predict", tmp_path / "x\ny", path], ["report", path], ["score", path]):
        result = commands.run(f"gradmix_jax.{words[0]}", *words[1:])
        assert result.returncode == 2 and result.stderr.count("\n") == 1 and "\x1b" not in result.stderr, result
        assert r"\n" in result.stderr
