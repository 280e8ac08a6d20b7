"""The documentation site: `make docs` builds docs/_build/html, without a network and with warnings as errors.

The source directory is the root of the repository, so that links between docs/, results/ and benchmarks/ are the same
here and on a code host. Formulas become MathML, which browsers show without a script.
"""

import inspect
import pathlib
import re
import sys

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.domains.python import PyObject
from sphinx.ext.napoleon import GoogleDocstring

DOCS = pathlib.Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]

import docstrings
import generated

import gradmix_jax

project = "gradmix_jax"
author = "gradmix_jax maintainers"
version = release = gradmix_jax.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "docs/api/*.md", "docs/howto/*.md", "results/*.md", "benchmarks/README.md"]
include_patterns += ["CHANGELOG.md", "CONTRIBUTING.md"]
exclude_patterns = ["docs/_build", ".venv*", "runs", "data", "**/__pycache__", "gradmix_jax", "tests", ".git", "launch"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
highlight_language = "none"  # of blocks that name none: what a command prints

html_theme = "furo"
html_title = f"gradmix_jax {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "redirect.html"}
templates_path = ["templates"]
html_copy_source = False
html_show_copyright = False
html_math_renderer = "mathml"

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # shapes are in the names, and every docstring has its arguments' meaning
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
default_role = "literal"  # docstrings write `name`, as Markdown does


def as_restructured_text(app, what, name, obj, options, lines):
    lines[:] = docstrings.restructured(lines)


def without_constants(app, what, name, obj, skip, options):
    """Fields of a NamedTuple and functions that are defaults of fields: their class's docstring has them."""
    is_default = what == "class" and inspect.isfunction(obj) and "." not in obj.__qualname__
    return True if is_default or type(obj).__name__ in ("_tuplegetter", "property", "member_descriptor") else skip


def insert_generated(app, docname, source):
    """Replace `<!-- generated: NAME -->` by content made from the code, which therefore cannot be out of date."""
    source[0] = re.sub(r"<!-- generated: ([a-z]+) -->", lambda match: generated.PARTS[match[1]](), source[0])


def keep_cells_readable(app, doctree, docname):
    """Give cells with sentences a class, for their least width, and keep "1.03 x" and "0.97 ±" on one line."""
    for cell in doctree.findall(nodes.entry):
        if len(cell.astext()) > 40:
            cell["classes"].append("sentence")
        for text in list(cell.findall(nodes.Text)):
            text.parent.replace(text, nodes.Text(re.sub(r"(?<=\d) (?=x$|±)", "\N{NO-BREAK SPACE}", text)))


def _returned(docstring, preprocess_types=False):
    """Napoleon's field for "Returns:" as prose, whose first colon does not end a type."""
    lines = docstring._dedent(docstring._consume_to_next_section())
    return [("", "", lines)] if lines else []


def _inline_math(self, node):
    self.body.append(latex2mathml.tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def _block_math(self, node):
    self.body.append(f'<div class="math">{latex2mathml.tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app):
    # Fields of dataclasses; "Variables" is what Python calls something else.
    next(each for each in PyObject.doc_field_types if each.name == "variable").label = "Attributes"
    app.connect("autodoc-process-docstring", as_restructured_text, priority=100)  # before napoleon
    app.connect("autodoc-skip-member", without_constants)
    app.connect("source-read", insert_generated)
    app.connect("doctree-resolved", keep_cells_readable)
    GoogleDocstring._consume_returns_section = _returned
    app.add_html_math_renderer("mathml", (_inline_math, None), (_block_math, None))
