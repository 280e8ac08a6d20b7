"""A damaged export gives one line and no answer, whichever file is damaged and however."""

import json
import math
import pickle
import shutil
import subprocess

import commands
import numpy as np
import pytest
from PIL import Image
from untrained_runs import animals, untrained

from gradmix_jax import export, predict, stored
from gradmix_jax.portable import files
from gradmix_jax.training import initial


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An export of a run on a folder of images, so that it has every file that is read."""
    folder = tmp_path_factory.mktemp("export")
    config = animals(folder / "data", **{"dataset.validation_fraction": 0.2})
    export.export(untrained(config, folder / "run")[1], str(folder / "out"))
    return folder / "out"


def without(place):
    return lambda found: _at(found, place).pop(place[-1])


def put(place, value):
    return lambda found: _at(found, place).update({place[-1]: value})


def _at(found, place):
    for name in place[:-1]:
        found = found[name]
    return found


def edited(change):
    def damage(content):
        found = json.loads(content)
        change(found)
        return json.dumps(found).encode()

    return damage


def flipped(content):
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 1
    return bytes(changed)


DAMAGES = {
    "deleted": None,
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "one byte less": lambda content: content[:-1],
    "one bit": flipped,
    "garbage": lambda content: np.random.default_rng(0).bytes(300),
    "pickled": lambda content: pickle.dumps([{}, 1]),
    "another line": lambda content: content + b"\n",
}
# What a valid metadata.json of an older export, which has no digests, may not say.
CHANGES = {
    "no class names": without(["class_names"]),
    "no size": without(["image", "size"]),
    "no inputs": without(["score", "inputs"]),
    "no arrays": put(["score", "arrays"], ["gone"]),
    "text": put(["image", "size"], "8"),
    "another size": put(["image", "size"], 9),
    "another background": put(["image", "background"], "pink"),
    "another input": put(["score", "inputs"], ["gone"]),
    "double": put(["score", "float64"], 1),
    "fewer classes": lambda found: found["class_names"].pop(),
    "NaN": put(["calibration_scores"], [math.nan]),
    "null": put(["calibration_scores"], [None]),
    "newer": put(["version"], 99),
    "a list": put(["model"], []),
    "no weights": put(["model", "weights"], []),
}


def damaged(exported, out, name, damage):
    shutil.copytree(exported, out)
    content = (out / name).read_bytes()
    (out / name).unlink()
    if damage is not None:
        (out / name).write_bytes(damage(content))
        assert damage(content) != content
    return str(out)


def answer(directory):
    random = np.random.default_rng(0)
    return predict.OpenSetClassifier.load(directory).predict(random.integers(0, 256, (3, 8, 8, 1), np.uint8))


def check_one_line(directory):
    with pytest.raises(ValueError) as raised:
        answer(directory)
    said = str(raised.value)
    assert said.startswith(directory) and said.endswith(".") and "\n" not in said and len(said) < 400, said


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [*files.READ, stored.SUMS])
def test_no_file_of_an_export_is_damaged_in_silence(exported, tmp_path, name, damage):
    if name == stored.SUMS and damage in ("one byte less", "another line"):
        pytest.skip("the digests are all there")
    check_one_line(damaged(exported, tmp_path / "out", name, DAMAGES[damage]))


def test_every_file_has_a_digest(exported):
    listed = stored.read_sums(str(exported))
    assert set(listed) == {path.name for path in exported.iterdir()} - {stored.SUMS}
    assert set(files.READ) <= set(listed)
    command = ["sha256sum", "--check", "--strict", "--quiet", stored.SUMS]
    assert subprocess.run(command, cwd=exported).returncode == 0


def older(exported, out, change):
    """The export as an older version wrote it, without digests, after a change of its metadata."""
    change_all = lambda found: (found.pop("checksums"), change(found))
    directory = damaged(exported, out, files.METADATA, edited(change_all))
    (out / stored.SUMS).unlink()
    return directory


@pytest.mark.parametrize("change", CHANGES)
def test_what_an_older_export_may_not_say(exported, tmp_path, change):
    check_one_line(older(exported, tmp_path / "out", CHANGES[change]))


def test_an_older_export_and_keys_of_a_newer_one_are_read(exported, tmp_path):
    expected = answer(str(exported))
    newer_key = put(["image", "color_space"], "sRGB")
    for name, change in {"older": lambda found: None, "with a newer key": newer_key}.items():
        found = answer(older(exported, tmp_path / name, change))
        np.testing.assert_array_equal(found.score_N, expected.score_N)


def test_a_run_does_not_start_from_damaged_weights_of_an_export(exported, tmp_path):
    directory = damaged(exported, tmp_path / "out", files.WEIGHTS, flipped)
    with pytest.raises(ValueError, match=r"^model\.safetensors is damaged: its SHA-256 is not the one in SHA256SUMS"):
        initial.load(directory, 0, {})


def test_the_command_says_one_line(exported, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    directory = damaged(exported, tmp_path / "out", files.SCORE, flipped)
    result = commands.run("gradmix_jax.predict", directory, tmp_path / "image.png")
    said = "score.stablehlo is damaged: its SHA-256 is not the one in SHA256SUMS; export the run again."
    expected = f"error: {directory} cannot be read as an export: {said}\n"
    assert (result.returncode, result.stdout, result.stderr) == (2, "", expected)
