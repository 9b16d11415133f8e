"""Images of every kind, against OpenCV, plain arithmetic, and Detectron2."""

import cv2
import numpy as np
import pytest
from detectron2.data.detection_utils import read_image
from PIL import Image

from mvitv2_det import UserError
from mvitv2_det.predict import read_rgb
from mvitv2_det.predict.images import as_rgb

RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (12, 20, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (12, 20), dtype=np.uint8)
ALPHA = np.concatenate((COLOR, GREY[:, :, None]), axis=2)
DEEP = RNG.integers(0, 65536, (12, 20), dtype=np.uint16)


def grey(values):
    return np.repeat(values[:, :, None], 3, axis=2)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp", "bmp"])
def test_reads_as_training_does(mode, ending, tmp_path):
    file = tmp_path / f"a.{ending}"
    try:
        Image.fromarray(COLOR).convert(mode).save(file)
        # Pillow before 13 writes YCbCr into TIFF files, but cannot read it from any.
        Image.open(file).load()
    except (OSError, KeyError):
        pytest.skip(f"{ending} holds no {mode}")
    assert np.array_equal(read_rgb(file), read_image(str(file), "RGB"))


def test_lossless_kinds(tmp_path):
    for name, image, expected in (
        ("color.png", Image.fromarray(COLOR), COLOR),
        ("grey.png", Image.fromarray(GREY), grey(GREY)),
        ("alpha.png", Image.fromarray(ALPHA), COLOR),
        ("palette.png", Image.fromarray(GREY).convert("P"), grey(GREY)),
        ("cmyk.tif", Image.fromarray(ALPHA, mode="CMYK"), None),
    ):
        image.save(tmp_path / name)
        if expected is None:
            inks, black = 255 - ALPHA[:, :, :3].astype(int), 255 - ALPHA[:, :, 3:].astype(int)
            expected = inks * black / 255
        found = read_rgb(tmp_path / name)
        assert found.dtype == np.uint8 and found.shape == (12, 20, 3)
        assert np.abs(found - expected.astype(float)).max() <= 1


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bits_are_scaled(ending, tmp_path):
    file = str(tmp_path / f"deep.{ending}")
    cv2.imwrite(file, DEEP)
    assert np.array_equal(read_rgb(file), grey(DEEP // 256))
    deep_color = RNG.integers(0, 65536, (12, 20, 3), dtype=np.uint16)
    cv2.imwrite(file, deep_color)
    assert np.array_equal(read_rgb(file), deep_color[:, :, ::-1] // 256)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns(orientation, tmp_path):
    """Against OpenCV, which follows Exif as well."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOR).save(tmp_path / "a.png", exif=exif)
    expected = cv2.imread(str(tmp_path / "a.png"))[:, :, ::-1]
    assert np.array_equal(read_rgb(tmp_path / "a.png"), expected)
    Image.fromarray(DEEP).save(tmp_path / "deep.png", exif=exif)
    expected = cv2.imread(str(tmp_path / "deep.png"), cv2.IMREAD_ANYDEPTH) // 256
    assert np.array_equal(read_rgb(tmp_path / "deep.png"), grey(expected))


BROKEN = {
    "missing": (lambda file: None, "there is no such file"),
    "empty": (lambda file: file.write_bytes(b""), "the file is empty"),
    "text": (lambda file: file.write_text("no image"), "it is no image that Pillow knows"),
    "folder": (lambda file: file.mkdir(), "there is no such file"),
    "cut off": (
        lambda file: (
            Image.fromarray(RNG.integers(0, 255, (99, 99, 3), dtype=np.uint8)).save(file),
            file.write_bytes(file.read_bytes()[:3000]),
        ),
        "trunc",
    ),
    "float": (
        lambda file: Image.fromarray(np.ones((4, 4), np.float32)).save(file, format="TIFF"),
        "float32 values, 1 to 1, have no defined white",
    ),
    "32 bits": (
        lambda file: Image.fromarray(np.full((4, 4), 1 << 20, np.int32)).save(file, format="TIFF"),
        "int32 values",
    ),
    "huge": (
        lambda file: Image.new("1", (20000, 20000)).save(file, format="PNG"),
        "too large to be seen as one",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_one_line_for_what_cannot_be_read(kind, tmp_path):
    file = tmp_path / "a.png"
    spoil, words = BROKEN[kind]
    spoil(file)
    with pytest.raises(UserError, match=rf"^cannot read image {file}: .*{words}") as caught:
        read_rgb(file)
    assert "\n" not in str(caught.value)


def test_arrays():
    assert np.array_equal(as_rgb(COLOR[:, :, ::-1], "BGR"), COLOR)
    assert np.array_equal(as_rgb(GREY, "BGR"), grey(GREY))
    assert np.array_equal(as_rgb(GREY[:, :, None], "RGB"), grey(GREY))
    assert np.array_equal(as_rgb(ALPHA, "RGB"), COLOR)
    assert np.array_equal(as_rgb(DEEP, "RGB"), grey(DEEP // 256))
