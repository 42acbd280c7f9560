"""The documentation site: `make docs`, then build/docs/index.html. Nothing is fetched, while building or reading."""

import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.typing import stringify_annotation

sys.path.insert(0, str(Path(__file__).parent.parent))

from vitx.relevance import rules

project = "vitx"
copyright = "the authors of vitx, Apache 2.0"
html_title = "vitx"
html_theme = "furo"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"top_of_page_buttons": []}

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 3
html_math_renderer = "mathml"
suppress_warnings = ["config.cache"]

# Docstrings write names as Markdown does; one that is documented becomes a link, any other one is code.
default_role = "py:obj"
autodoc_default_options = {"members": True, "member-order": "bysource"}
add_module_names = False
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # autodoc has listed the fields already
nitpick_ignore_regex = [
    ("py:obj", ".*"),  # code that is no name
    ("py:.*", r"(jax|jaxlib|numpy|flax|collections|typing|pathlib|os)\..*"),
    ("py:class", r"(vitx\..*\.)?(Maps|Batch|Item|Rule|Pull)"),  # type variables and aliases
]

# Longest first, as one is a part of the other.
_ALIASES = {
    name: stringify_annotation(getattr(rules, name), "smart") for name in ("Rule", "Pullback")
}
_logger = logging.getLogger(__name__)


def _mathml(node: nodes.Element, *, block: bool) -> str:
    try:
        return latex2mathml.tex2mathml(node.astext(), as_block=block)
    except MathError as error:
        _logger.warning("cannot set %r: %s", node.astext(), error, location=node)
        return ""


def _visit_inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(_mathml(node, block=False))
    raise nodes.SkipNode


def _visit_display(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="math">{_mathml(node, block=True)}</div>\n')
    raise nodes.SkipNode


def _adapt(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list) -> None:
    """Makes reStructuredText of what docstrings write for readers of the code: |x|, and paths of pages."""
    lines[:] = [
        re.sub(r"docs/(\w+)\.md", r":doc:`/\1`", line.replace("|", r"\|")) for line in lines
    ]


def _name_aliases(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str | None, str | None]:
    """Signatures say Rule and Pull, as the code does, in place of what these stand for."""

    def named(text: str | None) -> str | None:
        for alias, long in _ALIASES.items():
            text = text and text.replace(long, alias)
        return text

    return named(signature), named(returns)


def _leave_out_long_values(app: Sphinx, page: nodes.document) -> None:
    """A rule set's value is a page of functions."""
    for note in list(page.findall(addnodes.desc_annotation)):
        text = note.astext()
        if text.startswith(" = ") and len(text) > 80:
            note.parent.remove(note)


def setup(app: Sphinx) -> None:
    """Mathematics as MathML, by docutils: browsers set it themselves, without scripts and fonts from elsewhere."""
    app.add_html_math_renderer(
        "mathml", inline_renderers=(_visit_inline, None), block_renderers=(_visit_display, None)
    )
    app.connect("autodoc-process-docstring", _adapt)
    app.connect("autodoc-process-signature", _name_aliases)
    app.connect("doctree-read", _leave_out_long_values)
