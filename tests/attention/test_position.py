import pytest
import torch
from detectron2.modeling.backbone.utils import get_abs_pos, get_rel_pos

from mvitv2_det.attention.position import (
    absolute_embedding,
    axis_logits,
    relative_embedding,
    relative_index,
    table_length,
)


def test_distances_of_equal_grids():
    assert relative_index(3, 3, device=torch.device("cpu")).tolist() == [
        [2, 1, 0],
        [3, 2, 1],
        [4, 3, 2],
    ]


def test_every_row_of_the_table_is_a_distance():
    """Over grids of whole ratios the smallest index is 0 and the largest the table's last."""
    for query_size, key_size in [(14, 14), (14, 7), (14, 28), (56, 14)]:
        index = relative_index(query_size, key_size, device=torch.device("cpu"))
        assert index.min() == 0
        assert index.max() < table_length(max(query_size, key_size), 1, 1)


@pytest.mark.parametrize("rows", [13, 27, 111])
def test_equals_detectron2_on_every_pair_of_sizes(rows):
    """Whole ratios or not: the same rows of the same resized table, bit for bit."""
    table = torch.randn(rows, 2)
    for query_size in [*range(1, 40), 50, 68, 84]:
        for key_size in [*range(1, 40, 2), 25, 34, 63, 94]:
            expected = get_rel_pos(query_size, key_size, table)
            assert torch.equal(relative_embedding(table, query_size, key_size), expected)


def test_axis_logits_by_loops():
    """Eq. 3 and 4, one query and key at a time, on grids of different sizes."""
    q = torch.randn(2, 4, 6, 3)
    tables = [torch.randn(7, 3), torch.randn(11, 3)]
    along_h, along_w = axis_logits(q, tables, (2, 3))
    for n in range(2):
        for h in range(4):
            for w in range(6):
                for kh in range(2):
                    expected = q[n, h, w] @ tables[0][h - 2 * kh + 2]
                    torch.testing.assert_close(along_h[n, h, w, kh], expected)
                for kw in range(3):
                    expected = q[n, h, w] @ tables[1][w - 2 * kw + 4]
                    torch.testing.assert_close(along_w[n, h, w, kw], expected)


def test_three_axes_need_no_other_code():
    q = torch.randn(2, 3, 4, 5, 6)
    tables = [torch.randn(2 * side - 1, 6) for side in (3, 4, 5)]
    shapes = [tuple(logits.shape) for logits in axis_logits(q, tables, (3, 2, 5))]
    assert shapes == [(2, 3, 4, 5, 3), (2, 3, 4, 5, 2), (2, 3, 4, 5, 5)]


@pytest.mark.parametrize("has_cls_token", [True, False])
@pytest.mark.parametrize("size", [(7, 7), (5, 9), (20, 13)])
def test_absolute_positions_equal_detectron2(has_cls_token, size):
    embedding = torch.randn(1, 49 + has_cls_token, 4)
    expected = get_abs_pos(embedding, has_cls_token, size)
    assert torch.equal(absolute_embedding(embedding, has_cls_token, size), expected)
