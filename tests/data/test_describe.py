"""`gradmix data PATH`: what a dataset holds, and its contact sheet."""

import ast
import os
import shlex

import commands
import numpy as np
import pytest
from PIL import Image
from stored_data import write_idx

from gradmix_jax.data import Spec, describe, folder, readers, sheet
from gradmix_jax.data import __main__ as data_command
from gradmix_jax.data.class_names import CLASS_NAMES


def photo(seed, size=(32, 24)):
    """A smooth random color image."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Two classes with every kind of image, a broken file, and copies within a part, across parts and classes."""
    root = tmp_path_factory.mktemp("tree") / "my set"
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
    cat, dog = root / "train" / "cat", root / "train" / "dog"
    photo(0).save(cat / "0.png")
    photo(0).resize((48, 36)).save(cat / "0_larger.jpg", quality=95)
    photo(1).convert("L").save(cat / "1.png")
    photo(1).convert("L").save(cat / "1_again.bmp")
    photo(2).quantize(32).save(cat / "2.gif", save_all=True, append_images=[photo(3).quantize(32)])
    photo(4).convert("CMYK").save(cat / "4.jpg", quality=95)
    (cat / "5.jpg").write_bytes((cat / "4.jpg").read_bytes()[:200])
    photo(10).save(dog / "0.png")
    clear = photo(11)
    clear.putalpha(Image.new("L", clear.size, 100))
    clear.save(dog / "1.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(12, size=(100, 80)).save(dog / "2.jpg", exif=exif)
    deep = np.asarray(photo(13).convert("L"), np.uint16) * 256
    Image.fromarray(deep).save(dog / "3.tif")
    (root / "test" / "cat" / "0.png").write_bytes((cat / "0.png").read_bytes())
    photo(10).save(root / "test" / "cat" / "not_a_cat.bmp")
    photo(20).save(root / "test" / "dog" / "0.png")
    return root


@pytest.fixture(scope="module")
def found(tree):
    return describe.describe(readers.load(Spec(), f"folder:{tree}", with_train=True))


def base(found, group):
    return sorted("/".join(found.name(*image).split("/")[-3:]) for image in group)


def test_classes_and_kinds_of_images_are_counted(found):
    assert found.counts("train").tolist() == [7, 4] and found.counts("test").tolist() == [2, 1]
    assert len(found.readable) == 13 and sum(each.is_gray for each in found.readable) == 3
    for field, file in (("is_animated", "cat/2.gif"), ("is_transparent", "dog/1.png"), ("is_rotated", "dog/2.jpg")):
        marked = [i for i, each in enumerate(found.facts["train"]) if getattr(each, field)]
        assert [found.name("train", i).endswith(file) for i in marked] == [True], field
    assert {each.mode[:1] for each in found.readable} == {"R", "L", "P", "C", "I"}
    assert max((each.width, each.height) for each in found.readable) == (100, 80)


def test_copies_are_found_within_parts_across_parts_and_across_classes(found):
    groups = sorted(base(found, group) for group in found.groups)
    assert groups.pop() == ["train/cat/1.png", "train/cat/1_again.bmp"]
    assert groups == [
        ["test/cat/0.png", "train/cat/0.png", "train/cat/0_larger.jpg"],
        ["test/cat/not_a_cat.bmp", "train/dog/0.png"],
    ]
    assert sorted(base(found, group) for group in found.across) == groups
    assert [base(found, group) for group in found.conflicting] == groups[1:]


def test_the_text_reports_all_of_it(found, tree):
    text = describe.text(found)
    lines = text.splitlines()
    assert lines[0] == f"folder:{tree}: 2 classes, 14 images (11 train and 3 test)"
    assert ["cat", "7", "2"] in [line.split() for line in lines] and ["dog", "4", "1"] in [
        line.split() for line in lines
    ]
    assert "sizes: 32x24 to 100x80, median shorter side 24 pixels" in lines
    assert "modes: 7 RGB, " in text and "3 of 13 are gray" in text
    assert "1 transparent: laid on dataset.background" in text and "1 with an EXIF orientation: turned upright" in text
    assert "1 animated: the first frame counts" in lines and "1 of 16 bits: the upper 8 count" in lines
    assert "unreadable: 1 (" in text and "cat/5.jpg (" in text
    assert "published class splits" not in text, "cat and dog are only some of CIFAR-10's classes"
    assert "copies within a part: 1 (" in text and "cat/1.png = " in text
    assert "copies across train and test: 2 (" in text and "copies in two classes: 1 (" in text


def test_a_clean_dataset_and_a_benchmark(tmp_path):
    for number, name in enumerate(CLASS_NAMES["cifar10"]):
        (tmp_path / name.title()).mkdir()
        for place in range(2):
            photo(100 + 2 * number + place).save(tmp_path / name.title() / f"{place}.png")
    text = describe.text(describe.describe(folder.load(str(tmp_path), with_train=True)))
    assert text.count(": none") == 4 and "sizes: 32x24 pixels" in text
    assert text.endswith("published class splits that fit, as dataset.benchmark: cifar10, cifar+10, cifar+50")


def test_images_in_arrays_are_described_too(tmp_path):
    name = write_idx(tmp_path / "set", train_labels=[0, 1, 1], test_labels=[0, 1])
    text = describe.text(describe.describe(readers.load(Spec(), name, with_train=True)))
    assert "2 classes, 5 images (3 train and 2 test)" in text and "formats: 5 pixels" in text
    assert "copies across train and test: 2 (" in text


def test_a_contact_sheet_has_a_row_for_each_class(tree):
    data = folder.load(str(tree), with_train=True)
    image = sheet.draw(data, background="black")
    assert image.size == (8 * 100 + 4, 2 * 114 + 4)
    pixels = np.asarray(image).astype(int)
    first = pixels[4 + 14 : 4 + 14 + 96, 4 : 4 + 96]
    assert np.abs(first - np.asarray(photo(0).resize((96, 96), Image.Resampling.BILINEAR))).mean() < 2
    crossed = pixels[4 + 14 : 4 + 14 + 96, 4 + 6 * 100 : 4 + 6 * 100 + 96]
    assert crossed[20, 20].tolist() == crossed[20, 96 - 20].tolist() == [255, 0, 0]
    assert crossed[10, 48].tolist() == [255, 255, 255]


def test_the_command(tree, tmp_path):
    out = tmp_path / "sheet.png"
    result = commands.run("gradmix_jax", "data", str(tree), f"--out={out}")
    assert result.returncode == 0, result.stderr
    assert Image.open(out).size == (804, 232)
    line = next(line for line in result.stdout.splitlines() if " train --config=folder_osr " in line)
    assert f"'--config.dataset.name=folder:{tree}'" in line and "--config.dataset.bad_images=skip" in line
    for word, message in (
        ("nowhere/x", "nowhere/x does not exist"),
        ("digit", "did you mean 'digits'?"),
        ("nowhere", "the dataset, unless it is a path that exists, must be one of digits, "),
    ):
        result = commands.run("gradmix_jax.data", word)
        assert result.returncode == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("names", [("a", "b", "c"), ("cat's", "dog $1", "owl")])
def test_a_shell_understands_the_printed_commands(names, tmp_path):
    for number, name in enumerate(names):
        (tmp_path / "set" / name).mkdir(parents=True)
        for place in range(2):
            photo(2 * number + place).save(tmp_path / "set" / name / f"{place}.png")
    found = describe.describe(readers.load(Spec(), f"folder:{tmp_path}/set", with_train=True))
    lines = [shlex.split(line) for line in data_command.commands_for(found) if "--config" in line]
    assert len(lines) == 2 and not any("bad_images" in word for line in lines for word in line)
    (known,) = [word for word in lines[1] if word.startswith("--config.dataset.known=")]
    assert ast.literal_eval(known.partition("=")[2]) == names[:2]


def test_names_stay_on_one_line_and_need_not_be_utf_8(tmp_path):
    for name in (b"a\nb", b"\x1b[31mred", b"caf\xe9"):
        folder_of_class = os.path.join(os.fsencode(tmp_path / "set"), name)
        os.makedirs(folder_of_class)
        for seed in range(5):
            photo(seed).save(os.fsdecode(os.path.join(folder_of_class, b"%d.png" % seed)))
    result = commands.run("gradmix_jax.data", tmp_path / "set", f"--out={tmp_path}/sheet.png")
    assert result.returncode == 0 and "\x1b" not in result.stdout, result
    names = [line.split()[0] for line in result.stdout.splitlines()[3:6]]
    assert names == [r"\x1b[31mred", r"a\nb", r"caf\udce9"]
    Image.open(tmp_path / "sheet.png").verify()
