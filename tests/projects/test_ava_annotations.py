"""projects/ava: AVA's files, and what is said of wrong ones."""

import pickle

import numpy as np
import pytest

from mvitv2_det import UserError
from projects.ava.annotations import (
    KeyFrame,
    Person,
    read_actions,
    read_excluded,
    read_persons,
    read_truths,
    training_persons,
)

LINES = """0f39OWEqJ24,0902,0.031,0.162,0.670,0.995,12,0
0f39OWEqJ24,0902,0.031,0.162,0.670,0.995,17,0
0f39OWEqJ24,0902,0.5,0.1,0.7,0.9,12,1

-5K,1798,0,0,1,1,80,3
"""
KEY = KeyFrame("0f39OWEqJ24", 902)
BOX = (0.031, 0.162, 0.67, 0.995)


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_actions_of_a_person_are_joined(write):
    truths = read_truths(write("a.csv", LINES))
    assert truths[KEY] == [Person(BOX, (12, 17)), Person((0.5, 0.1, 0.7, 0.9), (12,))]
    assert truths[KeyFrame("-5K", 1798)] == [Person((0, 0, 1, 1), (80,))]


@pytest.mark.parametrize(
    "text",
    ['item {\n  name: "bend/bow"\n  id: 1\n}\nitem {\n  name: "sit"\n  id: 11\n}\n',
     'label {\n name: "sit"\n label_id: 11\n label_type: PERSON_MOVEMENT\n}\n'
     'label { name: "bend/bow" label_id: 1 label_type: X }'],
)  # fmt: skip
def test_names_of_both_of_avas_lists(write, text):
    assert list(read_actions(write("a.pbtxt", text)).items()) == [(1, "bend/bow"), (11, "sit")]


def test_mmaction2s_samples(shared_data):
    folder = shared_data("video") / "ava"
    actions = read_actions(folder / "action_list.txt")
    assert actions == {12: "action1", 17: "action2", 79: "action3", 80: "action3"}
    truths = read_truths(folder / "ava_sample.csv")
    assert truths[KEY][0] == Person(BOX, (12, 17, 79))
    excluded = read_excluded(folder / "ava_excluded_timestamps_sample.csv")
    assert excluded == {KeyFrame("0f39OWEqJ24", 903), KeyFrame("_-Z6wFjXtGQ", 902)}


def test_persons_of_a_csv_and_of_a_pickle_are_the_same(write):
    boxes = np.array([[0.1, 0.2, 0.3, 0.4, 0.9], [0.5, 0.5, 0.75, 1.0, 0.25]])
    pkl = write("p.pkl", pickle.dumps({"v,0902": boxes}))
    lines = [f"v,902,{','.join(map(str, row[:4]))},,{row[4]}" for row in boxes.tolist()]
    table = write("p.csv", "\n".join(lines))
    expected = {KeyFrame("v", 902): [Person((0.1, 0.2, 0.3, 0.4), (), 0.9)]}
    assert read_persons(pkl, 0.8) == read_persons(table, 0.8) == expected
    assert len(read_persons(pkl)[KeyFrame("v", 902)]) == 2


def test_a_pickle_that_wants_to_run_code_is_refused(write):
    path = write("p.pkl", pickle.dumps({"v,0902": print}))
    with pytest.raises(UserError, match=r"p\.pkl: it was refused because it wants to run"):
        read_persons(path)


def test_detected_persons_train_with_the_actions_of_the_truth_they_are():
    """IoU above 0.9, of boxes of 1 × 1 and of 0.95 and 0.85 of it."""
    truths = {KEY: [Person((0, 0, 1, 1), (3, 4))]}
    near, far = Person((0, 0, 0.95, 1), (), 0.9), Person((0, 0, 0.85, 1), (), 0.9)
    other = KeyFrame("elsewhere", 1)
    joined = training_persons(truths, {KEY: [near, far], other: [near]})
    assert joined == {KEY: [*truths[KEY], near._replace(actions=(3, 4))]}


def test_labelled_persons_train_as_they_are():
    truths = {KEY: [Person((0, 0, 1, 1), (3,))]}
    negative = Person((0.1, 0, 0.2, 1), (), 0.9)
    labelled = Person((0, 0, 1, 1), (3, 5), 0.9)
    joined = training_persons(truths, {KEY: [negative, labelled]})
    assert joined == {KEY: [Person((0, 0, 1, 1), (3, 5)), negative]}


WRONG = {
    "v,902,0.1,0.2,0.3,0.4,x,0": "line 2: expected an action counted from 1, got 'x'",
    "v,902,0.1,0.2,0.3,0.4,0,0": "line 2: expected an action counted from 1, got '0'",
    "v,902,0.1,0.2,30,0.4,1,0": "line 2: expected a box x1,y1,x2,y2 in shares",
    "v,902,0.5,0.2,0.3,0.4,1,0": "line 2: expected a box x1,y1,x2,y2 in shares",
    "v,902,0.1,0.2,nan,0.4,1,0": "line 2: expected a number, got 'nan'",
    "v,902.5,0.1,0.2,0.3,0.4,1,0": "line 2: expected whole seconds, got '902.5'",
    "v,902,0.1,0.2": "line 2: expected video,second,x1,y1,x2,y2,action, got 'v,902,0.1,0.2'",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_line_is_named(write, line):
    path = write("a.csv", "v,901,0,0,1,1,1,0\n" + line)
    with pytest.raises(UserError) as error:
        read_truths(path)
    assert str(error.value).startswith(f"{path}, {WRONG[line]}")


def test_other_wrong_files(write, tmp_path):
    cases = [
        (read_truths, write("e.csv", ""), "has no lines"),
        (read_truths, write("n.csv", "v,902,0,0,1,1,,0.9"), "has no actions"),
        (read_truths, tmp_path / "none.csv", "cannot read"),
        (read_actions, write("a.txt", "walk"), "lists no actions"),
        (read_actions, write("b.txt", 'item { name: "a" }'), "item 1: expected name"),
        (read_actions, write("c.txt", 'item {name: "a" id: 1}item {name: "b" id: 1}'), "before"),
        (read_persons, write("x.pkl", b"junk"), "cannot be read"),
        (read_persons, write("y.pkl", pickle.dumps({"v,1": np.ones((2, 3))})), "must map"),
        (lambda p: read_persons(p, 0.95), write("z.csv", "v,902,0,0,1,1,,0.9"), "scores 0.95"),
    ]
    for read, path, message in cases:
        with pytest.raises(UserError, match=message):
            read(path)
