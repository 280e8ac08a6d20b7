"""The documentation site: its generated parts are complete, and it builds without a warning."""

import functools
import html
import importlib
import importlib.util
import re
import subprocess
import sys
import urllib.parse

import pytest
from test_imports import PACKAGE

import gradmix_jax
from gradmix_jax import config as config_lib

ROOT = PACKAGE.parent
DOCS = ROOT / "docs"
PAGES = [*DOCS.glob("*.md"), *DOCS.glob("*/*.md")]


def load(name):
    """A module of docs/, which is not a package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generated():
    return load("generated")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("`a_b` of *args, **options and x_", "``a_b`` of \\*args, \\*\\*options and x\\_"),
        ("**higher means known**, |x|", "**higher means known**, \\|x\\|"),
        ("  num_classes: K.\n  A. Author", "  num_classes: K\\.\n  A\\. Author"),
        ("Use:\n\n    x = a_ * `b`\n\nText_", "Use:\n\n::\n\n    x = a_ * `b`\n\nText\\_"),
        ("Args:\n  known, unknown_M: scores, more: less", "Args:\n  known,unknown_M: scores, more: less"),
        ("It.\n\npython -m x --y\ncat\n\nEnd", "It.\n\n::\n\n    python -m x --y\n    cat\n\nEnd"),
        ("Args:\n    key: of it\n\nReturns:\n    a sum", "Args:\n    key: of it\n\nReturns:\n    a sum"),
    ],
)
def test_docstrings_become_markup(text, expected):
    assert "\n".join(load("docstrings").restructured(text.split("\n"))) == expected


def test_every_generated_part_is_on_one_page(generated):
    named = [name for page in PAGES for name in re.findall(r"^<!-- generated: (\w+) -->$", page.read_text(), re.M)]
    assert sorted(named) == sorted(generated.PARTS)


def test_the_configuration_reference_has_every_key_with_its_default(generated):
    text = generated.configuration()
    for name, value in config_lib.flatten(config_lib.to_plain(config_lib.default_config())).items():
        if name.startswith("phases"):
            continue
        row = re.search(rf"^\| `{re.escape(name)}` \| [^|]+ \| `(.+?)` \|", text, re.MULTILINE)
        assert row, name
        found = eval(row[1])
        assert (list(found) if isinstance(found, tuple) else found) == value, name


def test_every_entry_of_a_table_has_a_row(generated):
    from gradmix_jax import corruptions, models, objectives, scores
    from gradmix_jax.config import recipes
    from gradmix_jax.method import attribution, fills, masks, mix

    tables = {"methods": set(mix.METHODS) - {"none"}, "maps": attribution.MAPS, "masks": masks.MASKS}
    tables |= {"fills": fills.FILLS, "objectives": objectives.OBJECTIVES, "scores": scores.SCORES}
    tables |= {"encoders": models.ENCODERS, "corruptions": corruptions.CORRUPTIONS, "recipes": recipes.RECIPES}
    for part, entries in tables.items():
        rows = re.findall(r"^\| `(\w+)` \|", generated.PARTS[part](), re.MULTILINE)
        assert sorted(rows) == sorted(entries), part
    lines = generated.methods().splitlines()[2:]
    assert all(len(line.split("|")[2]) > 15 for line in lines), "a mixing method without a docstring"


def test_bounds_and_choices_of_keys_are_stated(generated):
    from gradmix_jax.fields import Key

    assert generated.bounds(Key(1, "", least=1, most=5)) == "at least 1, at most 5"
    assert generated.bounds(Key((0.5, 1.0), "", above=0, below=2, length=2)) == "above 0, below 2, 2 values"
    assert generated.bounds(Key("a", "", choices=lambda: ("a", "b"))) == "`a`, `b`"
    assert "a\\|b" in generated.table(["x"], [["a|b"]])


def test_every_public_name_has_a_page_of_the_reference():
    text = "".join(page.read_text() for page in DOCS.glob("api/*.md"))
    documented = set(re.findall(r"^\.\. automodule:: ([\w.]+)\n   :members:", text, re.MULTILINE))
    assert {each.partition(":")[0] for each in gradmix_jax._LIBRARY.values()} <= documented
    index = (DOCS / "api" / "index.md").read_text()
    pages = {page.stem for page in DOCS.glob("api/*.md")} - {"index"}
    assert pages == set(re.findall(r"\]\((\w+)\.md\)", index)) == set(re.findall(r"^(\w+)$", index, re.MULTILINE))


def test_what_the_reference_lists_exists():
    text = "".join(page.read_text() for page in DOCS.glob("api/*.md"))
    listed = re.findall(r"^\.\. automodule:: ([\w.]+)\n   :members: (.+)$", text, re.MULTILINE)
    assert listed
    for module, names in listed:
        module = importlib.import_module(module)
        assert not [name for name in names.split(", ") if not hasattr(module, name)]


def test_every_page_is_in_the_table_of_contents():
    toctrees = re.findall(r"^```\{toctree\}\n(.*?)^```", (DOCS / "index.md").read_text(), re.MULTILINE | re.DOTALL)
    named = set(" ".join(toctrees).split())
    missing = {str(page.relative_to(DOCS))[: -len(".md")] for page in PAGES if page.parent.name != "api"} - named
    assert missing == {"index"}


def test_packages_of_the_site_are_pinned():
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", (DOCS / "requirements.txt").read_text(), re.MULTILINE))
    project = (ROOT / "pyproject.toml").read_text()
    wanted = re.findall(r'"([\w-]+)', re.search(r"^docs = (\[.*\])$", project, re.MULTILINE)[1])
    assert wanted and set(wanted) <= set(pinned)
    others = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert not set(pinned) & set(others)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx", reason="make docs installs it")
    words = ["-q", "-W", "--keep-going", "-c", "docs", "-d", tmp_path / "trees", ".", tmp_path / "html"]
    result = subprocess.run([sys.executable, "-m", "sphinx", *words], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "html" / "docs" / "configuration.html").read_text()
    assert "attribution.smoothing" in page
    assert broken_links(tmp_path / "html") == []


def broken_links(site):
    """[(page, link)] of links and images of built pages whose file or anchor does not exist."""
    places = functools.cache(lambda page: set(re.findall(r'\bid="([^"]+)"', page.read_text())))
    broken = []
    for page in site.rglob("*.html"):
        for link in re.findall(r'<(?:a|img) [^>]*(?:href|src)="([^"]+)"', page.read_text()):
            path, _, place = urllib.parse.unquote(html.unescape(link)).partition("#")
            target = (page.parent / path).resolve() if path else page
            if re.match(r"\w+:", link):
                continue
            if not target.exists() or (place and target.suffix == ".html" and place not in places(target)):
                broken.append((str(page.relative_to(site)), link))
    return broken


def test_broken_links_are_found(tmp_path):
    (tmp_path / "a.html").write_text('<h1 id="here"></h1> <a class="x" href="b.html#there"></a> <a href="#here"></a>')
    (tmp_path / "b.html").write_text('<p id="there"></p> <img alt="" src="c.png"> <a href="a.html#gone"></a>')
    assert broken_links(tmp_path) == [("b.html", "c.png"), ("b.html", "a.html#gone")]
