"""Costs of the ablations' rows, pinned where the paper's can be reproduced.

Figures are in 10⁹ multiply-adds and 10⁶ parameters: the paper's, and what others counted with
fvcore from other implementations of the same networks.
"""

from functools import cache
from math import ceil

import pytest

from mvitv2_det import get_config
from mvitv2_det.costs import Cost
from mvitv2_det.detection.costs import count_costs
from projects.attention_benchmark.measurement import count
from projects.attention_benchmark.tables import read_tables

TOLERANCE = 0.011  # The figures are rounded to 0.01.
SMALL = 0.0011  # … and these to 0.001.

# The others' count is without the norm of ViT's map: 5 for each of 50×80 tokens of 768 channels.
VIT_NORM = 5 * 50 * 80 * 768 / 1e9

TABLE_9 = {
    "mask_rcnn_vit_b_full": 878.77 + VIT_NORM,
    "mask_rcnn_s_single_scale": 276.16,
}

# The paper's multiply-adds, rounded up as in all of Table 5, and parameters.
TABLE_5A = {
    "mask_rcnn_mvitv1_t": (326, 46),
    "mask_rcnn_mvitv1_s": (373, 57),
    "mask_rcnn_mvitv1_b": (438, 73),
}

TABLE_4A = {
    "ViT-B full": 17.490,
    "ViT-B fixed": 16.959,
    "ViT-B Swin": 16.959,
    "ViT-B Hwin": 17.136,
    "S pooling": 6.998,
    "S pooling (stride 8)": 6.329,
    "S pooling + Swin": 6.356,
    # The paper's 6.5 needs a fourth global block, which its text does not have.
    "S pooling + Hwin": 6.425,
}


@cache
def total(name: str) -> Cost:
    return count_costs(get_config(name)).total


@cache
def classifier(table_number: str, row_name: str) -> Cost:
    (table,) = read_tables(table_number, "classification")
    return next(count(table, row) for row in table.rows if row.name == row_name)


@pytest.mark.parametrize("name", TABLE_9)
def test_table_9(name):
    assert total(name).giga == pytest.approx(TABLE_9[name], abs=TOLERANCE)


@pytest.mark.parametrize("name", TABLE_5A)
def test_mvitv1_of_table_5a(name):
    giga, parameters = TABLE_5A[name]
    assert ceil(total(name).giga) == giga
    assert round(total(name).million_parameters) == parameters


@pytest.mark.parametrize("row", TABLE_4A)
def test_table_4a(row):
    assert classifier("4a", row).giga == pytest.approx(TABLE_4A[row], abs=SMALL)


def test_pooling_of_vit_cannot_cost_what_table_4a_says():
    """The paper's 10.9 G: even without any keys and values 13.99 G remain."""
    assert classifier("4a", "ViT-B pooling").giga > 13.99
    assert classifier("4a", "ViT-B pooling").giga == pytest.approx(17.0, abs=0.05)


def test_positions_cost_what_their_tables_have():
    """Absolute positions add a table and no multiply-adds; joint ones cost most."""
    none, absolute = classifier("6", "(1) no positions"), classifier("6", "(2) absolute")
    assert absolute.macs == none.macs
    assert absolute.parameters - none.parameters == 56 * 56 * 96
    decomposed = classifier("6", "(4) decomposed relative")
    joint = classifier("6", "(3) joint relative")
    assert none.macs < decomposed.macs < joint.macs


def test_attention_in_windows_costs_less_than_over_the_whole_map():
    names = [f"mask_rcnn_vit_b_{kind}" for kind in ("fixed", "hwin", "full")]
    assert sorted(names, key=lambda name: total(name).macs) == names
    assert total("mask_rcnn_vit_b_swin") == total("mask_rcnn_vit_b_fixed")
