"""The page in headless Chromium: sliders, sorting and readings, by mouse, by keyboard, and without its script."""

import json
import time

import chromium
import numpy as np
import pytest
from evaluated_runs import KNOWN, UNKNOWN, write_run

from gradmix_jax import metrics, report
from gradmix_jax.report import sections

pytestmark = pytest.mark.skipif(chromium.COMMAND is None, reason="needs Chromium")
EVIL = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
RIGHT, LEFT, TAB = ("ArrowRight", 39), ("ArrowLeft", 37), ("Tab", 9)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(report.html, results and arrays of its first run): two methods, one with a hostile name; two datasets."""
    folder = tmp_path_factory.mktemp("clicks")
    paths = [
        write_run(folder / "a", "input", gap=1.5, size=20),
        write_run(folder / "b", "none", label=EVIL),
        write_run(folder / "c", "none", **{"dataset.name": "mnist"}),
    ]
    with pytest.MonkeyPatch.context() as patched:  # slow to draw, with nothing to click on
        patched.setattr(sections, "embedding", lambda run: "")
        patched.setattr(sections, "overlays", lambda run: "")
        page = report.write(paths, str(folder / "out"))[0]
    return (
        folder / "out" / page,
        json.loads((folder / "a" / "results.json").read_text()),
        dict(np.load(folder / "a" / "scores.npz")),
    )


@pytest.fixture(scope="module")
def browser():
    with chromium.Browser() as found:
        yield found


@pytest.fixture
def page(browser, made):
    """The page, freshly loaded with its script."""
    browser.errors.clear()
    browser.open(made[0])
    assert browser.run("document.documentElement.dataset.ready") == "yes"
    yield browser
    assert browser.errors == []  # no exception, and nothing loaded or refused


def texts(page, selector):
    return page.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)")


def confusion(page, method="method-0"):
    cells = texts(page, f"#{method}-classes .confusion tbody td:not(.sum)")
    return np.array(cells, int).reshape(-1, len(KNOWN) + 1)


def number(page, key):
    return texts(page, f"#method-0-threshold [data-number={key}]")[0]


def test_the_page_starts_at_the_runs_threshold_with_the_numbers_of_the_results(page, made):
    _, results, _ = made
    assert number(page, "f1") == f"{results['macro_f1']:.4f}"
    assert texts(page, "#method-0-threshold output") == [f"{results['threshold']:.4f}"]
    np.testing.assert_array_equal(confusion(page), results["confusion"]["counts"])
    assert page.run("window.hacked") is None and EVIL in texts(page, "#method-1 h2")


def test_keys_on_the_slider_move_numbers_matrix_and_mistakes(page, made):
    _, _, arrays = made
    data = json.loads(texts(page, "#method-0-data")[0])
    page.run("document.querySelector('#method-0-slider').focus()")
    for _ in range(9):
        page.press(*LEFT)
    threshold = data["thresholds"][data["own"] - 9]
    assert texts(page, "#method-0-threshold output") == [f"{threshold:.4f}"]
    known, unknown = (arrays[f"{side}_scores"] >= threshold for side in ("known", "unknown"))
    assert number(page, "accepted") == f"{100 * known.mean():.1f} %\n{known.sum()} of {known.size}"
    assert number(page, "false") == f"{100 * unknown.mean():.1f} %\n{unknown.sum()} of {unknown.size}"
    decided = (
        np.where(known, arrays["predicted"], len(KNOWN)),
        np.where(unknown, arrays["predicted_unknown"], len(KNOWN)),
    )
    counts = np.zeros((len(KNOWN) + len(UNKNOWN), len(KNOWN) + 1), int)
    np.add.at(counts, (arrays["labels"], decided[0]), 1)
    # This made-up run lists its unknown classes by name.
    np.add.at(counts, (len(KNOWN) + arrays["unknown_classes"], decided[1]), 1)
    np.testing.assert_array_equal(confusion(page), counts)
    truth = np.concatenate([arrays["labels"], np.full(unknown.size, len(KNOWN))])
    assert number(page, "f1") == f"{metrics.macro_f1(np.concatenate(decided), truth, num_classes=len(KNOWN)):.4f}"
    accepted = dict(zip(texts(page, "#method-0-classes .taken tbody th"), texts(page, ".taken tbody td:nth-child(3)")))
    rows = counts[len(KNOWN) :, :-1].sum(axis=1)
    assert accepted == {name: str(n) for name, n in zip(sorted(UNKNOWN), rows)}
    shown = "[...document.querySelectorAll('#method-0-gallery [data-keep=accepted] li:not([hidden])')]"
    scores = page.run(f"{shown}.map(e => Number(e.dataset.score))")
    every = page.run(shown.replace(":not([hidden])", "") + ".map(e => Number(e.dataset.score))")
    assert sorted(scores) == sorted(score for score in every if score >= threshold) and 0 < len(scores) < len(every)


def test_clicking_and_going_back(page, made):
    _, results, _ = made
    page.click("#method-0-slider")
    middle = json.loads(texts(page, "#method-0-data")[0])["thresholds"]
    at = page.run("Number(document.querySelector('#method-0-slider').value)")
    assert abs(at - len(middle) / 2) < 5 and texts(page, "#method-0-threshold output") == [f"{middle[at]:.4f}"]
    # The other method has its own slider.
    assert page.run("document.querySelector('#method-1-slider').value") != str(at)
    page.click("#method-0-threshold .control button")
    assert number(page, "f1") == f"{results['macro_f1']:.4f}"
    np.testing.assert_array_equal(confusion(page), results["confusion"]["counts"])
    end = time.monotonic() + 5
    while not (said := texts(page, "#method-0-threshold [role=status]")[0]) and time.monotonic() < end:
        time.sleep(0.05)
    assert said.startswith(f"Threshold {results['threshold']:.4f}: macro-F1 {results['macro_f1']:.4f}")


def test_rejecting_everything(page):
    page.run("document.querySelector('#method-0-slider').focus()")
    page.press("End", 35)
    assert texts(page, "#method-0-threshold output") == ["above all scores"]
    assert number(page, "accepted").startswith("0.0 %") and confusion(page)[:, :-1].sum() == 0
    assert page.run("document.querySelector('#method-0-slider').getAttribute('aria-valuetext')") == "above all scores"


def test_tables_are_sorted_by_their_headings(page):
    column = "#by-score tbody tr td:nth-child(3)"
    head = "#by-score thead th:nth-child(3)"
    before = texts(page, column)
    numbers = lambda cells: [float(cell.split()[0]) for cell in cells if cell != "–"]
    page.click(f"{head} button")
    down = texts(page, column)
    assert numbers(down) == sorted(numbers(before), reverse=True) and down != before
    assert page.run(f"document.querySelector('{head}').getAttribute('aria-sort')") == "descending"
    page.run(f"document.querySelector('{head} button').focus()")
    page.enter()
    up = texts(page, column)
    assert numbers(up) == sorted(numbers(before))
    missing = before.count("–")
    assert missing and up[-missing:] == down[-missing:] == ["–"] * missing  # last in either order
    page.click(f"{head} button")
    assert texts(page, column) == before
    assert page.run(f"document.querySelector('{head}').getAttribute('aria-sort')") == "none"
    # By name, and lower is better: the smallest comes first.
    page.click("#by-score thead th:nth-child(2) button")
    names = texts(page, "#by-score tbody tr th:nth-child(2)")
    assert names == sorted(names)
    page.click("#overall thead th[data-better=low] button")
    assert page.run("document.querySelector('#overall thead th[data-better=low]').ariaSort") == "ascending"


def test_curves_are_read_with_the_mouse_and_with_keys(page, made):
    _, _, arrays = made
    svg = "#method-0-curves svg.lines"
    x, y = page.center(svg)
    page.move(x, y)
    said = texts(page, "#method-0-curves .readout")[0]
    rate = float(said.split()[1].rstrip(":"))
    fpr, tpr, _ = metrics.roc_curve(arrays["known_scores"], arrays["unknown_scores"])
    assert said.startswith("FPR ") and abs(rate - 0.5) < 0.1
    assert float(said.split()[-1]) == pytest.approx(np.interp(rate, fpr, tpr), abs=2e-4)
    page.run(f"document.querySelector('{svg}').focus()")
    page.press("Home", 36)
    first = page.run(f"document.querySelector('{svg}').getAttribute('aria-valuetext')")
    page.press(*RIGHT)
    second = page.run(f"document.querySelector('{svg}').getAttribute('aria-valuetext')")
    assert first.startswith("FPR 0:") and second.startswith("FPR 0.01:")
    # Numbers of images are read with the bins of the histogram.
    histogram = page.run("[...document.querySelectorAll('svg.lines')].findIndex(e => /histograms/.test(e.ariaLabel))")
    page.run(f"document.querySelectorAll('svg.lines')[{histogram}].focus()")
    page.press(*RIGHT)
    assert " images)" in page.run(f"document.querySelectorAll('svg.lines')[{histogram}].getAttribute('aria-valuetext')")


def test_bars_are_read_with_the_mouse_and_with_keys(page, made):
    _, results, _ = made
    svg = "#method-0-classes svg[data-marks]"
    # The middle of the first bar, in the window.
    x, y, width, height, _ = page.run(
        f"document.querySelector('{svg}').dataset.marks.split(';')[0].split(' ').map(Number)"
    )
    page.center(svg)
    box = page.run(f"(r => [r.x, r.y, r.width])(document.querySelector('{svg}').getBoundingClientRect())")
    scale = box[2] / page.run(f"document.querySelector('{svg}').viewBox.baseVal.width")
    page.move(box[0] + scale * (x + width / 2), box[1] + scale * (y + height / 2))
    first = next(iter(results["per_class"]))
    expected = f"{first}: AUROC {results['per_class'][first]['auroc']:.4f} against all unknown images"
    assert texts(page, "#method-0-classes .readout") == [expected]
    assert page.run(f"document.querySelector('{svg} .mark').getAttribute('hidden')") is None
    page.run(f"document.querySelector('{svg}').focus()")
    page.press("End", 35)
    said = page.run(f"document.querySelector('{svg}').getAttribute('aria-valuetext')")
    assert said.startswith(f"{list(results['per_unknown_class'])[-1]}: AUROC ") and "all known images" in said
    page.press(*LEFT)
    assert texts(page, "#method-0-classes .readout") != [said]


def test_everything_that_moves_has_a_name_and_is_reached_with_tab(page):
    tree = page.send("Accessibility.getFullAXTree")["nodes"]
    named = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in tree
        if not node.get("ignored") and node.get("role", {}).get("value") in ("slider", "button", "image", "img", "link")
    ]
    assert {"slider", "button", "link"} <= {role for role, _ in named}
    assert [role for role, name in named if not name.strip()] == []
    page.run("document.querySelector('#method-0-slider').focus()")
    page.press(*TAB)
    assert page.run("document.activeElement.textContent") == "Run's own"
    assert page.run("document.querySelector('#method-0-slider').labels[0].textContent").startswith("Threshold")


def test_without_a_script_the_page_shows_the_numbers_of_the_results(browser, made):
    _, results, _ = made
    browser.open(made[0], script=False)
    # DevTools can still inspect the page.
    assert browser.run("document.documentElement.dataset.ready") is None
    np.testing.assert_array_equal(confusion(browser), results["confusion"]["counts"])
    assert number(browser, "f1") == f"{results['macro_f1']:.4f}"
    assert browser.run("getComputedStyle(document.querySelector('.control')).display") == "none"
    assert browser.run("document.querySelectorAll('thead th button, .verdict, [role=slider]').length") == 0
    visible = "[...document.querySelectorAll('#method-0-gallery li')].every(e => e.getBoundingClientRect().height > 0)"
    assert browser.run(visible)


def test_a_phone_shows_it_without_scrolling_sideways(browser, made):
    browser.open(made[0], width=390, height=800)
    assert browser.run("document.scrollingElement.scrollWidth") <= 390
    x, y = browser.center("#method-0-slider")
    assert 0 < x < 390 and 0 < y < 800
    width = browser.run("document.querySelector('#method-0-slider').getBoundingClientRect().width")
    assert width > 300  # a separate row
    # Touching a curve shows its values.
    x, y = browser.center("#method-0-curves svg.lines")
    for kind, points in (("touchStart", [{"x": x, "y": y}]), ("touchEnd", [])):
        browser.send("Input.dispatchTouchEvent", type=kind, touchPoints=points)
    assert texts(browser, "#method-0-curves .readout")[0].startswith("FPR 0.")
