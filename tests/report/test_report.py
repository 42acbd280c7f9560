"""The report page: whole, escaped, self-contained, and small enough to send."""

import base64
import io
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tests.made_page import HOSTILE, PALETTE, RESULTS, full_page, photo, photograph, relevance
from vitx.data.transforms import resize_mask
from vitx.report import page as report
from vitx.report.charts import nice_ticks
from vitx.report.parts import Html, markup
from vitx.report.pictures import SHOWN, STORED, colour_map, encode, picture

VOID = {"meta", "img", "br"}
ATTACK = "<script>alert(\"1\")</script> & 'x'"


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails where tags do not nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> inside {self.open}"
        self.open.pop()

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    def values(self, tag, name):
        return [value for t, n, value in self.attributes if (t, n) == (tag, name)]


@pytest.mark.parametrize("attack", HOSTILE)
def test_every_text_is_escaped(tmp_path, attack):
    report.write_report(tmp_path / "attack.html", **full_page(attack))
    report.write_report(tmp_path / "plain.html", **full_page("plain"))
    hostile, plain = (Page((tmp_path / f"{n}.html").read_text()) for n in ("attack", "plain"))
    assert hostile.tags == plain.tags, "text has become markup"
    assert attack in hostile.texts, "the text itself is shown"
    assert attack in hostile.values("img", "alt")
    assert not [name for _, name, _ in hostile.attributes if name.startswith("on")]
    assert len(hostile.attributes) == len(plain.attributes)


def test_a_name_that_is_no_unicode_is_written(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")  # Latin-1, where names are UTF-8
    report.write_report(tmp_path / "p.html", title=name, results={}, sections=[])
    assert "<h1>caf?.jpg</h1>" in (tmp_path / "p.html").read_text()


def test_page_needs_nothing_from_outside(tmp_path):
    path = tmp_path / "folder" / "report.html"
    report.write_report(path, **full_page())
    text = path.read_text()
    parsed = Page(text)
    assert not set(parsed.tags) & {"script", "link", "iframe", "object", "base", "form"}
    assert not re.search(r"""(https?:|file:|["'(=\s]//[a-z]|url\(|@import)""", text)
    assert all(source.startswith("data:image/") for source in parsed.values("img", "src"))
    assert all(link.startswith("#section-") for link in parsed.values("a", "href"))
    assert [link[1:] for link in parsed.values("a", "href")] == parsed.values("section", "id")
    assert "default-src 'none'" in " ".join(parsed.values("meta", "content"))
    assert [file.name for file in path.parent.iterdir()] == ["report.html"], "nothing left behind"


def test_page_is_accessible_and_fits_a_phone():
    parsed = Page(report.page(**full_page()))
    assert parsed.values("html", "lang") == ["en"]
    assert "width=device-width, initial-scale=1" in parsed.values("meta", "content")
    assert len(parsed.values("img", "alt")) == parsed.tags.count("img") == 4
    drawings = [value for tag, name, value in parsed.attributes if (tag, name) == ("svg", "role")]
    assert drawings == ["img"] * 2
    assert all(parsed.values("svg", "aria-label"))
    scrolled = [value for value in parsed.values("div", "class") if value == "scroll"]
    assert len(scrolled) == parsed.tags.count("table"), "every table scrolls in a box of its own"


def test_headline_figures_and_all_results_are_there():
    texts = Page(report.page(title="t", results=RESULTS, sections=[])).texts
    for figure in ("93.1 %", "44.6 %", "50.9 %", "+6.3 points over the seeds", "4 min 22 s"):
        assert figure in texts
    assert '"iou": [\n      0.8,\n      0.3\n    ]' in "".join(texts)
    assert "Classifier mAP" not in Page(report.page(title="t", results={}, sections=[])).texts
    only_masks = Page(report.page(title="t", results={"masks": {"miou": 0.5}}, sections=[])).texts
    assert "50.0 %" in only_masks


@pytest.mark.exhaustive
def test_hundred_images_stay_below_ten_megabytes(tmp_path):
    generator = np.random.default_rng(0)
    photographs = [photograph(seed) for seed in range(4)]
    maps = [report.heatmap_overlay(p, relevance(seed)) for seed, p in enumerate(photographs)]
    coarse = generator.integers(0, 4, (4, 25, 33)).astype(np.uint8)
    masks = [PALETTE[resize_mask(mask, (375, 500))] for mask in coarse]
    made, explained = [], []
    for index in range(100):
        image, drawn, mask = (kind[index % 4] for kind in (photographs, maps, masks))
        made.append([(image, "image"), (mask, "truth"), (drawn, "seed map"), *[(mask, "mask")] * 5])
        explained.append([(image, "image"), *[(drawn, "map")] * 9])
    body = [
        report.picture_rows(["c"] * 8, made, "From image to mask"),
        report.picture_rows(["c"] * 10, explained, "Each method's map"),
    ]
    path = tmp_path / "report.html"
    report.write_report(path, title="t", results={}, sections=[report.Section("s", body)])
    assert 4e6 < path.stat().st_size < 10e6


def test_figures_are_right_aligned_by_column():
    rows = [["a", 1, "54.1", "x", None], ["b", 2.5, "[50.1, 51.7]", "3", "4 min 05 s"]]
    text = report.table(["name", "n", "interval", "mixed", "time"], rows, "c")
    heads = re.findall(r'<th scope="col"( class="figure")?>(\w+)', text)
    assert [name for figure, name in heads if figure] == ["n", "interval"]
    text = report.table(["name", "time"], [["a", "3.2 s"], ["b", report.strong("4")]], "c")
    assert text.count('class="figure"') == 3
    with pytest.raises(ValueError, match="row 1 of table 'c' has 1 cells, not 2"):
        report.table(["a", "b"], [[1, 2], [1]], "c")


def test_markup_escapes_once():
    assert markup("a<b") == "a&lt;b"
    assert markup(markup("a<b")) == "a&lt;b"
    assert markup(Html("<b>x</b>")) == "<b>x</b>"
    assert 'aria-label="a &lt; b"' in report.table(["x"], [["y"]], "a < b")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.31, "8.3 s"), (99.97, "1 min 40 s"), (245, "4 min 05 s"), (7800, "2 h 10 min")],
)
def test_duration(seconds, text):
    assert report.duration(seconds) == text


def test_percent_shows_a_dash_for_nothing():
    dash = "\N{EN DASH}"
    assert [report.percent(v) for v in (0.5094, None, float("nan"))] == ["50.9", dash, dash]


def test_colour_map_grows_brighter():
    colours = colour_map(np.linspace(0, 1, 200)) / 255.0
    linear = np.where(colours > 0.04045, ((colours + 0.055) / 1.055) ** 2.4, colours / 12.92)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    lightness = np.cbrt(luminance)
    assert np.all(np.diff(lightness) > -1e-3)
    steps = np.diff(lightness[::20])
    assert steps.max() < 2.5 * steps.min(), "the steps of lightness are uneven"
    np.testing.assert_array_equal(colour_map([-1.0, 2.0]), colour_map([0.0, 1.0]))


def test_heatmap_overlay_puts_colour_where_the_map_is():
    image = np.full((8, 12, 3), 100, np.uint8)
    heat = np.array([[0.0, 5.0, 10.0]])
    drawn = report.heatmap_overlay(image, heat, strength=1.0)
    assert drawn.dtype == np.uint8 and drawn.shape == image.shape
    np.testing.assert_array_equal(drawn[0, 0], colour_map(0.0))
    np.testing.assert_array_equal(drawn[7, 11], colour_map(1.0))
    np.testing.assert_array_equal(report.heatmap_overlay(image, heat, strength=0.0), image)
    constant = report.heatmap_overlay(image, np.full((2, 2), 4.0), strength=1.0)
    np.testing.assert_array_equal(constant, np.broadcast_to(colour_map(0.0), image.shape))
    with pytest.raises(ValueError, match="finite"):
        report.heatmap_overlay(image, np.array([[np.nan]]))


def test_mask_overlay_leaves_the_background():
    image, mask = photo(3, 8), np.zeros((8, 8), np.uint8)
    mask[2, 3], mask[4, 5] = 7, 255
    drawn = report.mask_overlay(image, mask, PALETTE, strength=1.0)
    np.testing.assert_array_equal(drawn[mask == 0], image[mask == 0])
    np.testing.assert_array_equal(drawn[2, 3], PALETTE[7])
    np.testing.assert_array_equal(drawn[4, 5], PALETTE[255])
    with pytest.raises(ValueError, match="must have the image's size"):
        report.mask_overlay(image, mask[:4], PALETTE)


def test_masks_are_stored_exactly_and_photographs_small():
    mask = PALETTE[np.random.default_rng(4).integers(0, 21, (50, 70))]
    kind, data = encode(mask)
    assert kind == "png"
    np.testing.assert_array_equal(Image.open(io.BytesIO(data)).convert("RGB"), mask)
    kind, data = encode(photo(5, 600))
    assert kind == "webp"
    assert Image.open(io.BytesIO(data)).size == (STORED, STORED)
    with pytest.raises(ValueError, match="uint8"):
        encode(np.zeros((4, 4, 3)))


def test_small_pictures_are_enlarged_by_whole_numbers():
    small, large = Page(picture(photo(6, 32), "a")), Page(picture(photo(7, 500), "b"))
    assert small.values("img", "width") == ["128"]
    assert small.values("img", "class") == ["pixelated"]
    assert large.values("img", "width") == [str(SHOWN)]
    assert not large.values("img", "class")
    source = small.values("img", "src")[0]
    stored = Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))
    assert stored.size == (32, 32), "scaling is left to the browser"


def test_picture_rows_must_fit():
    cell = (photo(8, 8), "x")
    with pytest.raises(ValueError, match="row 1 of pictures has 1 cells for 2 columns"):
        report.picture_rows(["a", "b"], [[cell, cell], [cell]], "c")
    with pytest.raises(ValueError, match="2 names for 1 rows"):
        report.picture_rows(["a"], [[cell]], "c", names=["x", "y"])


def path_points(svg):
    """The points of each curve, split where the pen is lifted."""
    curves = re.findall(r'<path class="curve"[^>]* d="(M[^"]*\.[^"]*)"', svg)
    numbers = [
        [re.findall(r"[-\d.]+ [-\d.]+", part) for part in curve.split("M")[1:]] for curve in curves
    ]
    return [[[tuple(map(float, p.split())) for p in part] for part in c] for c in numbers]


def test_line_chart_puts_points_where_they_belong():
    chart = report.line_chart({"a": [0.0, 0.5, 1.0]}, [0, 50, 100], ("x", "y"), "c")
    ((points,),) = path_points(chart)
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x0 < x1 < x2 and y0 > y1 > y2  # SVG's y grows downwards
    np.testing.assert_allclose([x1, y1], [(x0 + x2) / 2, (y0 + y2) / 2], atol=0.1)
    assert "<title>a: 50.0</title>" in chart


def test_line_chart_passes_over_none_and_breaks_at_nan():
    nan = float("nan")
    chart = report.line_chart(
        {"a": [1, None, 2, 3], "b": [1, nan, 2, 3]}, [0, 1, 2, 3], ("x", "y"), "c", in_percent=False
    )
    joined, broken = path_points(chart)
    assert [len(part) for part in joined] == [3]
    assert [len(part) for part in broken] == [1, 2]


def test_line_chart_thins_long_curves():
    values = np.sin(np.arange(20_000) / 500)
    chart = report.line_chart({"a": values}, np.arange(20_000), ("x", "y"), "c", in_percent=False)
    ((points,),) = path_points(chart)
    assert len(points) == 400 and len(chart) < 20_000


def test_charts_refuse_what_cannot_be_drawn():
    with pytest.raises(ValueError, match="nothing to draw in chart 'c'"):
        report.line_chart({"a": [None, float("nan")]}, [0, 1], ("x", "y"), "c")
    with pytest.raises(ValueError, match="'a' has 1 values for 2"):
        report.line_chart({"a": [1]}, [0, 1], ("x", "y"), "c")
    with pytest.raises(ValueError, match="'a' has 1 values for 2 groups"):
        report.bar_chart(["g", "h"], {"a": [1]}, "x", "c")


def test_bars_are_as_long_as_their_values():
    chart = report.bar_chart(["g", "h"], {"a": [0.2, 0.4], "b": [0.8, None]}, "IoU", "c")
    widths = [float(w) for w in re.findall(r'<rect x="[^"]*" y="[^"]*" width="([\d.]+)"', chart)]
    np.testing.assert_allclose(np.array(widths) / widths[0], [1, 4, 2, 0], atol=0.01)
    for text in ("20.0", "80.0", "40.0", "\N{EN DASH}"):
        assert f">{text}</text>" in chart


@pytest.mark.parametrize("low", [-3.7, 0.0, 0.91, 1e-4])
@pytest.mark.parametrize("spread", [0.0, 1e-3, 0.35, 1.0, 900.0])
def test_ticks_are_round_and_enclose(low, spread):
    ticks = nice_ticks(low, low + spread)
    assert ticks[0] <= low + 1e-9 and ticks[-1] >= low + spread - 1e-9
    assert 2 <= len(ticks) <= 9
    steps = np.diff(ticks)
    np.testing.assert_allclose(steps, steps[0])
    mantissa = steps[0] / 10 ** np.floor(np.log10(steps[0]) + 1e-9)
    assert np.isclose([1, 2, 5], mantissa).any()
