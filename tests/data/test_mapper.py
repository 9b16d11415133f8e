import pytest
from PIL import Image
from torch.utils.data import DataLoader

from mvitv2_det import UserError
from mvitv2_det.data import DatasetMapper
from mvitv2_det.errors import one_line


@pytest.fixture
def mapper():
    return DatasetMapper(is_train=False, augmentations=[], image_format="RGB")


def record(path, width=8):
    return {"file_name": str(path), "width": width, "height": 6, "image_id": 1}


def test_reads_an_image(mapper, tmp_path):
    Image.new("RGB", (8, 6), (1, 2, 3)).save(tmp_path / "a.png")
    image = mapper(record(tmp_path / "a.png"))["image"]
    assert image.shape == (3, 6, 8)
    assert image[:, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_images_that_cannot_be_read_are_named(mapper, tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    with pytest.raises(UserError, match=rf"cannot read image .*a\.{ending}: .*No such file"):
        mapper(record(path))
    Image.effect_noise((8, 6), 50).convert("RGB").save(path)
    with pytest.raises(UserError, match=rf"a\.{ending}: Mismatched image shape .*\(8, 6\), .*9"):
        mapper(record(path, width=9))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(UserError, match=rf"cannot read image .*a\.{ending}: \w+"):
        mapper(record(path))


def test_the_line_survives_a_workers_stack_trace(mapper, tmp_path):
    loader = DataLoader(
        [record(tmp_path / "a.png")], collate_fn=mapper_of_first(mapper), num_workers=1
    )
    with pytest.raises(UserError) as caught:
        next(iter(loader))
    assert "Traceback" in str(caught.value)
    assert one_line(caught.value).startswith(f"cannot read image {tmp_path}/a.png: ")


class mapper_of_first:
    """A function that a worker process can be sent."""

    def __init__(self, mapper):
        self.mapper = mapper

    def __call__(self, records):
        return self.mapper(records[0])
