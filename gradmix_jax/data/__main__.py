"""Describe a dataset before anything is trained, and print the command to train on it.

python -m gradmix_jax.data PATH                    a folder, a CSV list, IDX files or a saved table of `datasets`
python -m gradmix_jax.data PATH --out=sheet.png    and draw a contact sheet, a row for each class
python -m gradmix_jax.data digits                  any other value of dataset.name
"""

import os
import shlex
import shutil
import sys

from absl import flags

from gradmix_jax import cli
from gradmix_jax import data as data_lib
from gradmix_jax.data import describe, readers, sheet
from gradmix_jax.data.source import BACKGROUNDS
from gradmix_jax.fields import one_line
from gradmix_jax.workdir import replacing


def name_of(word: str) -> str:
    """The value of dataset.name for a word of the command line: the word itself, or the dataset at that path.

    Raises:
      ValueError: it is neither.
    """
    kind = readers.kind_of(word)
    if not (kind in readers.READERS and readers.READERS[kind].takes(kind, word)):
        if os.path.exists(os.path.expanduser(word)):
            return readers.guess(word)
        if os.sep in word or word.startswith((".", "~")):
            raise ValueError(f"{word} does not exist; give the path of a folder or of a CSV list.")
    readers.check_name("the dataset, unless it is a path that exists,", word)
    return word


def commands_for(found: describe.Description) -> list[str]:
    """Lines with the commands that train on a dataset: with randomly drawn or named known classes."""
    names = found.data.class_names
    program = ["gradmix"] if shutil.which("gradmix") else ["python", "-m", "gradmix_jax"]
    words = [*program, "train", "--config=folder_osr", f"--config.dataset.name={found.data.name}"]
    if any(each.problem for facts in found.facts.values() for each in facts):
        words.append("--config.dataset.bad_images=skip")
    command = f"    {shlex.join([*words, '--workdir=runs/mine'])}"
    if len(names) < 3:
        other = "--config.dataset.unknown_name=folder:OTHER"
        return ["", "all classes known, the images of another folder unknown:", f"{command} {other}"]
    known = f"--config.dataset.known=({','.join(map(repr, names[:2]))})"
    # In double quotes, which are easier to read, unless a shell would expand something in them.
    known = shlex.quote(known) if set(known) & set('"$`\\!') else f'"{known}"'
    return [
        "",
        "to train with 60 % of the classes known:",
        command,
        "or with known classes by name, all others unknown:",
        f"{command} {known}",
    ]


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        raise ValueError(f"data takes one dataset, got {len(argv) - 1}; see --help.")
    options = flags.FLAGS
    out = os.path.expanduser(options.out or "")
    if out and (os.path.isdir(out) or not os.path.isdir(os.path.dirname(out) or ".")):
        raise ValueError(f"--out must be a file in an existing folder, got {options.out!r}.")
    spec = data_lib.Spec(download=options.download, data_dir=options.data_dir)
    data = readers.load(spec, name_of(argv[1]), with_train=True)
    found = describe.describe(data, progress=sys.stderr.isatty())
    print(describe.text(found))
    if out:
        with replacing(out, "wb") as file:
            sheet.draw(data, background=options.background).save(file, format="PNG")
        print(one_line(f"contact sheet: {options.out}"))
    print("\n".join(commands_for(found)))


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "PNG file for a contact sheet: a row of images for each class.")
    flags.DEFINE_enum("background", "white", list(BACKGROUNDS), "Background of transparent images on the sheet.")
    flags.DEFINE_string("data_dir", "", "TFDS directory; empty: its default.")
    flags.DEFINE_bool("download", False, "Let TFDS and `datasets` download missing data.")
    cli.run(main)
