"""The report page: whole, escaped, self-contained, and small enough to send."""

import base64
import hashlib
import io
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from tests.made_page import HOSTILE, PALETTE, RESULTS, full_page, photo, photograph, relevance
from tests.runs import KNOWN
from vitx.data.transforms import resize_mask
from vitx.report.charts import bar_chart, line_chart
from vitx.report.overlay import overlay
from vitx.report.page import Section, write_report
from vitx.report.parts import DASH, Table, duration, percent
from vitx.report.pictures import (
    SHOWN,
    STORED,
    Cell,
    encode,
    picture_rows,
)

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Tags, those drawn in charts, attributes and text of a page; fails where tags do not nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.drawn, self.attributes, self.texts = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        (self.drawn if "svg" in self.open else self.tags).append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> inside {self.open}"
        self.open.pop()

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.script = data
        elif self.open[-1:] != ["style"]:
            self.texts.append(data)

    def values(self, tag, name):
        return [value for t, n, value in self.attributes if (t, n) == (tag, name)]


@pytest.fixture
def write(tmp_path):
    """Writes a page and returns its text."""

    def written(title="t", results=None, sections=(), **arguments):
        path = tmp_path / "folder" / "report.html"
        write_report(path, title=title, results=results or {}, sections=sections, **arguments)
        assert [file.name for file in path.parent.iterdir()] == ["report.html"], "nothing left over"
        return path.read_text()

    return written


@pytest.mark.parametrize("attack", HOSTILE)
def test_every_text_is_escaped(write, attack):
    hostile, plain = Page(write(**full_page(attack))), Page(write(**full_page("plain")))
    assert hostile.tags == plain.tags, "text has become markup"
    assert set(hostile.drawn) == set(plain.drawn)
    assert attack in hostile.texts, "the text itself is shown"
    assert attack in hostile.values("img", "alt")
    assert {name for _, name, _ in hostile.attributes} <= {name for _, name, _ in plain.attributes}
    assert hostile.script == plain.script
    links = [link for link in hostile.values("a", "href") if link[0] != "#"]
    # A scheme would need a colon.
    assert {unquote(link) for link in links} == {attack} and not any(":" in link for link in links)


def test_a_name_that_is_no_unicode_is_written(write):
    name = os.fsdecode(b"caf\xe9.jpg")  # Latin-1, where names are UTF-8
    text = write(title=name, sections=[Section(name, [bar_chart([name], {name: [0.5]}, "", name)])])
    assert "<h1>caf?.jpg</h1>" in text
    assert ">caf?.jpg</text>" in text


def test_page_needs_nothing_from_outside(write):
    text = write(**full_page())
    parsed = Page(text)
    assert not set(parsed.tags) & {"link", "iframe", "object", "base", "form"}
    assert parsed.tags.count("script") == 1 and not parsed.values("script", "src")
    assert not re.search(r"""(https?:|file:|["'(=\s]//[a-z]|@import)""", text)
    assert not re.search(r"fetch|XMLHttp|import|eval|innerHTML|localStorage", parsed.script)
    assert set(re.findall(r"url\((#|data:image/webp;|.)", text)) == {"#", "data:image/webp;"}
    assert all(source.startswith("data:image/") for source in parsed.values("img", "src"))
    inside = [link[1:] for link in parsed.values("a", "href") if link[0] == "#"]
    assert inside == parsed.values("section", "id")
    policy = " ".join(parsed.values("meta", "content"))
    digest = base64.b64encode(hashlib.sha256(parsed.script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_page_is_accessible_and_fits_a_phone(write):
    parsed = Page(write(**full_page()))
    assert parsed.values("html", "lang") == ["en"]
    assert "width=device-width, initial-scale=1" in parsed.values("meta", "content")
    assert len(parsed.values("img", "alt")) == parsed.tags.count("img") == 3
    assert parsed.values("svg", "role") == ["img"] * parsed.tags.count("svg")
    assert all(parsed.values("svg", "aria-label"))
    scrolled = [value for value in parsed.values("div", "class") if value == "scroll"]
    assert len(scrolled) == parsed.tags.count("table"), "every table scrolls in a box of its own"


def test_equal_input_gives_equal_bytes(write):
    assert write(**full_page()) == write(**full_page())


def test_headline_figures_and_all_results_are_there(write):
    tiles = [
        tile for name in ("classifier", "masks", "report") for tile in KNOWN[name].tiles(RESULTS)
    ]
    texts = Page(write(results=RESULTS, tiles=tiles)).texts
    for figure in ("93.1 %", "44.6 %", "50.9 %", "4 min 22 s"):
        assert figure in texts
    assert '"iou": [\n      0.8,\n      0.3\n    ]' in "".join(texts)
    assert KNOWN["masks"].tiles({}) == []


@pytest.mark.parametrize(
    ("mious", "highest", "remark"),
    [
        ((0.4, 0.5, 0.1, 0.6), ["refined masks"], "20.0 points above seeds, 10.0 points above CRF, low alpha"),
        ((0.4, 0.2, 0.5, 0.45), ["CRF, high alpha"], "5.0 points above seeds, 5.0 points below CRF, high alpha"),
        ((0.7, 0.2, 0.1, 0.7), ["seeds", "refined masks"], "0.0 points above seeds, 50.0 points above CRF, low alpha"),
        ((0.4, 0.5, 0.1, 0.6, 0.7), ["network"], "20.0 points above seeds, 10.0 points above CRF, low alpha"),
    ],
)  # fmt: skip
def test_the_best_step_is_marked_whichever_it_is(mious, highest, remark):
    kinds = ("seeds", "crf_low", "crf_high", "masks", "segmenter")
    results = {kind: {"miou": miou} for kind, miou in zip(kinds, mious, strict=False)}
    tiles = KNOWN["masks"].tiles(results)
    assert [tile.value for tile in tiles] == [f"{100 * miou:.1f} %" for miou in mious]
    assert [tile.name for tile in tiles if tile.mark] == [f"mIoU: {name}" for name in highest]
    assert tiles[3].remark == remark


@pytest.mark.exhaustive
def test_hundred_images_stay_below_ten_megabytes(write):
    generator = np.random.default_rng(0)
    photographs = [photograph(seed) for seed in range(4)]
    maps = [overlay(p, relevance(seed)) for seed, p in enumerate(photographs)]
    coarse = generator.integers(0, 4, (4, 25, 33)).astype(np.uint8)
    masks = [PALETTE[resize_mask(mask, (375, 500))] for mask in coarse]
    made, explained = [], []
    for index in range(100):
        image, drawn, mask = (kind[index % 4] for kind in (photographs, maps, masks))
        over = Cell(mask, "mask", "50.0 %", "m.png", lies_over=True)
        made.append(("n", [Cell(image, "image"), over, Cell(drawn, "seed map"), *[over] * 5]))
        explained.append(("n", [Cell(image, "image"), *[Cell(drawn, "map")] * 9]))
    body = [
        picture_rows(["c"] * 8, made, "From image to mask"),
        picture_rows(["c"] * 10, explained, "Each method's map"),
    ]
    assert 4e6 < len(write(sections=[Section("s", body)])) < 10e6


def test_columns_of_figures_are_right_aligned(write):
    rows = [["a", "b", "1", DASH], ["c", "d", "[2, 3]", "4"]]
    parsed = Page(write(sections=[Section("s", [Table(["1", "2", "3", "4"], rows, "c", texts=2)])]))
    assert parsed.values("th", "class") == ["figure"] * 2
    assert parsed.values("td", "class") == ["figure"] * 4


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.31, "8.3 s"), (99.97, "1 min 40 s"), (245, "4 min 05 s"), (7800, "2 h 10 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_percent_shows_a_dash_for_nothing():
    assert [percent(v) for v in (0.5094, None, float("nan"))] == ["50.9", DASH, DASH]


def test_a_mask_lies_over_its_image_with_figure_and_file(write):
    mask = PALETTE[np.zeros((40, 40), np.uint8)]
    cells = [
        Cell(photo(1, 40), "image"),
        Cell(mask, "refined", "81.5 %", "masks/val/a %2F.png", lies_over=True),
        Cell(mask, "map", "constant: shows nothing"),
    ]
    section = Section("s", [picture_rows(["i", "m", "n"], [("val_7", cells)], "c")])
    parsed = Page(write(sections=[section]))
    (below,) = parsed.values("tr", "style")
    assert below == f"--below:url({parsed.values('img', 'src')[0]})"
    assert parsed.values("span", "class") == ["enlarged", "over enlarged", "enlarged"]
    assert [text for text in parsed.texts if text.strip()][-5:-1] == [
        "val_7", "81.5 %", "constant: shows nothing", "All results, as in results.json"
    ]  # fmt: skip
    assert parsed.values("a", "href")[-1] == "masks/val/a%20%252F.png"


def test_masks_are_stored_exactly_and_photographs_small():
    mask = PALETTE[np.random.default_rng(4).integers(0, 21, (50, 70))]
    np.testing.assert_array_equal(Image.open(io.BytesIO(encode(mask))).convert("RGB"), mask)
    stored = encode(photo(5, 600))
    assert Image.open(io.BytesIO(stored)).size == (STORED, STORED)
    assert len(stored) < STORED**2 * 3 / 2


def test_small_pictures_are_enlarged_by_whole_numbers():
    (name, (small, large, empty)) = picture_rows(
        ["a"] * 3, [("n", [Cell(photo(6, 32), "a"), Cell(photo(7, 600), "b"), None])], "c"
    ).rows[0]
    assert name == "n" and empty is None
    assert small.width == small.height == SHOWN // 32 * 32 and large.width == SHOWN
    assert small.enlarged and not large.enlarged
    stored = Image.open(io.BytesIO(base64.b64decode(small.source.split(",")[1])))
    assert stored.size == (32, 32), "scaling is left to the browser"


def curves(chart):
    """The points of each curve, split where the pen is lifted."""
    paths = re.findall(r'<path d="(M[^"]*)"[^>]*style="fill: none;[^"]*var\(--s\d', chart.svg)
    return [
        [
            np.array(part.replace("L", "").split(), float).reshape(-1, 2)
            for part in path.split("M")[1:]
        ]
        for path in paths
    ]


def test_line_chart_puts_points_where_they_belong():
    chart = line_chart({"a": [0.0, 0.5, 1.0]}, [0, 50, 100], ("x", "y"), "c")
    (((x0, y0), (x1, y1), (x2, y2)),) = curves(chart)[0]
    assert x0 < x1 < x2 and y0 > y1 > y2  # SVG's y grows downwards
    np.testing.assert_allclose([x1, y1], [(x0 + x2) / 2, (y0 + y2) / 2], atol=0.1)
    assert chart.listing.rows == [["0", "0.0"], ["50", "50.0"], ["100", "100.0"]]


def test_line_chart_passes_over_none_and_breaks_at_nan():
    series = {"a": [1, None, 2, 3], "b": [1, float("nan"), 2, 3], "none": [None] * 4}
    chart = line_chart(series, [0, 1, 2, 3], ("x", "y"), "c", in_percent=False)
    joined, broken = curves(chart)
    assert [len(part) for part in joined] == [3]
    assert [len(part) for part in broken] == [1, 2]
    assert chart.listing.rows[1] == ["1", DASH, DASH, DASH]


def test_series_look_the_same_in_several_charts():
    a, b = (line_chart({name: [0, 1]}, [0, 1], ("x", "y"), "c", among="ab") for name in "ab")
    alone = line_chart({"b": [0, 1]}, [0, 1], ("x", "y"), "c")
    assert a.legend[0][1:] != b.legend[0][1:]
    assert alone.legend[0][1:] == a.legend[0][1:]
    assert "var(--s1)" in b.svg and "var(--s0)" not in b.svg


def test_long_curves_stay_small_and_have_no_table():
    x = np.arange(20_000)
    chart = line_chart({"a": np.sin(x / 500)}, x, ("x", "y"), "c", in_percent=False)
    assert len(chart.svg) < 100_000 and chart.listing is None


def test_bars_are_as_long_as_their_values():
    chart = bar_chart(["g", "h"], {"a": [0.2, 0.4], "b": [0.8, None]}, "IoU", "c")
    bars = re.findall(
        r'<path d="M ([\d.]+) [\d.]+ \nL ([\d.]+) [^"]*" clip[^>]*var\(--s\d', chart.svg
    )
    lengths = np.array(bars, float) @ [-1, 1]
    np.testing.assert_allclose(lengths / lengths[0], [1, 2, 4, 0], atol=0.01)
    for text in ("● 20.0", "● 40.0", "■ 80.0", f"■ {DASH}"):
        assert f">{text}</text>" in chart.svg


def test_matplotlib_is_imported_where_a_page_is_drawn():
    code = "import sys, vitx, train, evaluate; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
