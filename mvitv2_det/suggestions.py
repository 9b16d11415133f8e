"""What a name that is not known was probably meant to be."""

import difflib
import re
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Finds the name that another was probably meant to be.

    That is the shortest one that begins with it; then the shortest that has all of its words, in
    any order; then the one whose letters are most alike.

    Args:
        name: what was given.
        known: the names that there are.
    """
    known, name = list(known), name.lower()
    words = _words(name)
    for fits in (lambda one: one.lower().startswith(name), lambda one: words <= _words(one)):
        if name and (found := [one for one in known if fits(one)]):
            return min(found, key=len)
    alike = difflib.get_close_matches(name, known, n=1)
    return alike[0] if alike else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'NAME'?``, or nothing."""
    found = nearest(name, known)
    return f"; did you mean {found!r}?" if found else ""


def _words(name: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", name.lower()))
