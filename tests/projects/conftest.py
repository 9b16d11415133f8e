"""Fixtures of classifiers of images."""

import pytest
from imagenet_runs import CLASSES, write_image


@pytest.fixture
def photos(tmp_path):
    """A folder with train/ and val/, of three classes with four and two images."""
    for split, count in (("train", 4), ("val", 2)):
        for number, name in enumerate(CLASSES):
            for index in range(count):
                path = tmp_path / "photos" / split / name / f"{index}.png"
                write_image(path, 100 * number, index)
    return tmp_path / "photos"


@pytest.fixture
def overrides(photos):
    """Two steps of a tiny network on the CPU."""
    return [
        f"dataset.train={photos}",
        f"train.output_dir={photos.parent}/out",
        "model.variant.embed_dim=8",
        "model.variant.blocks=[1,1,1,1]",
        "dataloader.train.total_batch_size=6",
        "dataloader.train.num_workers=0",
        "recipe.epochs=1",
        "recipe.eval_epochs=1",
        "train.log_period=1",
    ]
