"""The markup of README, docs and results: whatever the site builder would warn about, found without it; addresses."""

import re

import pygments.lexers
import pytest
from pygments.token import Error
from test_docs import PAGES as MAIN_PAGES
from test_imports import PACKAGE

ROOT = PACKAGE.parent
PAGES = [*MAIN_PAGES, ROOT / "benchmarks" / "README.md"]
FENCE = re.compile(r"^( *)(`{3,})(.*)$")
# Languages of a code host that have no lexer, and blocks for the builder.
OTHER_LANGUAGES = {"{toctree}", "{eval-rst}", ""}

# Addresses may be of these sites alone, each of a form that can be told: nothing here can look them up.
ADDRESSES = (
    r"https://arxiv\.org/abs/\d{4}\.\d{4,5}",
    r"https://semver\.org",
    r"https://colab\.research\.google\.com(/assets/colab-badge\.svg)?",
)


def name_of(page):
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def parts(text):
    """([(line number, line of prose)], [(line number, language, code)])."""
    prose, blocks, opened = [], [], None
    for number, line in enumerate(text.splitlines(), 1):
        fence = FENCE.match(line)
        if opened is None and fence:
            opened = number, fence[3].strip(), fence[2], []
        elif opened is None:
            prose.append((number, line))
        elif fence and len(fence[2]) >= len(opened[2]) and not fence[3].strip():
            blocks.append((opened[0], opened[1].split()[0] if opened[1] else "", "\n".join(opened[3]) + "\n"))
            opened = None
        else:
            opened[3].append(line)
    assert opened is None, f"the block of line {opened[0]} has no end"
    return prose, blocks


def headings(text):
    """[(level, title)]."""
    found = [re.match(r"(#{1,6}) +(.+?) *$", line) for _, line in parts(text)[0]]
    return [(len(match[1]), match[2]) for match in found if match]


def places(text):
    """The anchors that a link may name, on a code host and on the site: titles in lower case with hyphens."""
    found = []
    for _, title in headings(text):
        place = re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", title).lower()).replace(" ", "-")
        found.append(f"{place}-{found.count(place)}" if place in found else place)
    return found


def links(text):
    """Targets of links and images of the prose, without code."""
    prose = "\n".join(line for _, line in parts(text)[0])
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose))


def wrong_places(page):
    wrong = []
    for link in links(page.read_text()):
        path, _, place = link.partition("#")
        target = page.parent / path if path else page
        if place and "://" not in link and target.suffix == ".md" and place not in places(target.read_text()):
            wrong.append(link)
    return wrong


def wrong_headings(text):
    """Only the first heading is of level 1, and no level is skipped."""
    levels = [level for level, _ in headings(text)]
    jumps = [title for (before, _), (level, title) in zip(headings(text), headings(text)[1:]) if level > before + 1]
    return jumps if levels[:1] == [1] and levels.count(1) == 1 else [*jumps, f"levels {levels}"]


def wrong_tables(text):
    """Line numbers of table rows whose number of cells differs from that of the first row."""
    wrong, width = [], None
    for number, line in parts(text)[0]:
        cells = len(re.findall(r"(?<!\\)\|", re.sub(r"`[^`]*`", "", line))) if line.startswith("|") else None
        if cells is not None and width is not None and cells != width:
            wrong.append(number)
        width = None if cells is None else width or cells
    return wrong


def wrong_code(text):
    """[(line number, language)] of blocks without a lexer, or that it cannot read."""
    wrong = []
    for number, language, code in parts(text)[1]:
        if language not in OTHER_LANGUAGES:
            try:
                tokens = pygments.lexers.get_lexer_by_name(language).get_tokens(code)
            except pygments.util.ClassNotFound:
                tokens = [(Error, "")]
            wrong += [(number, language)] if any(kind is Error for kind, _ in tokens) else []
    return wrong


def wrong_addresses(text):
    found = re.findall(r"https?://[^\s)>\]\"'`]+", text)
    found = [each.rstrip(".,;:") for each in found if each != "https://..."]
    return [each for each in found if not any(re.fullmatch(form, each) for form in ADDRESSES)]


@every_page
def test_a_page_is_well_formed(page):
    text = page.read_text()
    assert wrong_headings(text) == [] and wrong_tables(text) == [] and wrong_code(text) == []
    assert not [image for image in re.findall(r"!\[\]\(([^)]+)\)", text)], "an image without a text alternative"


@every_page
def test_links_to_a_place_in_a_page_lead_there(page):
    assert wrong_places(page) == []


FILES = [ROOT / "CITATION.cff", ROOT / "pyproject.toml", *(ROOT / "launch").glob("*"), *(ROOT / "configs").glob("*.py")]
FILES += [*(ROOT / "notebooks" / "source").glob("*.md"), *PACKAGE.glob("**/*.py")]


def test_addresses_are_of_known_form():
    wrong = {name_of(file): wrong_addresses(file.read_text()) for file in [*PAGES, *FILES] if file.is_file()}
    assert {name: found for name, found in wrong.items() if found} == {}
    papers = [each for file in PAGES for each in re.findall(r"arxiv\.org/abs/(\d\d)(\d\d)\.", file.read_text())]
    assert papers and all(int(year) >= 7 and 1 <= int(month) <= 12 for year, month in papers)


def test_mistakes_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One, `two`\n\n[a](#one-two) [b](#gone) [c](page.md#one-two) [d](page.md#One) `[e](#x)`\n")
    assert wrong_places(page) == ["#gone", "page.md#One"]
    assert places("# a\n## a.1\n## a\n") == ["a", "a1", "a-1"]
    assert wrong_headings("## a\n") and wrong_headings("# a\n# b\n") and wrong_headings("# a\n### b\n") == ["b"]
    assert wrong_headings("# a\n## b\n```bash\n# c\n```\n") == []
    assert wrong_tables("| a | b |\n|---|---|\n| `x|y` \\| | c |\n| d |\n\n| e |\n") == [4]
    assert wrong_code("```python\nx = 1\n```\n```nothing\n```\n```json\n{a?\n```\n") == [(4, "nothing"), (6, "json")]
    assert wrong_addresses("https://arxiv.org/abs/2505.12803, http://arxiv.org/abs/1 https://...") == [
        "http://arxiv.org/abs/1"
    ]
    with pytest.raises(AssertionError, match="line 1 has no end"):
        parts("```python\nx = 1\n")
