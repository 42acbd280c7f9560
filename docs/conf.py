"""The documentation site: `make docs`, then build/docs/index.html. Nothing is downloaded to build or read it."""

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

# Docstrings mark names with single backticks, as in Markdown: a documented name becomes a link, any other one code.
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
napoleon_use_ivar = True  # autodoc already lists the fields
nitpick_ignore_regex = [
    ("py:obj", ".*"),  # code in backticks that is not a documented name
    ("py:.*", r"(jax|jaxlib|numpy|PIL|flax|collections|typing|pathlib|os)\..*"),
    (
        "py:class",
        r"(vitx\..*\.)?(Maps|Batch|Item|Rule|Pullback|M|Module|Found)",
    ),  # type variables and aliases
]

# Rule first: its text contains Pullback's.
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
    """Converts docstrings to reStructuredText: escapes |x|, and links the paths of pages."""
    lines[:] = [
        re.sub(r"docs/(\w+)\.md", r":doc:`/\1`", line.replace("|", r"\|")) for line in lines
    ]


def _name_aliases(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str | None, str | None]:
    """Shows the aliases Rule and Pullback in signatures, as the code does, instead of the types they abbreviate."""

    def named(text: str | None) -> str | None:
        for alias, long in _ALIASES.items():
            text = text and text.replace(long, alias)
        return text

    return named(signature), named(returns)


def _leave_out_long_values(app: Sphinx, page: nodes.document) -> None:
    """Removes the values of rule sets, which are a page of functions each."""
    for note in list(page.findall(addnodes.desc_annotation)):
        text = note.astext()
        if text.startswith(" = ") and len(text) > 80:
            note.parent.remove(note)


def setup(app: Sphinx) -> None:
    """Renders mathematics as MathML by docutils, which browsers show without external scripts and fonts."""
    app.add_html_math_renderer(
        "mathml", inline_renderers=(_visit_inline, None), block_renderers=(_visit_display, None)
    )
    app.connect("autodoc-process-docstring", _adapt)
    app.connect("autodoc-process-signature", _name_aliases)
    app.connect("doctree-read", _leave_out_long_values)
