"""report.html: one page with everything in it, nothing from the network.

A page is a list of `Section`s, and a section a list of parts. The template `page.html.jinja` renders
parts and escapes every text. Only what `charts` draws is inserted as markup. The one script, `page.js`,
adds zoom, sorting and downloads; the page names its digest, and a browser runs no other.
"""

import base64
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from vitx.runtime.files import plain_json, write_bytes


class Tile(NamedTuple):
    """A main figure, shown large at the top of the page; `mark` says what distinguishes it, such as "highest"."""

    name: str
    value: str
    remark: str = ""
    mark: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page with a heading.

    Attributes:
        title: its heading, also in the list of contents.
        body: its parts in order. A str is a paragraph, a mapping a list of names and values, a list
            shows its charts side by side; `Table`, `Fold`, `Legend`, `Files`, `Chart`,
            `Pictures` and `ColourScale` are themselves.
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
    tiles: Sequence[Tile] = (),
) -> None:
    """Writes the page, atomically; equal arguments give equal bytes.

    Args:
        path: of the HTML file.
        title: of the page.
        results: as in `results.json`. The end of the page has all of it, folded.
        sections: in order.
        summary: a sentence or two below the title.
        tiles: the main figures.
    """
    templates = Environment(
        loader=PackageLoader("vitx", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = resources.files("vitx.report").joinpath("page.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = templates.get_template("page.html.jinja").render(
        title=title,
        summary=summary,
        tiles=tiles,
        sections=sections,
        results=json.dumps(results, indent=2, default=plain_json),
        script=script,
        digest=digest,
    )
    # A file's name need not be Unicode; a question mark replaces what is not.
    write_bytes(path, text.encode(errors="replace"))
