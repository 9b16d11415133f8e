"""The categories of the splits of a data set, which must be the same with the same ids."""

from collections import Counter
from dataclasses import replace
from typing import Any

from ..errors import UserError
from .coco_format import CocoSummary


def used_categories(summary: CocoSummary) -> Counter[int]:
    """Counts the annotations by the id of their category."""
    return Counter(one["category_id"] for one in summary.content["annotations"])


def without_unused_parents(summaries: list[CocoSummary]) -> tuple[list[CocoSummary], list[str]]:
    """Leaves out categories that merely group others: no instance is of them.

    Roboflow lists such a category first, which would be a class without instances.

    Args:
        summaries: of all splits.

    Returns:
        the summaries, and a line for each category left out.
    """
    used = {
        one.categories[category] for one in summaries for category in used_categories(one)
    }  # by name: the ids may differ among the splits
    left: list[CocoSummary] = []
    lines: list[str] = []
    for summary in summaries:
        categories = summary.content["categories"]
        parents = {
            one["supercategory"]
            for one in categories
            if isinstance(one.get("supercategory"), str) and one["supercategory"] != one["name"]
        } - used
        kept = [one for one in categories if one["name"] not in parents]
        if len(kept) < len(categories):
            summary = replace(
                summary, content={**summary.content, "categories": kept}, changed=True
            )
            lines.extend(
                f"{summary.json_file}: category {one['name']!r} groups others and has no "
                f"instance: left out"
                for one in categories
                if one not in kept
            )
        left.append(summary)
    return left, lines


def with_categories_of(
    summary: CocoSummary, categories: list[dict[str, Any]], source: str
) -> tuple[CocoSummary, list[str]]:
    """Gives a split the categories of another, by their ids or else by their names.

    Args:
        summary: of the split, such as that for validation.
        categories: those of the split for training.
        source: where they are from.

    Returns:
        the split with all of these categories, and lines about what differed.

    Raises:
        UserError: it has instances of a category that is not among them.
    """
    known = {one["id"]: one["name"] for one in categories}
    by_name = {name: category for category, name in known.items()}
    used = used_categories(summary)
    ids: dict[int, int] = {}
    lines: list[str] = []
    for category, name in summary.categories.items():
        if known.get(category) == name:
            ids[category] = category
        elif name in by_name:
            ids[category] = by_name[name]
            lines.append(
                f"{summary.json_file}: category {name!r} has the id {category}, but "
                f"{by_name[name]} in {source}: numbered as there"
            )
        elif used[category]:
            raise UserError(
                f"category {name!r} (id {category}) of {summary.json_file} is unknown to {source}, "
                f"which lists {', '.join(map(repr, known.values()))[:200]}"
            )
        else:
            lines.append(
                f"{summary.json_file}: category {name!r} is unknown to {source}, and has no "
                f"instance: left out"
            )
    found = {ids[category] for category in used}
    missing = [repr(name) for category, name in known.items() if category not in found]
    if missing:
        few = ", ".join(missing[:10]) + (", …" if len(missing) > 10 else "")
        lines.append(
            f"{summary.json_file} has no instance of {len(missing)} of {len(known)} categories, "
            f"which cannot be evaluated: {few}"
        )
    if summary.categories == known:
        return summary, lines
    annotations = [
        one
        if (new := ids[one["category_id"]]) == one["category_id"]
        else {**one, "category_id": new}
        for one in summary.content["annotations"]
        if one["category_id"] in ids
    ]
    content = {**summary.content, "categories": categories, "annotations": annotations}
    return replace(summary, content=content, changed=True), lines
