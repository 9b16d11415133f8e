"""A list of what is wrong in a data set, and of what was put right or left out."""

from ..errors import UserError

ODD = ("repair", "drop", "refuse")


class Findings:
    """Collects what is found in one file or folder.

    Args:
        source: the file or folder.
        odd: what is done with what is found: ``repair`` puts right what is odd, or leaves it out
            where that cannot be done; ``drop`` leaves out what is odd or wrong; ``refuse`` takes
            what is odd as wrong.

    Attributes:
        faults: what is wrong and was not left out, a line each: the data cannot be used.
        left_out: what is wrong and was left out, a line each.

    Raises:
        UserError: ``odd`` is none of these.
    """

    def __init__(self, source: str, odd: str = "repair") -> None:
        if odd not in ODD:
            raise UserError(f"dataset.odd_annotations must be {', '.join(ODD)}, got {odd!r}")
        self.source = source
        self.faults: list[str] = []
        self.left_out: list[str] = []
        self._odd = odd
        self._kinds: dict[tuple[str, str, str], list[str]] = {}

    def wrong(self, line: str) -> None:
        """Notes what cannot be used; the line names the culprit."""
        (self.left_out if self._odd == "drop" else self.faults).append(line)

    def odd(self, things: str, kind: str, done: str, name: str) -> str:
        """Notes something odd, and says what is to be done with it.

        Args:
            things: what such things are called, such as ``annotations``.
            kind: what they have.
            done: what is done with ``repair``: ``put right`` or ``left out``.
            name: the name of this one among them.

        Returns:
            what is done.
        """
        if self._odd == "refuse":
            one = things.removesuffix("s")
            self.wrong(
                f"{self.source}: {one} {name} has {kind}; dataset.odd_annotations=repair "
                f"{'puts it right' if done == 'put right' else 'leaves it out'}"
            )
            return "left out"
        if self._odd == "drop":
            done = "left out"
        self.note(things, kind, done, name)
        return done

    def note(self, things: str, kind: str, done: str, name: str) -> None:
        """Notes what is done whatever is asked for, as nothing is lost by it."""
        self._kinds.setdefault((things, kind, done), []).append(name)

    @property
    def lines(self) -> list[str]:
        """What was put right or left out, a line for each kind."""
        lines = [
            f"{self.source}: {len(names)} {things} have {kind} (the first is {names[0]}): {done}"
            for (things, kind, done), names in self._kinds.items()
        ]
        if self.left_out:
            lines.append(
                f"{self.source}: {len(self.left_out)} wrong records are left out "
                f"(the first: {self.left_out[0]})"
            )
        return lines

    def check(self) -> None:
        """Ends with the first fault, if there is any.

        Raises:
            UserError: there is one; the message says how many there are.
        """
        if not self.faults:
            return
        more = (
            f" ({len(self.faults) - 1} more faults: 'mvitv2-det check' lists all; "
            f"dataset.odd_annotations=drop leaves them out)"
        )
        raise UserError(self.faults[0] + (more if len(self.faults) > 1 else ""))
