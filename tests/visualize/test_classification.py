"""Pictures of a classifier's results, judged by their pixels and by the text drawn into them."""

import matplotlib.text
import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from mvitv2_det import UserError
from mvitv2_det.visualize.classification import (
    MOST_CONFUSED,
    Classified,
    draw_classified,
    draw_confusion_matrix,
    write_mistakes,
)

CLASSES = ["ant", "bee", "a $dollar$_name"]


@pytest.fixture
def texts(monkeypatch):
    """All text that is drawn."""
    drawn = []
    draw = matplotlib.text.Text.draw

    def note(self, *arguments, **keywords):
        drawn.append(self.get_text())
        return draw(self, *arguments, **keywords)

    monkeypatch.setattr(matplotlib.text.Text, "draw", note)
    return drawn


def flat(color) -> Image.Image:
    return Image.fromarray(np.full((50, 40, 3), color, np.uint8))


def row(color, label, probabilities):
    """An image of one colour, and its class by three probabilities."""
    order = np.argsort(probabilities)[::-1].tolist()
    sorted_ = [probabilities[index] for index in order]
    return Classified(flat(color), order, sorted_, label, probabilities[label])


def test_confusion_matrix_shows_counts_and_names(tmp_path, texts):
    draw_confusion_matrix([[7, 2, 0], [1, 11, 0], [0, 0, 0]], CLASSES, tmp_path / "matrix.png")
    assert {"7", "2", "1", "11", "ant", "bee", "a $dollar$_name"} <= set(texts)
    assert "18 of 21 images are classified correctly (85.7%)" in texts
    with Image.open(tmp_path / "matrix.png") as picture:
        assert picture.width > 400


def test_rows_are_the_true_classes(tmp_path, monkeypatch):
    shown, imshow = [], Axes.imshow
    monkeypatch.setattr(
        Axes, "imshow", lambda self, x, **options: shown.append(x) or imshow(self, x, **options)
    )
    draw_confusion_matrix([[3, 1], [0, 0]], ["a", "b"], tmp_path / "matrix.png")
    np.testing.assert_array_equal(shown[0], [[75, 25], [np.nan, np.nan]])


def test_of_many_classes_the_most_confused_are_shown(tmp_path, texts):
    count = MOST_CONFUSED + 30
    counts = np.diag(np.full(count, 500))
    counts[65, 3] = 123
    draw_confusion_matrix(counts, [f"c{i}" for i in range(count)], tmp_path / "matrix.png")
    assert {"c3", "c65", "123"} <= set(texts)
    assert f"c{count - 1}" not in texts
    assert any(f"the {MOST_CONFUSED} of {count} classes" in text for text in texts)


def test_a_matrix_of_another_size_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"of 3 classes must be of shape \(3, 3\), got \(2, 2\)"):
        draw_confusion_matrix(np.eye(2), CLASSES, tmp_path / "matrix.png")


def test_mistakes_are_sorted_and_right_ones_left_out(tmp_path, texts):
    rows = [
        row((255, 0, 0), 0, [0.3, 0.6, 0.1]),
        row((0, 0, 255), 0, [0.9, 0.1, 0.0]),
        row((0, 255, 0), 1, [0.98, 0.01, 0.01]),
    ]
    write_mistakes(iter(rows), CLASSES, tmp_path / "mistakes.png")
    assert "2 mistakes in 3 images" in texts
    assert texts.count("truth: bee") == 1
    assert {"98.0 %", "60.0 %"} <= set(texts) and "90.0 %" not in texts
    pixels = np.asarray(Image.open(tmp_path / "mistakes.png").convert("RGB")).astype(int)
    places = [
        np.nonzero((pixels == color).all(-1))[1].min() for color in ((0, 255, 0), (255, 0, 0))
    ]
    assert places[0] < places[1]  # the surest mistake is on the left
    assert not (pixels == (0, 0, 255)).all(-1).any()


def test_only_the_worst_are_shown(tmp_path, texts):
    rows = [row((9, 9, 9), 0, [share, 1 - share, 0.0]) for share in (0.4, 0.1, 0.2)]
    write_mistakes(rows, CLASSES, tmp_path / "mistakes.png", most=1)
    assert any(text.startswith("3 mistakes in 3 images: the 1 whose") for text in texts)
    assert "90.0 %" in texts and "60.0 %" not in texts and "80.0 %" not in texts


def test_no_mistake(tmp_path, texts):
    write_mistakes([row((0, 0, 255), 0, [0.9, 0.1, 0.0])], CLASSES, tmp_path / "mistakes.png")
    assert texts == ["0 mistakes in 1 images"]


def test_mistakes_need_labels(tmp_path):
    with pytest.raises(UserError, match=r"a.png has no label"):
        write_mistakes([("a.png", [0], [1.0])], CLASSES, tmp_path / "mistakes.png")


def test_files_are_named_and_unreadable_ones_left_blank(tmp_path, texts):
    (tmp_path / "bees").mkdir()
    flat((0, 0, 255)).save(tmp_path / "bees" / "1.png")
    rows = [
        Classified(tmp_path / "bees" / "1.png", [1, 0], [0.75, 0.25]),
        Classified(tmp_path / "none.png", [0, 1], [0.5, 0.5]),
    ]
    draw_classified(rows, CLASSES, tmp_path / "sheet.png", "two")
    assert {"two", "bees/1.png", "bee", "75.0 %", "cannot be read"} <= set(texts)
    pixels = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    # Enlarged to the height of its cell, at its own shape: 210 × 168.
    assert (pixels == (0, 0, 255)).all(-1).sum() == 210 * 168
