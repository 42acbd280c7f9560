"""report.html: one page with everything in it. No scripts, nothing from the network.

A page is a list of `Section`s, and a section a list of parts. The template `page.html.jinja` renders
parts and escapes every text. Only what `charts` draws is inserted as markup.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from vitx.report.parts import duration, percent
from vitx.runtime.files import plain_json, write_bytes

# The results shown large at the top: (key, key in it, name).
_HEADLINES = (
    ("classifier", "map", "Classifier mAP"),
    ("seeds", "miou", "Seeds' mIoU"),
    ("masks", "miou", "Refined masks' mIoU"),
)


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page with a heading.

    Attributes:
        title: its heading, also in the list of contents.
        body: its parts in order. A str is a paragraph, a mapping a list of names and values, a list
            shows its charts side by side; `Table`, `Fold`, `Legend`, `Chart`, `Pictures` and
            `ColourScale` are themselves.
    """

    title: str
    body: Sequence[object]


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    results: Mapping,
    sections: Sequence[Section],
    summary: str = "",
) -> None:
    """Writes the page, atomically; equal arguments give equal bytes.

    Args:
        path: of the HTML file.
        title: of the page.
        results: as in `results.json`. Its main figures head the page, and the end of the page has all
            of it, folded.
        sections: in order.
        summary: a sentence or two below the title.
    """
    templates = Environment(
        loader=PackageLoader("vitx", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = templates.get_template("page.html.jinja").render(
        title=title,
        summary=summary,
        tiles=_tiles(results),
        sections=sections,
        results=json.dumps(results, indent=2, default=plain_json),
    )
    # A file's name need not be Unicode; a question mark replaces what is not.
    write_bytes(path, text.encode(errors="replace"))


def _tiles(results: Mapping) -> list[tuple[str, str, str]]:
    """The main figures: (name, value, remark) each."""
    tiles = [
        (name, f"{percent(results[key][inner])} %", "")
        for key, inner, name in _HEADLINES
        if inner in results.get(key, {})
    ]
    seeds, masks = (results.get(key, {}).get("miou") for key in ("seeds", "masks"))
    if seeds is not None and masks is not None:
        gain = 100 * (masks - seeds)
        tiles[-1] = (*tiles[-1][:2], f"{gain:+.1f} points over the seeds")
    if stages := results.get("stages"):
        tiles.append(("Time", duration(sum(stages.values())), f"over {len(stages)} stages"))
    return tiles
