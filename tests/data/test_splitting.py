"""Splits by image: the same for the same seed, and each class has its share."""

import random
from collections import Counter

import pytest

from mvitv2_det import UserError
from mvitv2_det.data.formats import split_by_image


def content(images, rng):
    """Images with any of three classes, of which the last is on a twentieth of the images."""
    return {
        "images": [{"id": number} for number in range(images)],
        "categories": [],
        "annotations": [
            {"image_id": number, "category_id": category}
            for number in range(images)
            for category, share in ((1, 0.9), (2, 0.3), (3, 0.05))
            for _ in range(3)
            if rng.random() < share
        ],
    }


def images_of(part):
    """The number of images by class."""
    pairs = {(one["image_id"], one["category_id"]) for one in part["annotations"]}
    return Counter(category for _, category in pairs)


def test_each_class_has_its_share():
    whole = content(400, random.Random(0))
    total = images_of(whole)
    for seed in range(5):
        train, val = split_by_image(whole, 0.2, seed)
        assert len(val["images"]) == pytest.approx(80, abs=2)
        for name, number in images_of(val).items():
            assert number == pytest.approx(0.2 * total[name], abs=2)
        ids = [{one["id"] for one in part["images"]} for part in (train, val)]
        assert not ids[0] & ids[1] and len(ids[0] | ids[1]) == 400
        for part, own in zip((train, val), ids, strict=True):
            assert {one["image_id"] for one in part["annotations"]} <= own
        assert sum(len(part["annotations"]) for part in (train, val)) == len(whole["annotations"])


def test_the_seed_decides():
    whole = content(50, random.Random(0))
    first, again, other = (split_by_image(whole, 0.2, seed)[1] for seed in (0, 0, 1))
    assert first == again != other


def test_no_part_is_empty():
    for share in (0.01, 0.99):
        parts = split_by_image(content(3, random.Random(0)), share, 0)
        assert all(part["images"] for part in parts)
    with pytest.raises(UserError, match="1 images cannot be split"):
        split_by_image(content(1, random.Random(0)), 0.5, 0)
    with pytest.raises(UserError, match="between 0 and 1, got 1"):
        split_by_image(content(3, random.Random(0)), 1, 0)
