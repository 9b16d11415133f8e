"""The documents: their length, their links, and the names in them."""

import re
from pathlib import Path

import pytest
import yaml

import mvitv2_det

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    file.relative_to(ROOT)
    for pattern in ("*.md", "docs/*.md", "projects/*/README.md")
    for file in ROOT.glob(pattern)
)
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def read(document):
    return (ROOT / document).read_text(encoding="utf-8")


def anchors(document):
    """The anchors of a document's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", read(document)), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


def links(document):
    """The targets of all links that lead to no other site: (path, anchor), either may be empty."""
    text = re.sub(r"`[^`\n]*`", "", FENCED.sub("", read(document)))
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target.partition("#")[::2] for target in targets if "://" not in target]


def test_readme_is_short():
    assert len(read("README.md").split()) <= 1500


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_resolve(document):
    for path, anchor in links(document):
        target = (ROOT / document.parent / path).resolve() if path else ROOT / document
        assert target.is_relative_to(ROOT) and target.exists(), f"{document}: {path} is not there"
        if anchor:
            assert anchor in anchors(target), f"{document}: {path}#{anchor} is no heading"


def test_every_page_is_in_the_table_of_contents():
    toctrees = re.findall(
        r"^```\{toctree\}\n(.*?)^```$", read("docs/index.md"), re.DOTALL | re.MULTILINE
    )
    listed = {line for tree in toctrees for line in tree.split("\n") if line and line[0] != ":"}
    assert listed == {file.stem for file in (ROOT / "docs").glob("*.md")} - {"index"}


def test_commands_exist():
    entry = pytest.importorskip("mvitv2_det.commands.entry")
    named = set(re.findall(r"mvitv2-det ([a-z][a-z-]*)", "".join(map(read, DOCUMENTS))))
    assert len(named) > 5
    assert named <= set(entry.COMMANDS)


def test_every_command_has_its_options_documented():
    entry = pytest.importorskip("mvitv2_det.commands.entry")
    shown = re.findall(r"^```\{command-help\} (\S+)$", read("docs/commands.md"), re.MULTILINE)
    assert shown == list(entry.COMMANDS)


def test_public_names_are_in_the_reference():
    missing = [
        name
        for name in mvitv2_det.__all__
        if f"mvitv2_det.{name}`" not in read("docs/reference.md")
    ]
    assert not missing


def test_notice_names_modules_that_exist():
    text = read("NOTICE")
    own = re.findall(r"(?:attention|backbone|detection|weights)/[\w/]*(?:\.py)?|variants\.py", text)
    own = [path for path in own if f"detectron2/modeling/{path}" not in text]
    assert len(set(own)) > 8
    assert not [path for path in own if not (ROOT / "mvitv2_det" / path).exists()]


def test_paths_for_contributors_exist():
    """Files that a contributor is told to edit; a new one of theirs would not be named."""
    paths = re.findall(
        r"`((?:mvitv2_det|tests|projects|configs|docs)/[\w./]*)`", read("CONTRIBUTING.md")
    )
    assert len(paths) > 8
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_citation_has_the_version():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == mvitv2_det.__version__
    assert citation["references"][0]["url"].endswith("2112.01526")
