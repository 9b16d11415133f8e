"""Which of a test's parameters are long."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def long_but(quick: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """All values as parameters of a test; those that are not among the quick ones are long.

    Raises:
        AssertionError: a quick one is not among the values, as after a change of its name.
    """
    quick, values = set(quick), list(values)
    assert quick <= set(values), f"not among the parameters: {quick - set(values)}"
    return [
        value if value in quick else pytest.param(value, marks=pytest.mark.long) for value in values
    ]
