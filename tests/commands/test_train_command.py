"""mvitv2-det train as its users call it, in process."""

import json
import re

import pytest
import torch
from conftest import dataset_overrides, tiny_overrides
from PIL import Image
from scripts import one_error

import train_net
from mvitv2_det import get_config
from mvitv2_det.commands import main
from mvitv2_det.config import config_files

NAME = "mask_rcnn_mvitv2_t_3x"

pytestmark = pytest.mark.usefixtures("fresh_loggers")


def call(*arguments, config=NAME):
    return main(["train", "--config-file", config, *arguments])


@pytest.fixture
def overrides(coco_folder):
    """Small data, a small model, and an output folder."""
    return [
        *tiny_overrides(get_config(NAME)),
        *dataset_overrides(coco_folder),
        f"train.output_dir={coco_folder}/out",
        "train.log_period=1",
    ]


def metrics(folder):
    lines = (folder / "out" / "metrics.json").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_trains_evaluates_resumes(overrides, coco_folder, capfd):
    assert call(*overrides) == 0
    output = coco_folder / "out"
    assert {"model_final.pth", "metrics.json", "config.yaml"} <= {f.name for f in output.iterdir()}
    assert "bbox/AP" in metrics(coco_folder)[-1]
    assert "segm/AP50" in metrics(coco_folder)[-1]
    first = torch.load(output / "model_final.pth", weights_only=False)
    assert first["iteration"] == 1

    assert call("--resume", *overrides, "train.max_iter=3") == 0
    resumed = torch.load(output / "model_final.pth", weights_only=False)
    assert resumed["iteration"] == 2
    assert [line["iteration"] for line in metrics(coco_folder) if "total_loss" in line][-1] == 2

    capfd.readouterr()
    final = f"train.init_checkpoint={output}/model_final.pth"
    assert call("--eval-only", *overrides, final) == 0
    assert "copypaste: Task: segm" in capfd.readouterr().out
    assert (output / "inference" / "coco_instances_results.json").exists()

    # Data of another number of classes would be evaluated with random heads.
    val = json.loads((coco_folder / "val.json").read_text())
    val["categories"].append({"id": 99, "name": "spoon"})
    (coco_folder / "val.json").write_text(json.dumps(val))
    assert call("--eval-only", *overrides, final) == 2
    assert "model_final.pth know 2 classes, the config's model 3: use" in one_error(capfd)


@pytest.mark.long
def test_two_processes_on_cpu_with_synchronised_batch_norm(overrides, coco_folder):
    """Cascade heads, whose SyncBN must see both workers' regions; and evaluation at the end."""
    arguments = [override for override in overrides if "mask_head.conv_dims" not in override]
    for head in range(3):
        arguments.append(f"model.roi_heads.box_heads.{head}.conv_dims=[8]")
        arguments.append(f"model.roi_heads.box_heads.{head}.fc_dims=[16]")
        arguments.append(f"model.roi_heads.box_predictors.{head}.input_shape.channels=16")
    arguments.append("model.roi_heads.mask_head.conv_dims=[8,8]")
    config = "cascade_mask_rcnn_mvitv2_t_3x"
    url = f"file://{coco_folder}/rendezvous"
    assert call("--num-gpus", "2", "--dist-url", url, *arguments, config=config) == 0
    state = torch.load(coco_folder / "out" / "model_final.pth", weights_only=False)["model"]
    assert state["roi_heads.box_head.0.conv1.norm.running_mean"].any()
    assert "bbox/AP" in metrics(coco_folder)[-1]
    found = json.loads((coco_folder / "out/inference/coco_instances_results.json").read_text())
    assert {instance["image_id"] for instance in found} == {1, 2}  # one image in each process


def corrupt(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD_DATA = {
    "no json": (lambda folder: (folder / "train.json").unlink(), r"cannot read .*train\.json"),
    "no coco": (lambda folder: (folder / "val.json").write_text("[]"), "not in COCO's format"),
    "no image": (
        lambda folder: (folder / "val" / "2.png").unlink(),
        r"cannot read image .*val/2\.png: .*No such file",
    ),
    "no folder": (
        lambda folder: (folder / "val").rename(folder / "x"),
        "there is no image folder",
    ),
    "category": (
        lambda folder: (folder / "val.json").write_text(
            (folder / "val.json").read_text().replace("plate", "dish")
        ),
        r"category 'dish' \(id 7\) of .*val\.json is unknown to .*train\.json, which lists 'box'",
    ),
    # The header is whole, so that only training finds it.
    "cut-off image": (
        lambda folder: [corrupt(path) for path in (folder / "train").iterdir()],
        r"cannot read image .*train/\d\.png: .*trunc",
    ),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(case, overrides, coco_folder, capfd):
    spoil, words = BAD_DATA[case]
    spoil(coco_folder)
    assert call(*overrides) == 2
    assert re.search(words, one_error(capfd))
    assert case == "cut-off image" or not (coco_folder / "out").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.max_iters=3", "did you mean 'train.max_iter'"),
        ("train.init_checkpoint=none.pth", "there is no checkpoint file 'none.pth'"),
        ("train.amp.dtype=float8", "must be float16 or bfloat16, got 'float8'"),
        ("model.backbone.bottom_up.depth=7", "depth - 1 = 6, got 3"),
        ("model.backbone.bottom_up.out_features=[scale9]", "got 'scale9'"),
        ("optimizer.lr=1e30", "training diverged.*lower optimizer.lr"),
    ],
)
def test_bad_settings(override, words, overrides, capfd):
    assert call(*overrides, override) == 2
    assert re.search(words, one_error(capfd))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_no_gpu(overrides, capfd):
    assert call(*overrides, "train.device=cuda") == 2
    assert "add train.device=cpu" in one_error(capfd)


def test_no_config_and_no_weights(overrides, capfd):
    assert main(["train"]) == 2
    assert "--config-file is missing" in one_error(capfd)
    assert main(["train", "--config-file", "none.py"]) == 2
    assert "there is no config file 'none.py'" in one_error(capfd)
    assert call("--eval-only", *overrides) == 2
    assert "evaluation needs trained weights" in one_error(capfd)


def test_an_unreadable_image_in_a_worker_or_a_process(overrides, coco_folder, capfd):
    for path in (coco_folder / "train").iterdir():
        corrupt(path)
    words = r"error: .*cannot read image .*train/\d\.png: .*trunc"
    assert call(*overrides, "dataloader.train.num_workers=1") == 2
    assert re.match(words, one_error(capfd))
    url = f"file://{coco_folder}/rendezvous"
    assert call("--num-gpus", "2", "--dist-url", url, *overrides) == 2
    _, err = capfd.readouterr()
    assert re.search(words, err)


def test_boxes_without_masks(overrides, coco_folder):
    """The two overrides that the README and the error about missing masks name."""
    for split in ("train", "val"):
        file = coco_folder / f"{split}.json"
        file.write_text(file.read_text().replace("segmentation", "outline"))
    boxes_alone = [
        "model.roi_heads.mask_in_features=null",
        "dataloader.train.mapper.use_instance_mask=false",
    ]
    assert call(*overrides, *boxes_alone) == 0
    last = metrics(coco_folder)[-1]
    assert "bbox/AP" in last
    assert "loss_mask" not in last and "segm/AP" not in last


def test_images_without_instances_and_crowds(overrides, coco_folder):
    """Empty images are left out of training and evaluated; crowds are ignored."""
    for split in ("train", "val"):
        file = coco_folder / f"{split}.json"
        content = json.loads(file.read_text())
        content["images"].append({"id": 99, "file_name": "99.png", "width": 64, "height": 48})
        Image.new("RGB", (64, 48)).save(coco_folder / split / "99.png")
        content["annotations"][0].update(
            iscrowd=1, segmentation={"size": [48, 64], "counts": [0, 3072]}
        )
        file.write_text(json.dumps(content))
    assert call(*overrides) == 0
    assert "segm/AP" in metrics(coco_folder)[-1]


def test_train_net_is_the_same_command(overrides, coco_folder):
    """Overrides may stand before options, too; the config is given as a file."""
    file = str(config_files()[NAME])
    arguments = [*overrides, "train.max_iter=1", "train.eval_period=0"]
    assert train_net.main([*arguments, "--config-file", file]) == 0
    assert (coco_folder / "out" / "model_final.pth").exists()
