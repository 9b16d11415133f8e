"""projects/video: lists of videos in the formats of others, and what is said of bad ones."""

import json
import re

import pytest

from mvitv2_det.errors import UserError
from projects.video.manifests import detect_format, read_manifest


@pytest.fixture
def videos(tmp_path):
    """Six empty files and a folder of frames; lists do not look into them."""
    for name in ("a/run/x_000001_000011.mp4", "a/run/y y.mp4", "a/walk/z.webm", "12.webm", "7.mp4"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / "frames" / "v1").mkdir(parents=True)
    for number in range(3):
        (tmp_path / "frames" / "v1" / f"{number}.jpg").touch()
    return tmp_path


def listed(answer):
    samples, classes = answer
    return [(sample.path.name, sample.label) for sample in samples], classes


def write(folder, name, text):
    (folder / name).write_text(text)
    return str(folder / name)


def test_folder_a_class(videos):
    expected = [("x_000001_000011.mp4", "run"), ("y y.mp4", "run"), ("z.webm", "walk")]
    assert listed(read_manifest(str(videos / "a"))) == (expected, ["run", "walk"])


def test_folder_a_class_of_frame_folders(videos):
    assert listed(read_manifest(str(videos))) == (
        [("x_000001_000011.mp4", "a"), ("y y.mp4", "a"), ("z.webm", "a"), ("v1", "frames")],
        ["a", "frames"],
    )


@pytest.mark.parametrize(
    "text",
    [
        "12.webm 1\n7.mp4 0\na/run/y y.mp4 2\n",  # PySlowFast, mmaction2
        "12.webm,1\n7.mp4,0\na/run/y y.mp4,2\n",
        "path\tlabel\n12.webm\t1\n7.mp4\t0\n\na/run/y y.mp4\t2\n",
    ],
)
def test_lists_of_numbers(videos, text):
    source = write(videos, "train.csv", text)
    expected = [("12.webm", "1"), ("7.mp4", "0"), ("y y.mp4", "2")]
    assert listed(read_manifest(source)) == (expected, ["0", "1", "2"])
    # Numbers count the classes that are known.
    known = ["jump", "run", "walk", "wave"]
    expected = [("12.webm", "run"), ("7.mp4", "jump"), ("y y.mp4", "walk")]
    assert listed(read_manifest(source, classes=known)) == (expected, known)


def test_lists_of_names_and_a_root(videos):
    (videos / "lists").mkdir()
    source = write(videos / "lists", "train.csv", "path,label\nz.webm,to walk\n")
    found = read_manifest(source, root=str(videos / "a" / "walk"))
    assert listed(found) == ([("z.webm", "to walk")], ["to walk"])


def test_raw_frames(videos):
    source = write(videos, "train.txt", "frames/v1 3 1\n7 1 0\n")
    assert listed(read_manifest(source)) == ([("v1", "1"), ("7.mp4", "0")], ["0", "1"])


def test_official_kinetics(videos):
    head = "label,youtube_id,time_start,time_end,split\n"
    source = write(videos, "k.csv", f'{head}run,x,1,11,train\n"walk",z,3.0,13.0,train\n')
    assert detect_format(videos / "k.csv") == "kinetics"
    answer = read_manifest(source, root=str(videos / "a"))
    expected = [("x_000001_000011.mp4", "run"), ("z.webm", "walk")]
    assert listed(answer) == (expected, ["run", "walk"])


def test_something_something(videos):
    labels = {"Putting something on something": "0", "Holding something": "1"}
    write(videos, "something-something-v2-labels.json", json.dumps(labels))
    content = [
        {"id": "12", "label": "holding a pen", "template": "Holding [something]"},
        {"id": "7", "template": "Putting [something] on [something]"},
    ]
    source = write(videos, "something-something-v2-train.json", json.dumps(content))
    samples, classes = listed(read_manifest(source))
    assert samples == [
        ("12.webm", "Holding something"),
        ("7.mp4", "Putting something on something"),
    ]
    assert classes == list(labels)


def test_list_of_single_frames(videos):
    lines = "".join(f'9 9 {n} frames/v1/{n}.jpg "4"\n' for n in range(3))
    head = "original_vido_id video_id frame_id path labels\n"
    source = write(videos, "train.csv", head + lines)
    assert listed(read_manifest(source)) == ([("v1", "4")], list("01234"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("12.webm 1\nnone.mp4 1\n", r"train.csv, line 2: there is no video .*none.mp4; "),
        ("12.webm 1\n7.mp4\n", r"train.csv, line 2: expected path and label"),
        ("12.webm,1\n7.mp4,x,2\n", r"line 2: expected a number of frames, got 'x'"),
        ("\n", "has no videos"),
        ("label,youtube_id,time_start\nrun,x,1\n", "line 1: expected columns .* no time_end"),
        ("label,youtube_id,time_start,time_end\nrun,x,a,b\n", "line 2: expected times in seconds"),
        ("12.webm 5\n", r"line 1: label 5 is not among the 2 classes"),
        ("12.webm fly\n", "has class 'fly' .* not among the 2 classes"),
    ],
)  # fmt: skip
def test_bad_lists_have_file_and_line(videos, text, words):
    source = write(videos, "train.csv", text)
    with pytest.raises(UserError) as caught:
        read_manifest(source, classes=["run", "walk"])
    assert re.search(words, str(caught.value)) and "\n" not in str(caught.value)


def test_lines_that_are_missing_may_be_left_out(videos):
    source = write(videos, "train.csv", "12.webm 1\nnone.mp4 1\n")
    assert listed(read_manifest(source, missing="skip"))[0] == [("12.webm", "1")]
    with pytest.raises(UserError, match="none of its 2 videos is there"):
        read_manifest(source, missing="skip", root=str(videos / "frames"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"source": "nowhere.csv"}, "no folder of classes or list of videos 'nowhere.csv'"),
        ({"format": "ucf"}, "dataset.format must be one of"),
        ({"missing": "x"}, "dataset.missing must be error or skip"),
        ({"format": "kinetics"}, "is a folder"),
    ],
)
def test_bad_arguments(videos, arguments, words):
    with pytest.raises(UserError, match=words):
        read_manifest(**{"source": str(videos), **arguments})


def test_folders_without_videos(videos):
    (videos / "a" / "empty").mkdir()
    with pytest.raises(UserError, match=r"class folder .*empty holds no video"):
        read_manifest(str(videos / "a"))
    with pytest.raises(UserError, match="run has no folders"):
        read_manifest(str(videos / "a" / "run"))
