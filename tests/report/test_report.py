"""The report of runs of all kinds, parsed, and opened in a browser where there is one."""

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from conftest import dataset_overrides, write_coco
from detectron2.config import LazyConfig
from PIL import Image
from small_detector import save_detector

from mvitv2_det import get_config
from mvitv2_det.commands import main
from mvitv2_det.report.run_folder import command_line

pytestmark = pytest.mark.usefixtures("fresh_loggers")


class Page(HTMLParser):
    """What a page holds: its sections, tables, pictures and addresses."""

    def __init__(self, text):
        super().__init__()
        self.titles, self.tables, self.addresses, self.texts = [], [], [], []
        self._open = []
        self.feed(text)
        assert not [tag for tag in self._open if tag not in ("meta", "img")]

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self._open.append(tag)
        self.addresses += [attributes[key] for key in ("src", "href") if key in attributes]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])

    def handle_endtag(self, tag):
        while self._open.pop() != tag:
            pass

    def handle_data(self, data):
        inside = self._open[-1] if self._open else ""
        self.texts.append(data)
        if inside == "h2":
            self.titles.append(data)
        elif inside in ("td", "th"):
            self.tables[-1][-1].append(data)

    @property
    def pictures(self):
        """The content of each picture."""
        return [
            base64.b64decode(address.partition("base64,")[2])
            for address in self.addresses
            if address.startswith("data:image/")
        ]


def read_page(file):
    page = Page(file.read_text(encoding="utf-8"))
    # Nothing is fetched from anywhere: pictures are inside, links are to the page's own sections.
    assert all(address.startswith(("data:image/", "#s")) for address in page.addresses)
    for picture in page.pictures:
        assert picture.startswith(b"<?xml") or Image.open(BytesIO(picture)).size[0] > 50
    return page


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return save_detector(tmp_path_factory.mktemp("detector"))


@pytest.fixture(scope="module")
def evaluation(detector, tmp_path_factory):
    """A folder with data and, in it, the folder of an evaluation of the small detector."""
    folder = tmp_path_factory.mktemp("evaluation")
    write_coco(folder, "train", 4)
    write_coco(folder, "val", 2)
    arguments = ["--config-file", detector.config, "--eval-only", *dataset_overrides(folder)]
    arguments += [f"train.init_checkpoint={detector.weights}", "train.report=true"]
    run = folder / "my <run>"
    assert main(["train", *arguments, f"train.output_dir={json.dumps(str(run))}"]) == 0
    return folder


@pytest.fixture
def evaluated(evaluation, tmp_path):
    """A copy of both, to spoil."""
    folder = tmp_path / "evaluation"
    shutil.copytree(evaluation, folder)
    config = folder / "my <run>" / "config.yaml"
    config.write_text(config.read_text().replace(str(evaluation), str(folder)))
    return folder / "my <run>"


def test_an_evaluation_ends_with_a_report(evaluation):
    run = evaluation / "my <run>"
    page = read_page(run / "report.html")
    for title in ("Result", "Classes", "Mistakes", "Confusion", "Best and worst images", "Data"):
        assert title in page.titles
    assert "Curves" not in page.titles
    log = (run / "log.txt").read_text()
    last = log[log.index("Everything is in ") :]
    assert "report.html" in last and "Traceback" not in log
    assert f"  mvitv2-det report '{run}'" in last.splitlines()
    # The numbers are those that Detectron2's evaluator has printed.
    copied = [line.split(",") for line in re.findall(r"copypaste: (.*)", log) if "." in line]
    for row, values in zip(page.tables[0][1:], copied, strict=True):
        expected = [f"{float(value):.1f}" for value in values]
        assert row[1:7] == ["–" if value == "nan" else value for value in expected]
    assert sorted(row[0] for row in page.tables[1][1:]) == ["box", "plate"]
    assert "my <run>" in page.texts and "Commands of the run" in page.texts
    entry = json.loads((run / "run.json").read_text())[-1]
    assert entry["seed"] is None and entry["packages"]["torch"]


@pytest.mark.long
def test_a_training_ends_with_a_report(detector, coco_folder, capfd):
    arguments = ["--config-file", detector.config, *dataset_overrides(coco_folder)]
    arguments += ["train.report=true", "train.max_iter=2", "train.eval_period=2"]
    assert main(["train", *arguments, f"train.output_dir={coco_folder}/run"]) == 0
    page = read_page(coco_folder / "run" / "report.html")
    assert {"Curves", "Mistakes", "Data"} <= set(page.titles)
    data = next(table for table in page.tables if "image sizes" in table[0])
    assert [row[:4] for row in data[1:]] == [["train", "4", "0", "4"], ["val", "2", "0", "2"]]
    last = capfd.readouterr().out
    assert "model_final.pth" in last[last.index("Everything is in ") :]


def test_the_command_and_its_options(evaluated, tmp_path, capfd):
    run = evaluated
    file = tmp_path / "pages" / "one.html"
    arguments = [str(run), "--output", str(file), "--images", "1", "--score-threshold", "0.9"]
    assert main(["report", *arguments]) == 0
    assert capfd.readouterr().out == f"{file}\n"
    assert len(read_page(file).pictures) == len(read_page(run / "report.html").pictures) - 4


def test_without_the_data_there_is_less(evaluated):
    run = evaluated
    (run.parent / "val.json").unlink()
    assert main(["report", str(run)]) == 0
    page = read_page(run / "report.html")
    assert "Mistakes" not in page.titles
    assert "val.json is missing" in "".join(page.texts)


def test_without_images_there_are_no_pictures_of_them(evaluated):
    run = evaluated
    shutil.rmtree(run.parent / "val")
    assert main(["report", str(run)]) == 0
    assert not [p for p in read_page(run / "report.html").pictures if p.startswith(b"\xff\xd8")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none"], "config.yaml"),
        ([".", "--images", "-1"], "--images"),
        ([".", "--score-threshold", "2"], "--score-threshold"),
    ],
)
def test_mistakes_are_one_line(arguments, words, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments]) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ") and words in error and error.count("\n") == 1


def test_predictions_of_other_data(evaluated, capfd):
    run = evaluated
    file = run / "inference" / "coco_instances_results.json"
    file.write_text(json.dumps([dict(image_id=99, category_id=3, bbox=[0, 0, 1, 1], score=1)]))
    assert main(["report", str(run)]) == 2
    assert "image 99" in capfd.readouterr().err


def test_a_classifier(tmp_path):
    run = tmp_path / "run"
    (run / "inference").mkdir(parents=True)
    cfg = get_config("mask_rcnn_mvitv2_t_3x")
    LazyConfig.save(cfg, str(run / "config.yaml"))
    content = {"classes": ["a", "b"], "labels": [0, 1, 1], "label_probabilities": [0.9, 0.2, 0.6]}
    content |= {
        "top": [[0, 1], [0, 1], [1, 0]],
        "probabilities": [[0.9, 0.1], [0.8, 0.2]] * 1 + [[0.6, 0.4]],
        "files": [str(tmp_path / f"{i}.png") for i in range(3)],
    }
    (run / "inference" / "classifications.json").write_text(json.dumps(content))
    metrics = {"iteration": 9, "total_loss": 1.0, "classification/top1": 66.7}
    (run / "metrics.json").write_text(json.dumps(metrics) + "\n")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "1.png")
    assert main(["report", str(run)]) == 0
    page = read_page(run / "report.html")
    assert page.titles[:4] == ["Result", "Curves", "Confusion", "Worst mistakes"]
    assert "66.7 %" in page.texts


def test_commands_are_as_they_are_typed():
    command = ["/venv/bin/mvitv2-det", "train", "a b=1"]
    assert command_line({"command": command}) == "mvitv2-det train 'a b=1'"
    assert command_line({"command": ["train_net.py", "x"]}) == "python train_net.py x"
    assert command_line({}) == ""


@pytest.mark.long
def test_in_a_browser(evaluation, tmp_path):
    """The page is laid out, all its pictures are drawn, and nothing lies beside the window."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        pytest.skip("there is no chromium")
    run = evaluation / "my <run>"
    text = (run / "report.html").read_text()
    probe = """<script>window.onload = () => { const pictures = [...document.images];
      document.title = JSON.stringify([pictures.length,
        pictures.filter(p => p.complete && p.naturalWidth > 50).length,
        document.documentElement.scrollWidth - window.innerWidth]); }</script></body>"""
    file = tmp_path / "probed.html"
    file.write_text(text.replace("</body>", probe))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    options += [f"--user-data-dir={tmp_path / 'browser'}", "--window-size=1000,800", "--dump-dom"]
    shown = subprocess.run(
        [chromium, *options, file.as_uri()], capture_output=True, text=True, timeout=240, check=True
    ).stdout
    total, drawn, beside = json.loads(re.search(r"<title>(.*?)</title>", shown)[1])
    assert total == drawn > 5 and beside <= 0
