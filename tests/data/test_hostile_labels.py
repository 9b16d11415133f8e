"""Label files of unknown origin: what is malformed is one line; nothing leads out of the folder."""

import json
import random
import re

import pytest
import samples
from test_formats import read, voc_object, write_cvat, write_labelme, write_voc

from mvitv2_det import UserError


def faults(folder):
    """All that is wrong with a folder, whether single records or the whole."""
    try:
        return read(folder)[1].faults
    except UserError as error:
        return [str(error)]


def yolo(folder, line, **files):
    samples.yolo_traced(folder)
    (folder / "train/labels/train_1.txt").write_text(f"0 0.5 0.5 0.1 0.1\n\n{line}\n")
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def yaml(text):
    return lambda folder: yolo(folder, "", data=text)


def labelme(*shapes, **changes):
    return lambda folder: write_labelme(folder, *shapes, **changes)


def cvat(shape, **changes):
    return lambda folder: write_cvat(folder, shape, **changes)


def voc(*objects, **changes):
    return lambda folder: write_voc(folder, *objects, **changes)


BOMB = "<!DOCTYPE a [<!ENTITY a 'aaaaaaaa'><!ENTITY b '&a;&a;&a;&a;'>]>"
ALIASES = "a: &a {x: 1}\nb: &b {<<: [*a, *a]}\nnames: *b"
POINTS = [[1, 1], [9, 1], [9, 9]]

MALFORMED = {
    "yolo words": (lambda f: yolo(f, "0 a b c d"), r"train_1\.txt:3: expected a class and numbers"),
    "yolo numbers": (lambda f: yolo(f, "0 0.5 0.5 0.5"), r"txt:3: .*4 numbers of a box.*got 4"),
    "yolo pixels": (lambda f: yolo(f, "0 300 200 50 60"), r"txt:3: .*from 0 to 1, got '300 200"),
    "yolo nan": (lambda f: yolo(f, "0 nan 0.1 0.1 0.1"), r"txt:3: coordinates"),
    "yolo class": (lambda f: yolo(f, "7 0.5 0.5 0.1 0.1"), r"txt:3: class 7 has no name"),
    "yolo half a class": (lambda f: yolo(f, "0.5 0.5 0.5 0.1 0.1"), r"txt:3: expected a class"),
    "yolo long class": (lambda f: yolo(f, "9" * 5000 + " 0.5 0.5 0.1 0.1"), "txt:3: expected"),
    "yaml": (yaml("names: [a\nb: {"), r"data\.yaml:\d+: no YAML"),
    "yaml names": (yaml("names: 3"), r"data\.yaml: 'names' must list .* got 3"),
    "yaml calls": (yaml("names: !!python/object/apply:os.system [ls]"), "data.yaml:1: no YAML"),
    "yaml aliases": (yaml(ALIASES), r"data\.yaml:2: no YAML: aliases are not read"),
    "yaml nested": (yaml("names: " + "[" * 5000), "too deeply nested"),
    "yaml path": (
        yaml("names: [a, b]\npath: /\ntrain: etc"),
        r"there is no folder 'etc' in .*: all must be in the folder of the file",
    ),
    "yaml escape": (yaml("names: [a, b]\ntrain: ../../../../etc"), "there is no folder '../../"),
    "voc entities": (voc(extra=BOMB), r"a\.xml:2: no XML"),
    "voc box": (voc(voc_object(1, 2, 3, "x")), r"a\.xml:3: 'bndbox' has no number 'ymax' but 'x'"),
    "voc no box": (voc("<object><name>a</name></object>"), r"xml:3: an object without a box"),
    "voc no name": (voc("<object/>"), r"xml:3: an object without a name"),
    "voc unclosed": (voc("<object>"), r"a\.xml:3: no XML: mismatched tag"),
    "voc infinite": (voc(voc_object(1, 2, "inf", 4)), r"'xmax' is 'inf'"),
    "voc escape": (voc(name="../../../../etc/passwd"), "leads out of the folder"),
    "voc size": (
        voc(extra="<size><width>60</width><height>48</height></size>"),
        "is 64×48, but its labels say 60×48",
    ),
    "cvat entities": (cvat("", prolog=BOMB), r"xml:1: declares entities: not read"),
    "cvat escape": (cvat("", name="../../a.png"), r"xml:2: .*leads out of the folder"),
    "cvat points": (cvat("<polygon label='x' points='1,2;3'/>"), r"xml:3: 'points' must be x,y"),
    "cvat runs": (
        cvat("<mask label='x' rle='1,999999999999999' left='0' top='0' width='2' height='2'/>"),
        "xml:3: the runs of a mask",
    ),
    "cvat mask": (
        cvat("<mask label='x' rle='4' left='63' top='0' width='2' height='2'/>"),
        "xml:3: a mask that leads out of its image",
    ),
    "cvat label": (cvat("<box xtl='1' ytl='1' xbr='2' ybr='2'/>"), "xml:3: a box without a label"),
    "cvat shape": (cvat("<blob label='x'/>"), "xml:3: 'blob' is no shape of CVAT's"),
    "cvat video": (cvat("</image><track/><image>"), "'CVAT for video'"),
    "labelme shape": (labelme(3), r"a\.json: shapes\[0\] is of the type None"),
    "labelme type": (labelme({"shape_type": "blob"}), r"shapes\[0\] is of the type 'blob'"),
    "labelme types": (labelme({"shape_type": ["mask"]}), r"shapes\[0\] is of the type \['mask'\]"),
    "labelme label": (labelme({"points": POINTS}), r"shapes\[0\] has no 'label'"),
    "labelme points": (labelme({"label": "a", "points": [[1]]}), r"shapes\[0\] has no 'points'"),
    "labelme escape": (labelme(imagePath="/etc/passwd"), "leads out of the folder"),
    "labelme up": (labelme(imagePath="..\\..\\x.png"), "leads out of the folder"),
    "labelme mask": (
        labelme({"label": "a", "points": [[1, 1], [2, 2]], "shape_type": "mask", "mask": "AAAA"}),
        r"shapes\[0\] has a mask that is no PNG",
    ),
    "labelme mask outside": (
        labelme({"label": "a", "points": [[1, 1], [99, 2]], "shape_type": "mask", "mask": ""}),
        "mask that leads out of its image",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_malformed_is_one_line_with_its_place(tmp_path, case):
    write, words = MALFORMED[case]
    found = faults(write(tmp_path / "data"))
    assert len(found) == 1 and "\n" not in found[0]
    assert re.search(words, found[0]), found[0]


def test_all_faults_are_counted_and_left_out_if_asked(tmp_path):
    folder = yolo(tmp_path / "yolo", "0 nan 1 1 1\n9 0.5 0.5 0.1 0.1\n1 0.5 0.5 0.1 0.1")
    _, findings = read(folder)
    assert [line.split(": ")[0].rsplit(":")[-1] for line in findings.faults] == ["3", "4"]
    with pytest.raises(UserError, match=r"txt:3: .*\(1 more faults: .*=drop leaves them out\)"):
        findings.check()
    data, findings = read(folder, odd="drop")
    findings.check()
    assert "2 wrong records are left out (the first: " in findings.lines[0]
    assert sum(one["image_id"] == 1 for one in data.splits["train"].content["annotations"]) == 2


LABELS = {
    "yolo_traced": ("data.yaml", "train/labels/train_1.txt"),
    "voc_traced": ("train_1.xml",),
    "voc": ("Annotations/train_1.xml", "ImageSets/Main/train.txt"),
    "labelme": ("train_1.json",),
    "cvat": ("train.xml",),
    "lvis": ("lvis_v1_train.json",),
    "panoptic": ("annotations/panoptic_train2017.json",),
}


def test_panoptic_annotations_that_are_none(tmp_path):
    folder = samples.panoptic(tmp_path / "data")
    file = folder / LABELS["panoptic"][0]
    content = json.loads(file.read_text())
    content["annotations"][1] = 0.5
    file.write_text(json.dumps(content))
    (found,) = faults(folder)
    assert "panoptic_train2017.json: annotations[1]: is a float" in found


@pytest.mark.parametrize("name", LABELS)
def test_damaged_label_files_end_in_lines(tmp_path, name):
    folder = samples.ALL[name][0](tmp_path / "data")
    rng = random.Random(name)
    for label in LABELS[name]:
        file = folder / label
        good = file.read_bytes()
        for _ in range(25):
            changed = bytearray(good)
            for _ in range(rng.randint(1, 4)):
                at = rng.randrange(len(changed) + 1)
                junk = rng.choice(
                    [b"", b"0", b"-", b"\0", b"<", b"\xff", b'"', b"nan", b"../", b"["]
                )
                changed[at : at + rng.choice([0, 1, 20])] = junk
            file.write_bytes(changed)
            assert all("\n" not in line for line in faults(folder))
        file.write_bytes(good)


def test_jsons_with_values_of_other_kinds_end_in_lines(tmp_path):
    from test_annotations import mutated

    rng = random.Random(0)
    for name in ("labelme", "panoptic", "lvis"):
        folder = samples.ALL[name][0](tmp_path / name)
        file = folder / LABELS[name][0]
        good = json.loads(file.read_text())
        for _ in range(20):
            file.write_text(json.dumps(mutated(rng, good)))
            assert all("\n" not in line for line in faults(folder))
