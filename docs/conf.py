"""Sphinx's settings: `make docs` builds these pages and the API reference into build/docs."""

import os
import sys

sys.path.insert(0, os.path.abspath(".."))

import mvitv2_det

project = "mvitv2_det"
author = "The mvitv2_det developers"
project_copyright = f"2026, {author}"
release = version = mvitv2_det.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_parser",
]
templates_path = ["_templates"]
exclude_patterns = ["_templates"]
html_theme = "furo"
html_title = "mvitv2_det"
html_show_sourcelink = False

# Headings get anchors, so that links to sections are checked too.
myst_heading_anchors = 3

# The template asks for the members that the module itself defines, not for what it imports.
autosummary_generate = True
autosummary_imported_members = False
autosummary_ignore_module_all = True
autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
# Shapes and units are in the text; a signature with all types would bury the names.
autodoc_typehints = "none"
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# References into this package must resolve. Those into other libraries would need the network.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!mvitv2_det\.).*")]
