"""Both splits get the categories of training, with the same ids."""

import json

import pytest
from conftest import write_coco

from mvitv2_det import UserError
from mvitv2_det.data.categories import with_categories_of, without_unused_parents
from mvitv2_det.data.coco_format import check_coco_data


@pytest.fixture
def check(tmp_path):
    """Writes two images of the categories 3 and 7 with other categories, and checks them."""
    content = write_coco(tmp_path, "split", 2)

    def write(categories, *category_ids):
        for one, category in zip(content["annotations"], category_ids, strict=True):
            one["category_id"] = category
        content["categories"] = categories
        (tmp_path / "split.json").write_text(json.dumps(content))
        return check_coco_data(str(tmp_path / "split.json"), str(tmp_path / "split"))

    return write


def names(**ids):
    return [{"id": category, "name": name} for name, category in ids.items()]


def test_a_category_that_validation_lacks_is_a_warning(check):
    found, lines = with_categories_of(
        check(names(box=3), 3, 3), names(box=3, plate=7), "train.json"
    )
    assert found.categories == {3: "box", 7: "plate"} and found.changed
    assert len(lines) == 1 and lines[0].endswith(
        "has no instance of 1 of 2 categories, which cannot be evaluated: 'plate'"
    )


def test_other_ids_of_the_same_names_become_those_of_training(check):
    found, lines = with_categories_of(
        check(names(plate=1, box=2), 1, 2), names(box=3, plate=7), "train.json"
    )
    assert [one["category_id"] for one in found.content["annotations"]] == [7, 3]
    assert found.repaired["categories"] == names(box=3, plate=7)
    assert len(lines) == 2 and "category 'plate' has the id 1, but 7 in train.json" in lines[0]


def test_a_category_that_training_lacks(check):
    both = names(box=3, plate=7)
    found, lines = with_categories_of(check(both, 3, 3), names(box=3), "train.json")
    assert found.categories == {3: "box"} and "'plate' is unknown to train.json" in lines[0]
    with pytest.raises(UserError, match=r"'plate' \(id 7\) of .* is unknown to train\.json, which"):
        with_categories_of(check(both, 3, 7), names(box=3), "train.json")


def test_nothing_changes_where_the_categories_are_the_same(check):
    both = names(box=3, plate=7)
    found = check(both, 3, 7)
    assert with_categories_of(found, both, "train.json") == (found, [])
    assert without_unused_parents([found, found]) == ([found, found], [])
    assert not found.changed


def test_a_category_that_groups_others_is_left_out_unless_it_is_used(check):
    group = {"id": 0, "name": "things", "supercategory": "none"}
    own = {"id": 3, "name": "box", "supercategory": "things"}
    unused = check([group, own], 3, 3)
    found, lines = without_unused_parents([unused, unused])
    assert [one.categories for one in found] == [{3: "box"}] * 2 and found[0].changed
    assert len(lines) == 2 and "category 'things' groups others and has no instance" in lines[0]
    used = check([group, own], 0, 3)
    assert without_unused_parents([unused, used]) == ([unused, used], [])
    own["supercategory"] = "box"  # as COCO's "person" is its own
    assert without_unused_parents([check([group, own], 3, 3)])[1] == []
