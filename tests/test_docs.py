"""README, docs and CITATION.cff name only things that exist and agree with the code."""

import importlib
import re

import pytest
import yaml
from test_imports import PACKAGE, RANKS

import gradmix_jax
from gradmix_jax import config as config_lib

ROOT = PACKAGE.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
PAGES += [*(ROOT / "docs").glob("**/*.md"), *(ROOT / "results").glob("*.md")]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


@pytest.mark.parametrize("page", [*PAGES, ROOT / "benchmarks" / "README.md"], ids=lambda p: str(p.relative_to(ROOT)))
def test_what_a_page_names_exists(page):
    # Tables of contents name pages without their suffix; the site's builder checks those.
    text = re.sub(r"^```\{toctree\}.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = [link for link in links if link and not (page.parent / link).exists()]
    paths = re.findall(r"\b((?:configs|gradmix_jax|tests|launch|notebooks|benchmarks|docs|results)/[\w./-]+)", text)
    paths = [path for path in paths if not path.startswith("docs/_build/")]  # what `make docs` makes
    missing += [path for path in paths if not (ROOT / path.rstrip("./")).exists() and not _is_code(path)]
    modules = set(re.findall(r"python3? -m (gradmix_jax[\w.]*)", text))
    missing += [name for name in modules if importlib.util.find_spec(name) is None]
    assert not missing


def _is_code(path):
    """`scores/base.Unfit` and the like."""
    return (ROOT / path.rpartition(".")[0]).with_suffix(".py").exists()


def test_config_keys_of_the_readme_exist():
    keys = re.findall(r"--config\.([\w.]+?)(?:\[\d\]\.\w+)?=", (ROOT / "README.md").read_text())
    known = config_lib.flatten(config_lib.to_plain(config_lib.default_config()))
    assert keys and not [key for key in keys if key not in {*known, "KEY"}]


def test_the_readme_is_short_and_its_picture_small():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150
    assert (ROOT / "docs" / "gradmix.png").stat().st_size < 200_000
    assert (ROOT / "docs" / "architecture.svg").stat().st_size < 150_000
    assert (ROOT / "docs" / "report.png").stat().st_size < 150_000


def section(title):
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", ARCHITECTURE, re.MULTILINE | re.DOTALL)[1]


def test_every_function_of_the_walk_exists_and_is_named_once():
    names = re.findall(r"`((?:\w+\.)+\w+)`", section("The walk"))
    names = [name for name in names if not name.endswith(".py") and not name.startswith("jax.")]
    assert len(names) > 20 and sorted(set(names)) == sorted(names)
    for name in names:
        place, parts = importlib.import_module("gradmix_jax"), name.split(".")
        for depth, part in enumerate(parts):
            found = getattr(place, part, None) if depth else None
            place = importlib.import_module(f"gradmix_jax.{'.'.join(parts[: depth + 1])}") if found is None else found
        assert callable(place) or not name.count("."), name


def test_the_walk_goes_through_every_folder_in_the_order_of_imports():
    folders = re.findall(r"^\*\*`(\w+)/`\*\*", section("The walk"), re.MULTILINE)
    named = set(re.findall(r"`(\w+)/`", section("The walk")))  # those that hold it together come last
    assert named == {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    rank = {name: place for place, names in enumerate(RANKS) for name in names}
    assert [rank[name] for name in folders] == sorted(rank[name] for name in folders)
    modules = re.findall(r"`(\w+)\.py`", section("The walk"))
    assert set(modules) >= {name for names in RANKS[:-1] for name in names} - named


def test_the_table_of_ranks_is_that_of_the_import_test():
    rows = re.findall(r"^\| (\d+) \| (.*?) \|$", section("Import ranks"), re.MULTILINE)
    assert [set(re.findall(r"`(\w+)`", names)) for _, names in rows] == RANKS
    assert [int(number) for number, _ in rows] == list(range(len(RANKS)))


def test_the_table_of_sections_is_that_of_the_config():
    rows = re.findall(r"^\| `(\w+)` \| `([\w.]+)` \|$", section("Where config keys live"), re.MULTILINE)
    found = {name: f"{each.__module__.removeprefix('gradmix_jax.')}" for name, each in config_lib.SECTIONS.items()}
    assert dict(rows) == found


def test_tables_that_new_entries_go_into_exist():
    from gradmix_jax import data, models, scores
    from gradmix_jax.method import fills, masks, mix

    named = set(re.findall(r"`(\w+\.[A-Z]+)`", section("How to add")))
    tables = {"mix.METHODS": mix, "masks.MASKS": masks, "fills.FILLS": fills, "scores.SCORES": scores}
    tables |= {"models.ENCODERS": models, "data.READERS": data}
    assert tables.keys() <= named
    assert all(hasattr(module, name.split(".")[1]) for name, module in tables.items())


def test_citation():
    """The fields that version 1.2.0 of the format requires, and agreement with package and README."""
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= content.keys() and content["cff-version"] == "1.2.0"
    assert content["type"] == "software" and content["license"] == "Apache-2.0"
    assert content["version"] == gradmix_jax.__version__
    paper = content["preferred-citation"]
    assert {"type", "title", "authors", "year"} <= paper.keys() and paper["year"] == 2025
    assert [author["family-names"] for author in paper["authors"]] == ["Xu", "Kao", "Keuper"]
    assert paper["url"].endswith("2505.12803")
    readme = (ROOT / "README.md").read_text()
    bibtex = re.search(r"```bibtex\n(.*?)```", readme, re.DOTALL)[1]
    assert paper["title"].replace("–", "--") in bibtex and "2505.12803" in bibtex
    assert all(f"{a['family-names']}, {a['given-names']}" in bibtex for a in paper["authors"])
