"""Settings of Sphinx: ``make docs`` builds these pages and the API reference into build/docs."""

import os
import re
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import mvitv2_det  # noqa: E402

project = html_title = "mvitv2_det"
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
html_show_sourcelink = False
# Two hyphens are an option, not a dash.
smartquotes = False
highlight_language = "text"

# Headings get anchors, so that links to sections are checked as well.
myst_heading_anchors = 3

# Each name is documented once, in the module that defines it.
autodoc_default_options = {
    "members": True,
    "ignore-module-all": True,
    "show-inheritance": True,
    "member-order": "bysource",
}
# Docstrings give shapes and units; types in the signature would bury the names.
autodoc_typehints = "none"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# References into this package must resolve; those into other libraries would need the network.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!mvitv2_det\.).*")]

_LINK = re.compile(r"\[([^\]]*)\]\((\.\./[^)#\s]+)\)")
_PAGES = {"README.md": "index", "CONTRIBUTING.md": "contributing", "CHANGELOG.md": "changelog"}


def link_from_repository(app: Sphinx, docname: str, source: list[str]) -> None:
    """Rewrites links that leave docs/, which hold in a checkout, for the built pages.

    Modules link to their API page, Markdown files to a page or a download, folders to nothing;
    other files become downloads by themselves.

    Raises:
        ExtensionError: a link leads nowhere.
    """
    folder = (Path(app.srcdir) / docname).parent

    def rewrite(match: re.Match[str]) -> str:
        text, link = match.groups()
        target = (folder / link).resolve()
        if not target.exists():
            raise ExtensionError(f"docs/{docname}.md links to {link}, which does not exist")
        path = target.relative_to(ROOT)
        if path.parts[0] == "mvitv2_det":
            return f"[{text}](/api/{'.'.join(path.with_suffix('').parts)}.rst)"
        if str(path) in _PAGES:
            return f"[{text}](/{_PAGES[str(path)]}.md)"
        if target.is_dir():
            return f"`{path}`"
        return f"{{download}}`{text} <{link}>`" if path.suffix == ".md" else match.group()

    source[0] = _LINK.sub(rewrite, source[0])


def resolve_public_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.Node
) -> nodes.Node | None:
    """Resolves a reference to a name that is documented elsewhere, such as mvitv2_det.MViT.

    Constants and type variables, which have no page, are shown without a link; they too must exist.
    """
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target.startswith("mvitv2_det."):
        return None
    try:
        found = resolve_name(target)
    except (AttributeError, ImportError):
        return None
    home = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
    entry = env.get_domain("py").objects.get(home)
    if entry is None:
        return contnode if node["reftype"] in ("data", "obj") else None
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode)


class CommandHelp(SphinxDirective):
    """The text that ``mvitv2-det COMMAND --help`` prints, COMMAND being the argument."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Runs the command and shows its output as it is."""
        text = subprocess.run(
            [sys.executable, "-m", "mvitv2_det", *self.arguments, "--help"],
            env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "88"},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        return [nodes.literal_block(text, text, language="text")]


def escape_axes(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]):
    """Shows the asterisk of ``*axes`` in shapes, which would begin an emphasis."""
    lines[:] = [line.replace("*axes", r"\*axes") for line in lines]


def setup(app: Sphinx) -> None:
    """Connects what is defined above; Sphinx calls this."""
    app.add_directive("command-help", CommandHelp)
    app.connect("source-read", link_from_repository)
    app.connect("autodoc-process-docstring", escape_axes)
    app.connect("missing-reference", resolve_public_name)


# Docstrings name fields, such as rows, that several named tuples have.
suppress_warnings = ["ref.python"]
