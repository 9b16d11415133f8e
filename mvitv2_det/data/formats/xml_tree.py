"""XML of unknown origin: without entities, which can grow without end, and with line numbers."""

from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from ...errors import UserError


class XmlFile:
    """An XML file.

    Args:
        path: the file.

    Attributes:
        root: its outermost element.

    Raises:
        UserError: it cannot be read, is no XML, or declares entities.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[Element, int] = {}
        builder = TreeBuilder()
        parser = expat.ParserCreate()
        parser.buffer_text = True

        def start(tag: str, attributes: dict[str, str]) -> None:
            self._lines[builder.start(tag, attributes)] = parser.CurrentLineNumber

        def refuse(*_: object) -> None:
            raise UserError(f"{path}:{parser.CurrentLineNumber}: declares entities: not read")

        parser.StartElementHandler = start
        parser.EndElementHandler = builder.end
        parser.CharacterDataHandler = builder.data
        parser.EntityDeclHandler = refuse
        try:
            with path.open("rb") as file:
                parser.ParseFile(file)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        except (expat.ExpatError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path}:{parser.CurrentLineNumber}: no XML: {error}") from error
        self.root = builder.close()

    def place(self, element: Element) -> str:
        """Says where an element is: file and line."""
        return f"{self.path}:{self._lines[element]}"

    def number(self, element: Element, name: str) -> float:
        """Reads a number that is an attribute of an element, or the text of one within it.

        Raises:
            UserError: there is none.
        """
        text = element.get(name, element.findtext(name))
        try:
            value = float(text)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{self.place(element)}: {element.tag!r} has no number {name!r} but {text!r}"
            ) from error
        if not abs(value) < 1e9:  # NaN as well
            raise UserError(f"{self.place(element)}: {name!r} is {text!r}")
        return value
