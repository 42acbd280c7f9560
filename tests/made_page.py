"""A report page with every part, made in memory: for the tests that parse it and those that open it in a browser."""

import numpy as np
from PIL import Image

from benchmarks.loader import photograph as made_photograph
from vitx.report.charts import bar_chart, line_chart
from vitx.report.overlay import overlay
from vitx.report.page import Section, Tile
from vitx.report.parts import Files, Fold, Table, class_legend
from vitx.report.pictures import Cell, ColourScale, picture_rows

PALETTE = np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8)
RESULTS = {
    "classifier": {"map": 0.931},
    "seeds": {"miou": np.float64(0.446)},
    "crf_low": {"miou": 0.523},
    "crf_high": {"miou": 0.2},
    "masks": {"miou": 0.509, "iou": np.array([0.8, 0.3])},
    "stages": {"classifier": 250.0, "seeds": 12.5},
}
RUN = "window.ran = 1; alert(1)"
# No name of a file has a slash, so these may also name classes and images.
HOSTILE_NAMES = (
    f"<script>{RUN}<",
    f'"><img src=x onerror="{RUN}">',
    f"' onmouseover='{RUN}' autofocus onfocus='{RUN}",
    f"<svg onload={RUN.replace(' ', '')}>",
    "&lt;b&gt; &amp; &#60;i&#62;",
    "\N{RIGHT-TO-LEFT OVERRIDE}gpj.exe",
    "猫 \N{ZERO WIDTH JOINER}\N{CAT FACE} کتاب \N{COMBINING ACUTE ACCENT}",
)
HOSTILE = (
    *HOSTILE_NAMES,
    f"</title><script>{RUN}</script>",
    f"</style></svg></pre><script>{RUN}</script>",
    f"--><script>{RUN}</script>]]>",
    "javascript:" + RUN,
)


def photo(seed, size=64):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def photograph(seed):
    """Of VOC's size and detail, uint8 (375, 500, 3)."""
    return np.asarray(made_photograph((375, 500), np.random.default_rng(seed)))


def relevance(seed):
    """A map (28, 28) with a few peaks and some noise."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.random((6, 6), np.float32) ** 3)
    return np.asarray(coarse.resize((28, 28))) + 0.15 * generator.random((28, 28))


def full_page(text="plain"):
    """The arguments of a page with every part, `text` wherever text can stand."""
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 10:30], mask[50:] = 3, 255
    grid = np.random.default_rng(2).random((16, 16))
    cells = [
        Cell(photo(1), text),
        Cell(PALETTE[mask], text, text, text, lies_over=True),
        Cell(overlay(photo(1), grid), text, text),
        None,
    ]
    body = [
        text,
        Table([text, "mIoU"], [[text, "0.5"], ["b", text]], text),
        Fold(text, {text: text, "nested": {"key": text}}),
        class_legend([text, "b"], PALETTE),
        ColourScale(),
        Files({text: [text]}),
        [
            line_chart({text: [0.1, None, 0.4], "b": [0, 1, 2]}, [0, 1, 2], (text,) * 2, text),
            bar_chart([text, "b"], {text: [0.1, float("nan")]}, text, text),
        ],
        picture_rows([text] * 4, [(text, cells)], text),
    ]
    return {
        "title": text,
        "summary": text,
        "results": {**RESULTS, "options": {"name": text}},
        "sections": [Section(text, body)],
        "tiles": [Tile(text, text, text, text)],
    }
