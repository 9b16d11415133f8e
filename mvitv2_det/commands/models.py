"""Lists released weights and configs by their names.

    mvitv2-det models
    mvitv2-det models mvitv2 in21k
    mvitv2-det predict --config NAME --weights NAME photos/ --output found

Weights have names wherever a file of weights is asked for: they are downloaded once, into iopath's
cache. A detector's weights are called as the config that they were trained with. Results are
published ones; none has been measured again here.
"""

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from ..weights.released import Released

_HEADERS = ("weights", "of", "trained on", "published", "M params", "licence", "file")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the words that a name must have."""
    parser.add_argument(
        "words", nargs="*", metavar="WORD", help="list only what has it in its name; any number"
    )


def run(args: argparse.Namespace) -> int:
    """Prints a table of weights and a table of configs."""
    from tabulate import tabulate

    from ..config import config_files
    from ..weights.released import released_weights

    weights = [one for name, one in released_weights().items() if _has(name, args.words)]
    configs = [(name, _title(file)) for name, file in config_files().items()]
    configs = [row for row in configs if _has(row[0], args.words)]
    if not weights and not configs:
        raise UserError(f"no name has {' and '.join(args.words)} in it: give no word to list all")
    if weights:
        print(tabulate(table_rows(weights), _HEADERS, disable_numparse=True))
    if weights and configs:
        print()
    if configs:
        print(tabulate(configs, ("config", "")))
    return 0


def markdown_table() -> str:
    """All weights as a table of docs/weights.md."""
    from tabulate import tabulate

    from ..weights.released import released_weights

    weights = released_weights().values()
    rows = [
        (f"`{one.name}`", *row[1:-1], f"[file]({one.url}), [page]({one.page})")
        for one, row in zip(weights, table_rows(weights), strict=True)
    ]
    return tabulate(rows, _HEADERS, tablefmt="github", disable_numparse=True)


def table_rows(weights: Iterable["Released"]) -> list[tuple[str, ...]]:
    """A row for each, of the columns of the tables."""
    return [
        (
            one.name,
            one.kind,
            one.trained_on,
            one.published,
            one.million_parameters,
            one.licence,
            one.url,
        )
        for one in weights
    ]


def _has(name: str, words: Iterable[str]) -> bool:
    return all(word.lower() in name for word in words)


def _title(file: "Path") -> str:
    """The first line of a config's docstring."""
    import ast

    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]
