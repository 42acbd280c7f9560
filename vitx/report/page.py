"""report.html: one page with everything in it. No scripts, nothing from the network.

A page is a list of `Section`s, each a list of parts: plain text becomes a paragraph, and the
functions named below make tables, charts and pictures. Whatever is not made by them is escaped.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vitx.report.charts import bar_chart, charts, line_chart
from vitx.report.parts import (
    Html,
    class_legend,
    duration,
    facts,
    fold,
    join,
    markup,
    paragraph,
    percent,
    strong,
    table,
    tiles,
)
from vitx.report.pictures import colour_scale, heatmap_overlay, mask_overlay, picture_rows
from vitx.report.style import STYLE
from vitx.runtime.files import write_bytes

__all__ = [
    "Html",
    "Section",
    "bar_chart",
    "charts",
    "class_legend",
    "colour_scale",
    "duration",
    "facts",
    "fold",
    "heatmap_overlay",
    "line_chart",
    "mask_overlay",
    "percent",
    "picture_rows",
    "strong",
    "table",
    "tiles",
    "write_report",
]

# Which of the results stand large at the top: (key, key in it, name).
_HEADLINES = (
    ("classifier", "map", "Classifier mAP"),
    ("seeds", "miou", "Seeds' mIoU"),
    ("masks", "miou", "Refined masks' mIoU"),
)
# The browser itself then refuses scripts and any request.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclasses.dataclass(frozen=True)
class Section:
    """A headed part of the page.

    Attributes:
        title: its heading, also in the list of contents.
        body: texts, each a paragraph, and `Html` parts, in order.
    """

    title: str
    body: Sequence[object]


def write_report(
    path: str | Path,
    *,
    title: str,
    results: Mapping,
    sections: Sequence[Section],
    summary: str = "",
) -> None:
    """Writes the page, atomically.

    Args:
        path: of the HTML file.
        title: of the page.
        results: as in `results.json`; its main figures head the page, all of it stands folded at
            the end.
        sections: in order.
        summary: a sentence or two under the title.
    """
    text = page(title=title, results=results, sections=sections, summary=summary)
    # A file's name need not be Unicode; what is not becomes a question mark.
    write_bytes(path, text.encode(errors="replace"))


def page(*, title: str, results: Mapping, sections: Sequence[Section], summary: str = "") -> Html:
    """The page as text; arguments as for `write_report`."""
    links = join(
        Html(f'<a href="#section-{index}">{markup(section.title)}</a>')
        for index, section in enumerate(sections, 1)
    )
    blocks = [
        Html(
            f'<section id="section-{index}"><h2>{markup(section.title)}</h2>\n'
            f"{_body(section.body)}</section>"
        )
        for index, section in enumerate(sections, 1)
    ]
    raw = json.dumps(results, indent=2, default=_plain)
    listing = fold(
        "All results, as in results.json",
        Html(f'<pre class="scroll" tabindex="0">{markup(raw)}</pre>'),
    )
    lead = Html(f'<p class="summary">{markup(summary)}</p>') if summary else Html("")
    return Html(f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{markup(_POLICY)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{markup(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header><h1>{markup(title)}</h1>
{lead}
{_headline(results)}
<nav aria-label="Contents">{links}</nav></header>
<main>
{join(blocks)}
</main>
<footer>{listing}</footer>
</body>
</html>
""")


def _headline(results: Mapping) -> Html:
    """The main figures among the results, the refinement's gain, and the time of all stages."""
    entries = [
        (name, f"{percent(results[key][inner])} %", "")
        for key, inner, name in _HEADLINES
        if inner in results.get(key, {})
    ]
    seeds, masks = (results.get(key, {}).get("miou") for key in ("seeds", "masks"))
    if seeds is not None and masks is not None:
        gain = 100 * (masks - seeds)
        entries[-1] = (*entries[-1][:2], f"{gain:+.1f} points over the seeds")
    if stages := results.get("stages"):
        entries.append(("Time", duration(sum(stages.values())), f"over {len(stages)} stages"))
    return tiles(entries) if entries else Html("")


def _body(parts: Sequence[object]) -> Html:
    return join(part if isinstance(part, Html) else paragraph(part) for part in parts)


def _plain(value: object) -> object:
    """NumPy scalars and arrays, and paths, for JSON."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)
