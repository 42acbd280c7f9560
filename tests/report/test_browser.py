"""The report page in a real browser: no request, readable on a phone and in the dark, safe from names; its tools."""

import csv
import io
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from tests.made_page import HOSTILE, HOSTILE_NAMES, PALETTE, RUN, full_page, photo, photograph
from vitx.data.source import open_source
from vitx.report.charts import bar_chart, line_chart
from vitx.report.overlay import overlay
from vitx.report.page import Section, write_report
from vitx.report.parts import DASH, Table, class_legend
from vitx.report.pictures import Cell, ColourScale, picture_rows

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium or google-chrome on PATH"),
]
PHONES = (360, 390)
SMALLEST_TEXT = 12  # CSS pixels
SMALLEST_TARGET = 24  # WCAG 2.2, success criterion 2.5.8
TEXT_CONTRAST, GRAPHICS_CONTRAST = 4.5, 3.0  # 1.4.3 and 1.4.11

# What the page's texts look like: [text, size in CSS pixels as shown, contrast with what is behind it].
TEXTS = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = colour => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = colour => colour.slice(0, 3).map(v => v / 255)
    .map(v => v > 0.04045 ? ((v + 0.055) / 1.055) ** 2.4 : v / 12.92)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (; element; element = element.parentElement) {
      const colour = rgba(getComputedStyle(element).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const contrast = (element, colour) => {
    const [a, b] = [light(rgba(colour)), light(behind(element))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const texts = [];
  while (walker.nextNode()) {
    const text = walker.currentNode.data.trim(), element = walker.currentNode.parentElement;
    if (!text || !element.getClientRects().length || element.closest('title')) continue;
    const style = getComputedStyle(element), drawn = element instanceof SVGElement;
    const scale = drawn ? element.getScreenCTM().a : 1;
    texts.push([text, parseFloat(style.fontSize) * scale,
                contrast(element, drawn ? style.fill : style.color)]);
  }
  const drawn = [...document.querySelectorAll('.chart svg [style]:not(defs *)')];
  const series = drawn.filter(e => /--s\\d/.test(e.getAttribute('style'))).map(element => {
    const style = getComputedStyle(element);
    return contrast(element, style.fill === 'none' ? style.stroke : style.fill);
  });
  return {texts, series, paper: light(behind(document.body))};
}"""
# Boxes that reach beyond the page's right edge, but for what lies in a box that scrolls.
WIDE = """() => [...document.body.querySelectorAll('*')]
  .filter(e => !e.parentElement.closest('.scroll') && e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => e.outerHTML.slice(0, 80))"""
SMALL_TARGETS = """least => [...document.querySelectorAll('a, summary, button, label')]
  .map(e => [e.textContent, e.getBoundingClientRect()])
  .filter(([, box]) => Math.min(box.width, box.height) < least).map(([text]) => text)"""
HEADINGS = "[...document.querySelectorAll('h1, h2, h3, h4')].map(e => Number(e.tagName[1]))"
UNNAMED = """[...document.querySelectorAll('img, svg')].filter(e => e instanceof SVGElement
  ? e.getAttribute('aria-hidden') !== 'true'
    && !(e.getAttribute('role') === 'img' && e.getAttribute('aria-label'))
  : !e.alt).map(e => e.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        # A container's root may have no sandbox; the pages are our own.
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@contextmanager
def visit(browser, path, width=1280, scheme="light", **options):
    """The page in a tab of its own; `tab.heard` is what it said and asked for, beside the file itself."""
    phone = width < 600
    context = browser.new_context(
        viewport={"width": width, "height": 800},
        color_scheme=scheme,
        is_mobile=phone,
        has_touch=phone,
        **options,
    )
    tab, url = context.new_page(), path.as_uri()
    tab.heard = []
    tab.on("console", lambda message: tab.heard.append(f"console: {message.text}"))
    tab.on("pageerror", lambda error: tab.heard.append(f"error: {error}"))
    tab.on(
        "dialog", lambda dialog: (tab.heard.append(f"dialog: {dialog.message}"), dialog.dismiss())
    )
    tab.on(
        "request",
        lambda request: (
            request.url == url
            or request.url.startswith("data:")
            or tab.heard.append(f"request: {request.url}")
        ),
    )
    tab.goto(url)
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    yield tab
    context.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page as a run writes it: wide tables, nine methods, pictures, long names."""
    methods = [
        "rollout",
        "raw attention",
        "GradCAM",
        "LRP",
        "partial LRP",
        "transformer attribution",
    ]
    methods += [f"{name}, stable" for name in methods[3:]]
    classes = ["background", "aeroplane", "diningtable", "a class of many words"]
    image, mask = (
        photograph(0),
        np.repeat(np.repeat(np.arange(4).reshape(2, 2), 188, 0), 250, 1)[:375],
    )
    drawn = overlay(image, np.eye(14))
    falling = {
        name: [1 - 0.02 * place * step for step in range(10)] for place, name in enumerate(methods)
    }
    steps = range(2000)
    losses = {"loss": np.linspace(1, 0, len(steps))}
    rows = [[name, *["54.1"] * 9] for name in classes]
    cells = [
        Cell(image, "image 1"),
        Cell(PALETTE[mask], "truth", "90.1 %", "x.png", lies_over=True),
        *[Cell(drawn, "map", "50 %")] * 9,
    ]
    body = [
        "What the page says in running text. " * 5,
        Table(["class", *(f"val: {name}" for name in methods)], rows, "Intersection over union, %"),
        bar_chart(classes, {"seeds": [0.9, 0.4, 0.3, 1.0], "masks": [0.8, 0.5, None, 0.2]}, "IoU", "By class"),
        [
            line_chart(falling, range(0, 100, 10), ("% of pixels removed", "accuracy"), "Perturbation"),
            line_chart(losses, steps, ("step", "loss"), "Loss", in_percent=False),
        ],
        class_legend(classes, PALETTE),
        picture_rows(
            ["image", "truth", *methods], [("predicted and target: diningtable", cells)] * 3, "Each method's map"
        ),
        ColourScale(),
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("page") / "report.html"
    full = full_page("A text")
    write_report(path, **{**full, "sections": [Section("Masks", body), *full["sections"]]})
    return path


def test_page_is_silent_and_asks_for_nothing(browser, page):
    with visit(browser, page) as tab:
        assert tab.evaluate("[...document.images].every(i => i.complete && i.naturalWidth)")
        assert tab.evaluate("document.images.length") > 30
        assert tab.heard == []


def test_browser_refuses_what_the_page_never_has(browser, page, tmp_path):
    """The policy in the page holds where the escaping would not."""
    strange = tmp_path / "strange.html"
    added = f"<script>{RUN}</script><img src='{page.as_uri()}' onerror='{RUN}'><style>@import 'x'</style>"
    strange.write_text(page.read_text().replace("</main>", f"{added}</main>"))
    with visit(browser, strange) as tab:
        assert tab.evaluate("window.ran") is None
        refused = [said for said in tab.heard if "Content Security Policy" in said]
        assert len(refused) >= 3, tab.heard
        assert not [said for said in tab.heard if said.startswith("dialog")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", PHONES)
def test_page_fits_a_phone(browser, page, width, scheme):
    with visit(browser, page, width, scheme) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        assert tab.evaluate(WIDE) == []
        boxes = (
            "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
        )
        assert tab.evaluate(f"{boxes}.length") >= 2, "wide tables are there"
        assert tab.evaluate(f"{boxes}.every(e => e.tabIndex === 0)"), "a keyboard can scroll them"
        assert tab.evaluate(SMALL_TARGETS, SMALLEST_TARGET) == []
        texts = tab.evaluate(TEXTS)["texts"]
        assert len(texts) > 200
        assert [text for text in texts if text[1] < SMALLEST_TEXT] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_curves_stand_out(browser, page, scheme):
    with visit(browser, page, scheme=scheme) as tab:
        found = tab.evaluate(TEXTS)
    assert (found["paper"] < 0.2) == (scheme == "dark")
    assert len(found["texts"]) > 200 and len(found["series"]) > 20
    assert [text for text in found["texts"] if text[2] < TEXT_CONTRAST] == []
    assert [text for text in found["texts"] if text[1] < SMALLEST_TEXT] == []
    assert min(found["series"]) >= GRAPHICS_CONTRAST


def test_nothing_is_cut_where_there_is_room(browser, page):
    with visit(browser, page) as tab:
        assert tab.evaluate(WIDE) == []
        assert tab.evaluate("document.documentElement.scrollWidth") == 1280
        boxes = (
            "[...document.querySelectorAll('.scroll')].filter(e => !e.closest('.chart, footer'))"
        )
        cut = "filter(e => e.scrollWidth > e.clientWidth || e.scrollHeight > e.clientHeight)"
        assert tab.evaluate(f"{boxes}.length") >= 4 and tab.evaluate(f"{boxes}.{cut}.length") == 0


def test_page_can_be_heard(browser, page):
    with visit(browser, page) as tab:
        assert tab.evaluate("document.documentElement.lang") == "en"
        assert tab.title() == "A text"
        assert tab.evaluate(UNNAMED) == []
        levels = tab.evaluate(HEADINGS)
        assert levels[0] == 1 and levels.count(1) == 1 and len(levels) > 2
        assert max(np.diff(levels)) <= 1, "no level is left out"
        assert (
            tab.evaluate("document.querySelectorAll('table:not(:has(th[scope=col]))').length") == 0
        )
        assert (
            tab.evaluate(
                "document.querySelectorAll('main, header, footer, nav[aria-label]').length"
            )
            == 4
        )


def test_each_series_looks_its_own(browser, page):
    looks = """[...document.querySelectorAll('.chart .legend')].map(list => [...list.querySelectorAll('span')]
      .map(e => [e.textContent, getComputedStyle(e).color]))"""
    with visit(browser, page) as tab:
        legends = tab.evaluate(looks)
    assert max(map(len, legends)) == 9
    for looks in (look for legend in legends for look in zip(*legend, strict=True)):
        assert len(set(looks)) == len(looks)


def test_page_prints_in_dark_ink_within_the_paper(browser, page):
    with visit(browser, page, width=718, scheme="dark") as tab:  # A4 less the margins
        tab.emulate_media(media="print", color_scheme="dark")
        assert tab.evaluate(TEXTS)["paper"] > 0.9
        assert (
            tab.evaluate("getComputedStyle(document.querySelector('.scroll')).overflow")
            == "visible"
        )


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_and_never_run(browser, tmp_path, text):
    path = tmp_path / "report.html"
    write_report(path, **full_page(text))
    assert_only_shown(browser, path, [text])


def test_hostile_folders_are_shown_and_never_run(browser, tmp_path):
    for name in HOSTILE_NAMES:
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.fromarray(photo(0)).save(tmp_path / "data" / name / f"{name}.png")
    source = open_source("folder", "all", tmp_path / "data")
    ids = [example.id for example in source]
    assert len(ids) == len(HOSTILE_NAMES) == len(source.classes) - 1
    rows = [
        (e.id, [Cell(e.image, f"image {e.id}"), Cell(e.image, f"map of {e.id}")]) for e in source
    ]
    body = [
        class_legend(source.classes, PALETTE),
        bar_chart(source.classes, {"seeds": [0.5] * len(source.classes)}, "IoU", "By class"),
        picture_rows(["image", "map"], rows, source.name),
    ]
    path = tmp_path / "report.html"
    write_report(path, title=source.name, results={"classes": ids}, sections=[Section("s", body)])
    assert_only_shown(browser, path, [*source.classes, *ids])


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    """A page with a table of every kind of cell, and a mask over its image."""
    rows = [
        ["=1+1", "9.5", "2 min 05 s", "+1.0 [-3.0, 2.0]", "1,000"],
        ['a "b", c', DASH, "99.0 s", "-2.5 [0.0, 1.0]", "20"],
        ["Zoë", "10.0", "1 h 00 min", "+0.5 [0.1, 0.2]", "3"],
    ]
    table = Table(["class", "mIoU", "time", "ahead", "n"], rows, "Of all: classes")
    mask = np.tile(PALETTE[3], (40, 40, 1))
    pictures = [
        (name, [Cell(photo(seed, 40), f"image {name}"), Cell(mask, f"mask of {name}", note, "m.png", lies_over=True)])
        for seed, (name, note) in enumerate([("i10", "50.0 %"), ("i9", "7.5 %"), ("i11", "100.0 %")])
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("tools") / "report.html"
    sections = [Section("s", [table, picture_rows(["image", "mask"], pictures, "Masks")])]
    write_report(path, title="t", results={}, sections=sections)
    return path


ROWS = (
    "table => [...table.tBodies[0].rows].map(r => [...r.cells].map(c => c.textContent.trim())[0])"
)


def sorted_by(table, header):
    """The first cell of each row after a click on a header, and the header's `aria-sort`."""
    head = table.get_by_role("columnheader").filter(has_text=header)
    head.get_by_role("button").click()
    return [name[:2] for name in table.evaluate(ROWS)], head.get_attribute("aria-sort")


def test_tables_are_sorted_by_value(browser, tools):
    with visit(browser, tools) as tab:
        table = tab.locator("table").first
        for header, order in {"time": "a=Z", "ahead": "aZ=", "n": "Za="}.items():
            names = {"a": "a ", "=": "=1", "Z": "Zo"}
            expected = [names[letter] for letter in order]
            assert sorted_by(table, header) == (expected, "ascending")
            assert sorted_by(table, header) == (expected[::-1], "descending")
            assert table.locator("[aria-sort]").count() == 1
        # No value is last in either order.
        assert sorted_by(table, "mIoU") == (["=1", "Zo", "a "], "ascending")
        assert sorted_by(table, "mIoU") == (["Zo", "=1", "a "], "descending")
        assert sorted_by(table, "class") == (["=1", "a ", "Zo"], "ascending")
        pictures = tab.locator("table").nth(1)
        assert sorted_by(pictures, "mask") == (["i9", "i1", "i1"], "ascending")
        assert pictures.evaluate(ROWS) == ["i9", "i10", "i11"]
        # By keyboard alone.
        pictures.get_by_role("button").first.focus()
        for _ in range(2):
            tab.keyboard.press("Enter")
        assert pictures.evaluate(ROWS) == ["i11", "i10", "i9"]
        assert tab.heard == []


def test_tables_are_downloaded_as_they_are_sorted(browser, tools):
    with visit(browser, tools) as tab:
        sorted_by(tab.locator("table").first, "n")
        found = []
        for button in tab.get_by_role("button", name="CSV").all():
            with tab.expect_download() as download:
                button.click()
            found.append(download.value.suggested_filename)
            with open(download.value.path(), newline="", encoding="utf-8") as file:
                found.append(list(csv.reader(file)))
        assert tab.heard == []
    assert found == [
        "of-all-classes.csv",
        [
            ["class", "mIoU", "time", "ahead", "n"],
            ["Zoë", "10.0", "1 h 00 min", "+0.5 [0.1, 0.2]", "3"],
            ['a "b", c', "", "99.0 s", "-2.5 [0.0, 1.0]", "20"],
            ["'=1+1", "9.5", "2 min 05 s", "+1.0 [-3.0, 2.0]", "1,000"],  # no formula
        ],
        "masks.csv",
        [["image", "mask"], ["i10", "50.0 %"], ["i9", "7.5 %"], ["i11", "100.0 %"]],
    ]


@pytest.mark.parametrize("width", [1280, *PHONES])
def test_a_picture_is_zoomed_and_left_by_escape(browser, tools, width):
    with visit(browser, tools, width) as tab:
        dialog, masks = tab.locator("dialog"), tab.locator(".over img")
        shown = masks.first.bounding_box()
        masks.first.click()
        large = dialog.locator("img").bounding_box()
        assert large["width"] > 2 * shown["width"] and large["width"] == large["height"]
        assert large["x"] >= 0 and large["x"] + large["width"] <= width
        assert "mask of i10" in dialog.inner_text()
        tab.keyboard.press("Escape")
        assert not dialog.is_visible() and masks.first.evaluate("e => e === document.activeElement")
        tab.keyboard.press("Enter")
        assert dialog.is_visible()
        dialog.get_by_role("button", name="Close").click()
        assert not dialog.is_visible() and tab.heard == []


def colour(tab, locator):
    """The colour in the middle of an element, as drawn."""
    box = locator.bounding_box()
    clip = {
        "x": box["x"] + box["width"] / 2,
        "y": box["y"] + box["height"] / 2,
        "width": 1,
        "height": 1,
    }
    return np.asarray(Image.open(io.BytesIO(tab.screenshot(clip=clip))).convert("RGB"))[0, 0]


def test_the_slider_shows_the_image_below_the_mask(browser, tools):
    with visit(browser, tools) as tab:
        slider, mask = tab.locator("input").first, tab.locator(".over img").first
        image = colour(tab, tab.locator(".pictures img").first).astype(int)
        assert np.abs(image - PALETTE[3]).max() > 30
        for share in (0.0, 0.3, 1.0):
            slider.fill(str(100 * share))
            expected = (1 - share) * image + share * PALETTE[3].astype(int)
            np.testing.assert_allclose(colour(tab, mask), expected, atol=3)
        mask.click()  # the zoomed picture keeps it
        np.testing.assert_allclose(colour(tab, tab.locator("dialog img")), PALETTE[3], atol=3)
        tab.locator("dialog input").fill("0")
        assert slider.input_value() == "0"


def test_page_reads_without_scripts(browser, tools):
    with visit(browser, tools, java_script_enabled=False) as tab:
        assert tab.locator("table").count() == 2 and tab.get_by_role("button").count() == 0
        assert tab.get_by_text("100.0 %").is_visible()
        assert tab.locator(".over img").first.is_visible()


def assert_only_shown(browser, path, texts):
    """The texts are read as text; without its policy, so that the escaping stands alone, nothing runs."""
    page = path.read_text()
    bare = path.with_name("bare.html")
    bare.write_text(page.replace("Content-Security-Policy", "nothing"))
    assert bare.read_text() != page
    with visit(browser, bare) as tab:
        tab.mouse.move(100, 100)
        tab.evaluate(
            "document.querySelectorAll('*').forEach(e => e.dispatchEvent(new Event('mouseover')))"
        )
        assert tab.evaluate("window.ran") is None
        assert tab.heard == []
        shown = tab.evaluate("document.body.textContent")
        assert [text for text in texts if text not in shown] == []
        assert (
            tab.evaluate("document.querySelectorAll('script, iframe, [onload], [onerror]').length")
            == 1  # its own script
        )
