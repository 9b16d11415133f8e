"""projects/imagenet on streams of webdataset and Hugging Face: exact, and nothing left out."""

import io
import json
import re
import tarfile

import pytest
import torch
from imagenet_runs import CLASSES, call, cut
from omegaconf import OmegaConf

from mvitv2_det.errors import Unreadable, UserError
from mvitv2_det.recognition.description import Input
from projects.imagenet import data

pytestmark = pytest.mark.usefixtures("fresh_loggers")


def add(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def write_shards(photos, split, shards):
    """The split in archives of the package webdataset: pairs of KEY.png and KEY.cls."""
    files = sorted((photos / split).glob("*/*.png"))
    for number in range(shards):
        with tarfile.open(photos / f"{split}-{number}.tar", "w") as archive:
            for file in files[number::shards]:
                label = CLASSES.index(file.parent.name)
                add(archive, f"{file.parent.name}_{file.stem}.png", file.read_bytes())
                add(archive, f"{file.parent.name}_{file.stem}.cls", str(label).encode())


@pytest.fixture
def shards(photos):
    """Settings of ``dataset``: 12 images in three archives, 6 in two."""
    pytest.importorskip("webdataset")
    write_shards(photos, "train", 3)
    write_shards(photos, "val", 2)
    return {
        "train": "wds/photos",
        "train_split": "train-{0..2}.tar|12",
        "val_split": "val-{0..1}.tar|6",
        "root": str(photos),
        "classes": list(CLASSES),
    }


def write_rows(photos):
    """The same as a data set of Hugging Face, of files of Parquet."""
    datasets = pytest.importorskip("datasets")
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    datasets.disable_progress_bars()
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    )
    head = {"huggingface": json.dumps({"info": {"features": features.to_dict()}})}
    (photos / "rows").mkdir(exist_ok=True)
    for split, name in (("train", "train"), ("val", "validation")):
        files = sorted((photos / split).glob("*/*.png"))
        images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
        labels = [CLASSES.index(file.parent.name) for file in files]
        table = arrow.table({"image": images, "label": labels})
        file = photos / "rows" / f"{name}.parquet"
        parquet.write_table(table.replace_schema_metadata(head), file)


@pytest.fixture
def rows(photos):
    """Read as they are, which does not tell their number before, nor the names of classes."""
    write_rows(photos)
    node = {"train": f"hfids/{photos}/rows", "root": str(photos / "cache")}
    return node | {"options": {"num_samples": 12}, "classes": list(CLASSES)}


@pytest.fixture
def prepared_rows(rows):
    """Put into the cache first, which knows all."""
    del rows["classes"]
    return rows | {"options": {"download": True}}


def settings(node):
    """Overrides of the config's ``dataset``."""
    # In Hydra's syntax keys have no quotes.
    texts = {name: re.sub(r'"(\w+)":', r"\1:", json.dumps(value)) for name, value in node.items()}
    return [f"dataset.{name}={text}" for name, text in texts.items()]


@pytest.fixture(params=["shards", "rows", "prepared_rows"])
def stream(request):
    return request.getfixturevalue(request.param)


def node(stream, **changes):
    """The node ``dataset`` as ``prepare_datasets`` leaves it."""
    defaults = {"val": stream["train"], "train_split": "train", "val_split": "validation"}
    return defaults | {"options": {}, "classes": list(CLASSES)} | stream | changes


def batches(stream, count, start=0, **options):
    loader = data.train_loader(
        node(stream), Input(size=8), {"hflip": 0.5, "re_prob": 0.5},
        total_batch_size=options.get("batch", 4), num_workers=options.get("workers", 0),
    )  # fmt: skip
    loader.max_unreadable = options.get("limit", 0)
    loader.start_at(start, seed=5)
    found = [batch for batch, _ in zip(loader, range(count), strict=False)]
    loader.close()
    return found, loader


def test_training_goes_on_where_it_was(stream):
    """Bit for bit, augmentation too, and whatever the number of workers."""
    whole, _ = batches(stream, 7)
    for start, workers in ((2, 0), (5, 2)):
        found, _ = batches(stream, 2, start, workers=workers)
        for batch, expected in zip(found, whole[start : start + 2], strict=True):
            assert all(map(torch.equal, batch, expected))
    assert not torch.equal(whole[0][0], whole[3][0])  # the first batches of two epochs
    for epoch in (whole[:3], whole[3:6]):
        labels = torch.cat([labels for _, labels in epoch])
        assert labels.bincount().tolist() == [4, 4, 4]


def test_evaluation_sees_each_image_once(stream):
    loader = data.test_loader(node(stream), Input(size=8), batch_size=4, num_workers=1)
    labels = torch.cat([labels for _, labels in loader])
    assert labels.bincount().tolist() == [2, 2, 2]


@pytest.mark.long
def test_a_damaged_image_is_named(stream, photos, caplog):
    """timm leaves it out with a warning that does not name it, in evaluation too."""
    for split in ("train", "val"):
        cut(photos / split / "grey" / "1.png")
    kind = "shards" if "wds" in stream["train"] else "rows"
    name = r"train-\d.tar: grey_1" if kind == "shards" else r"hfids/.*, train: 1.png"
    if kind == "shards":
        write_shards(photos, "train", 3)
        write_shards(photos, "val", 2)
    else:
        write_rows(photos)
    found, loader = batches(stream, 3, limit=9, workers=1)
    assert re.search(rf"cannot read image .*{name}: .*trunc.*; replaced by another", caplog.text)
    assert sum(len(labels) for _, labels in found) == 12
    with pytest.raises(UserError, match=rf"cannot read image .*{name}: .*max_unreadable"):
        batches(stream, 3)
    loader = data.test_loader(node(stream), Input(size=8), batch_size=4, num_workers=0)
    with pytest.raises(Unreadable, match=r"cannot read image .*(grey_1|1\.png).*trunc"):
        list(loader)


@pytest.mark.long
def test_trains_resumes_and_evaluates(stream, overrides, photos):
    output = photos.parent / "out"
    # The last of two overrides holds.
    run = [*overrides, "dataset.val=", *settings(stream), "recipe.epochs=2"]
    run += ["train.checkpointer.period=1", "train.checkpointer.max_to_keep=9"]
    assert call(*run) == 0
    whole = torch.load(output / "model_final.pth", weights_only=True)["model"]
    assert whole["head.projection.weight"].shape[0] == 3
    for file in output.glob("model_*.pth"):
        if file.name != "model_0000002.pth":
            file.unlink()
    assert call("--resume", *run) == 0
    again = torch.load(output / "model_final.pth", weights_only=True)["model"]
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    found = json.loads((output / "inference" / "classifications.json").read_text())
    assert sorted(found["labels"]) == [0, 0, 1, 1, 2, 2]


def test_rows_by_number(rows, photos):
    """A data set of Hugging Face that is loaded whole."""
    changes = {"train": f"hfds/{photos}/rows", "val": f"hfds/{photos}/rows", "options": {}}
    cut(photos / "val" / "grey" / "1.png")
    write_rows(photos)
    images = data.open_split(node(rows, **changes), "train", check=True)
    assert [label for _, label in images] == 4 * [0] + 4 * [1] + 4 * [2]
    images = data.open_split(node(rows, **changes), "val")
    with pytest.raises(Unreadable, match=r"cannot read image hfds/.*\[3\] \(1\.png\): .*trunc"):
        images[3]
    with pytest.raises(UserError, match="has class 'dark', which is not among the 2 classes"):
        data.open_split(node(rows, **changes, classes=["grey", "light"]), "val")


# What a user may get wrong.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_split": "train-{0..3}.tar|12"}, r"cannot read wds/photos: .*train-3.tar"),
        ({"options": {"target_key": "label"}}, r"train-0.tar: dark_0 has no label: .*'label' in"),
        ({"options": {"input_key": "jpg"}}, r"dark_0 has no image: expected an ending of jpg"),
        ({"classes": ["dark"]}, r"tar: \w+_\d has label [12]: expected a number from 0"),
        ({"train_split": "other"}, r"wds/photos, split 'other' cannot be opened: .*other"),
        ({"train_split": "train-{0..2}.tar"}, "cannot be opened: .*num_samples not specified"),
        ({"train_split": "pipe:touch x"}, "would run what follows 'pipe:'"),
    ],
)
def test_wrong_shards(shards, changes, words):
    def read_all():
        images = data.open_split(node(shards, **changes), "train", check=True)
        return [images.read(stored) for stored in images.stored(seed=1)]

    with pytest.raises(UserError, match=words):
        read_all()


def test_processes_evaluate_each_image_once(stream, monkeypatch):
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    found = []
    for rank in range(2):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        loader = data.test_loader(node(stream), Input(size=8), batch_size=4, num_workers=0)
        found += [label for _, labels in loader for label in labels.tolist()]
    assert sorted(found) == [0, 0, 1, 1, 2, 2]


def test_more_processes_than_archives(shards, monkeypatch):
    """It is said before training, of validation too."""
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 3)
    cfg = OmegaConf.create(
        {"dataset": node(shards), "dataloader": {"train": {"total_batch_size": 3}}, "task": {}}
    )
    with pytest.raises(UserError, match=r"val-0\.tar', has 2 archives for 3 processes"):
        data.prepare_datasets(cfg, training=True, check=False)
