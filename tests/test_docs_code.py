"""The Python code of README and docs runs: the blocks of a page, top to bottom, in one namespace and an empty folder.

A block that cannot run is marked ```python no-run, which renders the same, with a comment above it that says why.
"""

import dataclasses
import functools
import pathlib
import re

import jax
import numpy as np
import pytest
from untrained_runs import digits, untrained

ROOT = pathlib.Path(__file__).parents[1]
BLOCK = re.compile(r"^( *)```python( no-run)?\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
SLOW = {"README.md", "docs/howto/add.md", "docs/library.md"}  # train or evaluate something


def blocks(page):
    """[(line number, code, whether it runs, text before it)]."""
    text = page.read_text()
    return [
        (text[: match.start()].count("\n") + 2, match[3], not match[2], text[: match.start()])
        for match in BLOCK.finditer(text)
    ]


def readme_names(folder):
    """What the library block of the README assumes: arrays, a config, and a run to evaluate."""
    random = np.random.default_rng(0)
    unit = lambda *shape: (lambda x: (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype("float32"))(
        random.normal(size=shape)
    )
    uniform = lambda *shape: random.random(shape, "float32")
    config = digits(**{"evaluate.scores": ("topk_cosine",), "evaluate.stages": ()})
    untrained(config, folder / "runs" / "cifar10_0")
    return {
        "key": jax.random.key(0),
        "images_BxHxWxC": uniform(8, 16, 16, 3),
        "forward": lambda params, images: images.reshape(8, -1) @ params,
        "params": unit(16 * 16 * 3, 4),
        "loss": lambda outputs: (outputs**2).mean(),
        "anchors_NxD": unit(8, 4),
        "contrast_MxD": unit(8, 4),
        "positives_NxP": np.roll(np.eye(8, dtype=bool), 1, axis=1),
        "known_scores": uniform(20),
        "unknown_scores": uniform(30),
        "correct": random.random(20) < 0.8,
        "config": config,
    }


def architecture_names(folder):
    from gradmix_jax.fields import Section, key
    from gradmix_jax.method.fills import FILLS

    return {"dataclasses": dataclasses, "Section": Section, "key": key, "FILLS": FILLS}


# Names that a page's code assumes; other pages import and define everything they use.
NAMES = {"README.md": readme_names, "docs/architecture.md": architecture_names}


def name_of(page):
    return str(page.relative_to(ROOT))


def with_code():
    return [
        pytest.param(page, id=name_of(page), marks=[pytest.mark.slow] * (name_of(page) in SLOW))
        for page in PAGES
        if page.exists() and any(runs for _, _, runs, _ in blocks(page))
    ]


def tables():
    """The tables that a page may add entries to."""
    from gradmix_jax import corruptions, data, models, objectives, scores
    from gradmix_jax.method import attribution, fills, masks, mix

    found = [corruptions.CORRUPTIONS, data.READERS, models.ENCODERS, objectives.OBJECTIVES, scores.SCORES]
    return [*found, attribution.MAPS, fills.FILLS, masks.MASKS, mix.METHODS]


@pytest.mark.parametrize("page", with_code())
def test_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = [(table, set(table)) for table in tables()]
    names = {"__name__": "page"} | NAMES.get(name_of(page), lambda folder: {})(tmp_path)
    try:
        for line, code, runs, _ in blocks(page):
            if runs:
                exec(compile("\n" * (line - 1) + code, str(page), "exec"), names)
    finally:
        for table, known in before:
            for added in set(table) - known:
                del table[added]


def test_blocks_that_do_not_run_are_few_and_say_why():
    silent = [block for page in PAGES if page.exists() for block in blocks(page) if not block[2]]
    assert len(silent) <= 3
    assert all(re.search(r"<!-- not run: .{10,} -->\n$", before) for *_, before in silent)


def test_a_block_with_a_mistake_fails(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("text\n\n```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    monkeypatch.setattr("test_docs_code.ROOT", tmp_path)
    with pytest.raises(AssertionError) as error:
        test_python_of_a_page_runs(page, tmp_path, monkeypatch)
    assert error.traceback[-1].lineno + 1 == 8


@functools.cache
def commands():
    """(page, command line) of every line of a bash block."""
    found = []
    for page in PAGES:
        text = page.read_text() if page.exists() else ""
        for block in re.findall(r"^```(?:bash)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            found += [(name_of(page), line) for line in block.replace("\\\n", " ").splitlines()]
    return found


def test_commands_of_the_docs_exist():
    from gradmix_jax.__main__ import COMMANDS

    named = [(page, word) for page, line in commands() for word in re.findall(r"(?:^|[|;(] *)gradmix (\w+)", line)]
    named += [(page, word) for page, line in commands() for word in re.findall(r"-m gradmix_jax (\w+)", line)]
    assert len(named) > 5 and not [each for each in named if each[1] not in COMMANDS]


def test_config_keys_of_the_docs_exist():
    from gradmix_jax import config as config_lib

    known = config_lib.flatten(config_lib.to_plain(config_lib.default_config()))
    phase = config_lib.phase("", epochs=1).keys()
    keys = [(page, key) for page, line in commands() for key in re.findall(r"--config\.([\w.\[\]]+)=", line)]
    wrong = [
        (page, key)
        for page, key in keys
        if key not in {*known, "KEY"} and not re.fullmatch(rf"phases\[\d\]\.({'|'.join(phase)})", key)
    ]
    assert len(keys) > 20 and not wrong
