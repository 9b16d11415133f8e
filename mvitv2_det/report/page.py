"""The page of a report: one HTML file that needs no other, and no network."""

from dataclasses import dataclass, field

from jinja2 import Environment, PackageLoader, StrictUndefined


@dataclass(frozen=True)
class Pair:
    """What was found in an image, beside its truth.

    Attributes:
        found, truth: addresses of pictures.
        name: of the image.
        caption: what is said of it.
    """

    found: str
    truth: str
    name: str
    caption: str


@dataclass(frozen=True)
class Part:
    """A part of a section; what is empty is left out.

    Attributes:
        heading, note: above it.
        picture: address of a picture.
        header, rows: of a table.
        pairs: images beside their truth.
        text: shown as it is.
    """

    heading: str = ""
    note: str = ""
    picture: str = ""
    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    text: str = ""


@dataclass(frozen=True)
class Section:
    """A section with a title, in the list at the top of the page."""

    title: str
    parts: list[Part]


def render(title: str, subtitle: str, tiles: list[tuple[str, str]], sections: list[Section]) -> str:
    """Makes the page; all text is escaped.

    Args:
        title, subtitle: at the top.
        tiles: the few numbers to see first, with their names.
        sections: the rest.
    """
    environment = Environment(
        loader=PackageLoader("mvitv2_det.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["is_text"] = lambda cell: not cell[:1].isdigit() and cell != "–"
    page = environment.get_template("page.html.j2")
    sections = [section for section in sections if section.parts]
    return page.render(title=title, subtitle=subtitle, tiles=tiles, sections=sections)
