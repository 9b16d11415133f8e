"""Splits of data that come without: by image, so that both have their share of each class."""

import random
from collections import Counter
from typing import Any

from ...errors import UserError


def split_by_image(
    content: dict[str, Any], share: float, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits COCO's content into one for training and one for validation.

    Images of the rarest class are dealt out first, each to the part that lacks most of that class:
    iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011).

    Args:
        content: as a COCO json file has it.
        share: of all images, and of those of each class, that validation gets, in (0, 1).
        seed: the same seed gives the same split.

    Returns:
        the two contents.

    Raises:
        UserError: the share is out of range, or there are fewer than two images.
    """
    if not 0 < share < 1:
        raise UserError(f"the share of validation must be between 0 and 1, got {share}")
    images = content["images"]
    if len(images) < 2:
        raise UserError(f"{len(images)} images cannot be split into training and validation")
    classes: dict[Any, Counter[Any]] = {image["id"]: Counter() for image in images}
    for one in content["annotations"]:
        if one.get("image_id") in classes:
            classes[one["image_id"]][one.get("category_id")] = 1
    order = list(classes)
    random.Random(seed).shuffle(order)
    dealt = _dealt(order, classes, (1 - share, share))
    for part in (0, 1):  # Neither is to be empty.
        if not any(where == part for where in dealt.values()):
            dealt[order[0]] = part
    return tuple(  # type: ignore[return-value]
        {
            **content,
            "images": [image for image in images if dealt[image["id"]] == part],
            "annotations": [
                one for one in content["annotations"] if dealt.get(one.get("image_id")) == part
            ],
        }
        for part in (0, 1)
    )


def _dealt(
    order: list[Any], classes: dict[Any, Counter[Any]], shares: tuple[float, float]
) -> dict[Any, int]:
    """The part that each image goes to."""
    totals = sum(classes.values(), Counter())
    lacking = [
        Counter({name: number * share for name, number in totals.items()}) for share in shares
    ]
    places = [len(order) * share for share in shares]
    dealt: dict[Any, int] = {}

    def deal(image: Any, part: int) -> None:
        dealt[image] = part
        places[part] -= 1
        lacking[part].subtract(classes[image])

    for name, _ in sorted(totals.items(), key=lambda item: (item[1], str(item[0]))):
        for image in order:
            if image not in dealt and classes[image][name]:
                deal(image, max((0, 1), key=lambda part: (lacking[part][name], places[part])))
    for image in order:  # those without an instance
        if image not in dealt:
            deal(image, max((0, 1), key=lambda part: places[part]))
    return dealt
