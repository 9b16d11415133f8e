"""The benchmark's data, ratios, files, pictures and command, on tables of two tiny networks."""

import csv
import json
from dataclasses import replace

import pytest
import torch
from detectron2.config import LazyCall, instantiate
from marks import long_but
from matplotlib.text import Text
from models import TINY
from omegaconf import OmegaConf
from scripts import ROOT, load_script

from mvitv2_det import Recognizer, UserError, Variant, get_config
from mvitv2_det.costs import Cost
from projects.attention_benchmark import measurement, plots
from projects.attention_benchmark.measurement import Measured, backend_of, measure
from projects.attention_benchmark.plots import costs, draw
from projects.attention_benchmark.results_files import markdown, ratio, records
from projects.attention_benchmark.tables import NUMBERS, Row, Table, classifier_of, read_tables
from projects.attention_benchmark.training import Trainings
from projects.attention_benchmark.workloads import Settings, Workload
from projects.common.memory import GIB, OutOfMemory
from projects.common.results import write_csv
from projects.common.timing import Timing

ENDINGS = (("json", ".json"), ("images", ""))
NUMBERS_OF_TABLES = ["4a", "4b", "5a", "6", "7", "8", "9", "A.4"]


def tiny_detector():
    model = get_config("mask_rcnn_mvitv2_t_3x").model
    model.backbone.out_channels = 8
    model.backbone.bottom_up.update(TINY)
    model.roi_heads.mask_head.conv_dims = [8, 8]
    return model


def tiny_classifier():
    size = LazyCall(Variant)(embed_dim=8, blocks=(1, 1, 1, 1), num_heads=1, drop_path_rate=0.0)
    return LazyCall(Recognizer.image)(variant=size, image_size=64)


def row(name: str, is_default: bool = False, note: str = "", **paper) -> Row:
    return Row(name, "mask_rcnn_mvitv2_t_3x", is_default, paper, note)


@pytest.fixture
def table() -> Table:
    """Three rows; the second is out of memory in the paper as well."""
    rows = (
        row("S default", True, accuracy=50.0, giga=10.0, train=2.0, test=8.0, memory=4.0),
        row("ViT other", accuracy=40.0, memory="OOM", note="a guess"),
        row("Swin", accuracy=45.0, giga=30.0, train=1.0, test=2.0, memory=8.0),
    )
    return Table("4b", "detection", rows)


@pytest.fixture
def results(table) -> list[Measured]:
    cost = Cost("backbone", 20 * 10**9, 0, 3 * 10**6)
    common = {"cost": cost, "backend": "reference"}
    return [
        Measured(
            table.rows[0],
            memory=GIB,
            saved=GIB // 2,
            train=Timing((1.0, 1.0)),
            test=Timing((0.5, 1.0)),
            **common,
        ),
        Measured(
            table.rows[1],
            memory=OutOfMemory("x"),
            saved=OutOfMemory("x"),
            train=OutOfMemory("x"),
            test=Timing((1.0, 1.0)),
            **common,
        ),
        Measured(
            table.rows[2],
            memory=2 * GIB,
            saved=GIB,
            train=Timing((2.0, 4.0)),
            test=Timing((0.5, 1.0)),
            **common,
        ),
    ]


# The paper's numbers.


def test_all_tables_are_there_with_one_default_row_each():
    tables = read_tables()
    assert list(dict.fromkeys(table.number for table in tables)) == NUMBERS_OF_TABLES
    for table in tables:
        assert sum(row.is_default for row in table.rows) == 1
        assert len({row.name for row in table.rows}) == len(table.rows)
        assert all(set(row.paper) <= set(NUMBERS) for row in table.rows)
    assert len({table.slug for table in tables}) == len(tables)


def test_numbers_are_those_of_the_paper(shared_data):
    """Against a transcript of the paper that others made, row by row in its order."""
    file = shared_data(".").parent / "paper" / "tables.json"
    if not file.exists():
        pytest.skip("no paper/tables.json beside the checkout")
    printed: dict[str, dict[str, list]] = {}
    for record in json.loads(file.read_text())["records"]:
        rows = printed.setdefault(record["table"], {})
        rows.setdefault(record["row"], []).append(record["value"])
    for table in read_tables():
        theirs = [values for name, values in printed[table.number].items()]
        for row in table.rows:
            ours = set(row.paper.values())
            assert any(ours <= set(map(_plain, values)) for values in theirs), row


def _plain(value):
    return tuple(value) if isinstance(value, list) else value


def test_classifier_of_a_detection_backbone():
    backbone = get_config("mask_rcnn_s_abs_rel_pos").model.backbone.bottom_up
    model = classifier_of(backbone)
    assert model == LazyCall(Recognizer.image)(variant="S", use_abs_pos=True)
    assert "variant" not in backbone


# Measuring.


@pytest.mark.parametrize(
    "task", [pytest.param("detection", marks=pytest.mark.long), "classification"]
)
def test_rows_are_measured_and_one_without_memory_does_not_stop_the_rest(monkeypatch, task):
    class Scarce(Workload):
        def __init__(self, model, task, settings):
            super().__init__(model, task, settings)
            if model.get("is_scarce"):
                self.compute_loss = self.fail

        def fail(self):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")

    def model_of(row, task):
        model = tiny_detector() if task == "detection" else tiny_classifier()
        return OmegaConf.merge(model, {"is_scarce": True}) if row.name == "b" else model

    monkeypatch.setattr(measurement, "count", lambda table, row: Cost("total", 1, 0, 1))
    monkeypatch.setattr(measurement, "Workload", Scarce)
    monkeypatch.setattr(
        "projects.attention_benchmark.workloads.instantiate", _instantiate_without_flag
    )
    lines = []
    rows = (row("a", True), row("b"), row("c"))
    settings = Settings("cpu", 2, (64, 64), "fp32")
    results = measure(Table("4b", task, rows), settings, 2, report=lines.append, model_of=model_of)
    a, b, c = results
    for result in (a, c):
        assert len(result.train.seconds) == len(result.test.seconds) == 2
        assert result.memory > result.saved > 0
        assert result.backend == "reference"
    assert isinstance(b.memory, OutOfMemory) and isinstance(b.train, OutOfMemory)
    assert isinstance(b.saved, OutOfMemory) and b.train is not None
    assert "  memory   b: out of memory" in lines
    # The same network has the same memory, up to what non-maximum suppression keeps.
    assert a.saved == pytest.approx(c.saved, rel=0.05)


def _instantiate_without_flag(config):
    config = config.copy()
    config.pop("is_scarce", None)
    return instantiate(config)


def test_precision_of_brain_floats_on_the_cpu():
    seen = set()
    workload = Workload(tiny_detector(), "detection", Settings("cpu", 1, (64, 64), "bf16"))
    layer = workload.model.backbone.bottom_up.blocks[0].mlp
    layer.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    with workload.training() as step:
        step()
    with workload.testing() as step:
        step()
    assert seen == {torch.bfloat16}


def test_heads_do_what_is_counted():
    """Every proposal is a candidate of one class; numbers of regions shrink with the image."""
    settings = Settings("cpu", 1, (320, 320), "fp32")
    assert settings.region_scale == pytest.approx(0.1)
    workload = Workload(tiny_detector(), "detection", settings)
    detections = []
    workload.model.roi_heads.mask_head.register_forward_hook(
        lambda module, inputs, output: detections.append(len(output[0]))
    )
    with workload.testing() as step:
        step()
    assert detections == [10]
    assert Settings("cpu", 1, (1600, 1600), "fp32").region_scale == 1


def test_training_changes_no_weight_and_leaves_weights_alone():
    workload = Workload(tiny_classifier(), "classification", Settings("cpu", 1, (64, 64), "fp32"))
    before = [weight.clone() for weight in workload.model.parameters()]
    with workload.training() as step:
        step()
        assert any(weight.grad is not None for weight in workload.model.parameters())
    after = list(workload.model.parameters())
    assert all(weight.grad is None for weight in after)
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old, rtol=1e-6, atol=1e-7)


def test_backend_is_named():
    assert backend_of(torch.nn.Linear(2, 2)) == "its own"


# Results.


def test_ratios(results):
    default, other, swin = results
    assert ratio("train", swin, default).measured.median == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert ratio("train", swin, default).paper == 0.5
    assert ratio("memory", swin, default).measured.median == 2
    assert ratio("saved", swin, default).paper == 2
    assert ratio("memory", other, default) == replace(
        ratio("memory", other, default), measured="OOM", paper="OOM"
    )
    assert ratio("train", other, default).paper is None


def test_markdown(table, results):
    head = {"CPU": "a processor", "command": "python run.py", "batch": "2"}
    text = markdown(table, results, head)
    assert text.startswith("# Table 4b: Attention mechanisms, COCO (Mask R-CNN)\n\n- CPU: a proc")
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if "|" in line}
    cells = [cell.strip() for cell in lines["ViT other"].split("|")]
    assert cells.count("out of memory") == 7
    default = [cell.strip() for cell in lines["**S default**"].split("|")]
    assert "2.67" in default  # 2 images in 0.75 s
    assert "0.38 (0.31 to 0.44)" in lines["Swin"]
    assert "- ViT other: a guess" in text


def test_markdown_of_what_was_trained(table, results):
    """Student's t of three seeds is 4.303: 9.9 ± 2.4 is a difference, 1.3 ± 3.8 is none."""
    accuracies = [(40.0, 41.0, 42.0), (30.0, 32.1, 31.2), (41.0, 41.0, 45.0)]
    for result, values in zip(results, accuracies, strict=True):
        result.accuracies = values
    text = markdown(table, results, {})
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if "|" in line}
    assert "41.0 (40.0 to 42.0)" in lines["**S default**"] and "±" not in lines["**S default**"]
    assert "-9.9 ± 2.4" in lines["ViT other"] and "+1.3 ± 3.8" in lines["Swin"]
    assert "Beyond noise differ: ViT other. Noise hides whether these differ: Swin." in text
    assert "--config-file mask_rcnn_mvitv2_t_3x --num-gpus 8" in text
    assert records(results)[0]["accuracies"] == "40.00 41.00 42.00"
    drawn = costs("train", results)[0].accuracy
    assert (drawn.lower, drawn.median, drawn.upper) == (40.0, 41.0, 42.0)


def test_csv(table, results, tmp_path):
    file = tmp_path / "table.csv"
    write_csv(file, {"command": "python run.py"}, records(results))
    lines = file.read_text().splitlines()
    assert lines[0] == "# command: python run.py"
    read = list(csv.DictReader(lines[1:]))
    assert [line["row"] for line in read] == [row.name for row in table.rows]
    assert read[2]["train_speed_ratio"] == "0.375" and read[2]["paper_train_speed_ratio"] == "0.5"
    assert read[1]["memory_GiB"] == "OOM" and read[1]["train_seconds_median"] == "OOM"
    assert len(records(results)) == 3


def test_long_commands_are_wrapped():
    head = {"CPU": "some", "command": "run.py " + "dataset.train_json=a/path " * 20}
    lines = plots._wrapped(head, 100).splitlines()
    assert len(lines) > 3 and max(map(len, lines)) <= 200
    assert "".join(lines).replace(" ", "").endswith(head["command"].replace(" ", ""))


def test_costs_to_draw(results):
    default, other, swin = costs("train", results)
    assert (default.measured.median, other.measured) == (1, None)
    assert swin.measured.median == pytest.approx(1 / 0.375) and swin.paper == 2
    assert [row.paper for row in costs("giga", results)] == [10, None, 30]


@pytest.mark.long
def test_picture_has_no_labels_over_each_other(table, results, tmp_path, monkeypatch):
    """Fifteen points, three at each place."""
    crowd = []
    for number in range(15):
        paper = {"accuracy": 45.0 + number // 3, "train": 1.0 + number // 3}
        crowd.append(
            Measured(
                row(f"ViT row {number}", number == 0, **paper),
                results[0].cost,
                train=Timing((1.0 + number // 3, 1.1 + number // 3)),
            )
        )
    boxes = {}
    place = plots._place_labels

    def keep(axes):
        place(axes)
        renderer = axes.figure.canvas.get_renderer()
        for note in axes.texts:
            note.update_positions(renderer)
        # Of the words alone, without the lines to their points.
        boxes[axes] = [Text.get_window_extent(note, renderer) for note in axes.texts]

    monkeypatch.setattr(plots, "_place_labels", keep)
    file = tmp_path / "crowd.png"
    draw(Table("4b", "detection", tuple(r.row for r in crowd)), crowd, {"command": "x"}, file)
    assert file.read_bytes().startswith(b"\x89PNG")
    assert [len(labels) for labels in boxes.values()] == [15, 15]
    for labels in boxes.values():
        for index, box in enumerate(labels):
            assert not any(box.overlaps(other) for other in labels[index + 1 :])


# Training of the rows.


def trainings(folder=None, *overrides, seeds=1):
    return Trainings(str(ROOT / "configs" / "demo.py"), overrides, seeds, 2, folder)


@pytest.mark.parametrize("number", long_but(("4b",), ("4b", "6", "7", "A.4")))
def test_rows_are_small_and_differ_as_the_papers_do(number):
    (table,) = read_tables(number, "detection")
    configs = {row.name: trainings().config_of(row, table) for row in table.rows}
    backbones = {name: instantiate(cfg.model.backbone) for name, cfg in configs.items()}
    sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in backbones.items()}
    assert max(sizes.values()) < 3 * sizes[table.default.name] < 6e6
    nodes = [OmegaConf.to_yaml(cfg.model) for cfg in configs.values()]
    assert len(set(nodes)) == len(nodes)
    base = OmegaConf.to_yaml(trainings().base.model)
    assert OmegaConf.to_yaml(configs[table.default.name].model) == base
    if number == "4b":
        blocks = backbones["ViT-B Hwin"].bottom_up.bottom_up.blocks
        assert {block.attn.spec.window_size for block in blocks} == {0, 4}
        assert backbones["S pooling"].bottom_up.blocks[0].attn.spec.window_size == 0


def test_rows_of_other_sizes_are_refused():
    (table,) = read_tables("5a", "detection")
    with pytest.raises(UserError, match=r"table 5a, MViTv1-T: --train compares attention of"):
        trainings().config_of(table.rows[0], table)
    (table,) = read_tables("7", "classification")
    with pytest.raises(UserError, match="--train trains detectors"):
        trainings().config_of(table.rows[0], table)


@pytest.mark.long
def test_trains_what_is_not_trained_yet(tmp_path, capsys):
    """Two rows in two trainings at once; the second time nothing is left to do."""
    digits = tmp_path / "digits"
    assert load_script("tools/make_digits.py").main(
        ["--output", str(digits), "--train-images", "8", "--val-images", "4"]
    ) in (0, None)
    data = [f"dataset.{s}_{k}={digits}/{s}{e}" for s in ("train", "val") for k, e in ENDINGS]
    (whole,) = read_tables("7", "detection")
    table = Table("7", "detection", whole.rows[1:3])
    small = [*data, "train.max_iter=2", "dataloader.train.total_batch_size=2"]
    training = trainings(tmp_path / "runs", *small)
    found = training.run(table)
    assert {name: len(values) for name, values in found.items()} == {r.name: 1 for r in table.rows}
    assert training.run(table) == found
    assert "trained  (2) residual, seed 1: box AP" in capsys.readouterr().out
    with pytest.raises(UserError, match="is a training with other settings"):
        trainings(tmp_path / "runs", *small, "optimizer.lr=1").run(table)
    with pytest.raises(UserError, match=r"training has failed: .*nowhere"):
        trainings(tmp_path / "other", *small, "dataset.val_json=nowhere").run(table)


# The command.


@pytest.fixture
def command():
    return load_script("projects/attention_benchmark/run.py").main


@pytest.mark.long
def test_counts_alone(command, tmp_path, capsys):
    arguments = ["--table", "4a", "--count-only", "--output", str(tmp_path)]
    assert command(arguments) == 0
    printed = capsys.readouterr().out
    assert "counted  S pooling (stride 8): 6.33 G, 34.86 M" in printed
    assert f"--output {tmp_path.name}" in printed and str(tmp_path.parent) + "/run" not in printed
    slug = "table_4a_classification"
    assert {file.name for file in tmp_path.iterdir()} == {
        f"{slug}.{e}" for e in ("md", "csv", "png")
    }
    text = (tmp_path / f"{slug}.md").read_text()
    assert "17.49" in text and "ViT-B pooling: 10.9 G not reproducible" in text
    assert str(tmp_path.parent) not in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--table", "12"], "error: there is no table '12'; there are 4a, 4b, 5a"),
        (["--table", "4a", "--task", "detection"], "no table '4a' with rows of detection"),
        (["--all", "--rounds", "0"], "error: --rounds must be at least 1, got 0"),
        (["--all", "--batch", "0"], "error: --batch must be at least 1, got 0"),
        (["--all", "--iterations", "0"], "error: --iterations must be at least 1, got 0"),
        (["--all", "--threads", "0"], "error: --threads must be at least 1, got 0"),
        (["--all", "--image-size", "8", "64"], "error: --image-size must be at least 32 32"),
        (["--all", "--memory-limit", "0"], "error: --memory-limit must be positive"),
        (
            ["--all", "--device", "cpu", "--precision", "fp16"],
            "error: --precision fp16 needs a GPU",
        ),
    ],
)
def test_mistakes_are_reported_in_one_line(command, capsys, arguments, words):
    assert command(arguments) == 2
    printed = capsys.readouterr().err
    assert words in printed and printed.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_no_gpu(command, capsys):
    assert command(["--all", "--device", "cuda"]) == 2
    assert "no GPU that torch can use" in capsys.readouterr().err
