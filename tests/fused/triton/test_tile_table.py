"""The table of the kernels' blocks: what is looked up, where rules stay, and what is refused."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", minversion="3.4", reason="the kernels need Triton 3.4")

from mvitv2_det import UserError
from mvitv2_det.errors import one_line
from mvitv2_det.fused.triton import tile_table
from mvitv2_det.fused.triton.launch import Blocks
from mvitv2_det.fused.triton.tile_table import Case, Key, measured_or, read, write

GPU = torch.device("cuda", 0)  # need not be there
H100 = ("NVIDIA H100 80GB HBM3", "9.0")
CASE = Case(torch.bfloat16, 96, 32)
FEW = CASE._replace(few_keys=True)
RULE, MEASURED = Blocks(64, 64, 4, 2), Blocks(128, 64, 8, 3, registers=168)
ROWS = {
    Key(*H100, "attention_forward", CASE): MEASURED,
    Key(*H100, "attention_forward", FEW): Blocks(64, 64, 4, 1),
    Key(*H100, "extend", CASE): Blocks(32, 0, 4, 1),
    Key("NVIDIA H200", "9.0", "pool_gather", Case(torch.float16, 64)): Blocks(2, 8, 4, 1),
}


@pytest.fixture
def choose(monkeypatch):
    """The choice of a kernel whose rule is :data:`RULE`, on an H100 with the table :data:`ROWS`."""
    monkeypatch.setattr(tile_table, "_shipped", lambda: ROWS)
    monkeypatch.setattr(tile_table, "names_of", lambda device: H100)
    return measured_or("attention_forward")(lambda case: RULE)


def test_a_measured_row_is_taken(choose):
    assert choose(GPU, CASE) == MEASURED
    assert choose(GPU, FEW) == Blocks(64, 64, 4, 1)


@pytest.mark.parametrize(
    "case",
    [CASE._replace(terms=64), CASE._replace(channels=64), CASE._replace(dtype=torch.float16)],
)
def test_the_rule_stays_for_other_shapes(choose, case):
    assert choose(GPU, case) == RULE


def test_the_rule_stays_on_gpus_of_another_capability(choose, monkeypatch):
    monkeypatch.setattr(tile_table, "names_of", lambda device: ("NVIDIA L40S", "8.9"))
    assert choose(GPU, CASE) == RULE


def test_a_gpu_of_the_same_capability_lends_its_row(choose, monkeypatch):
    monkeypatch.setattr(tile_table, "names_of", lambda device: ("NVIDIA H200", "9.0"))
    assert choose(GPU, CASE) == MEASURED
    own = Blocks(32, 64, 4, 3)
    row = {Key("NVIDIA H200", "9.0", "attention_forward", CASE): own}
    monkeypatch.setattr(tile_table, "_shipped", lambda: ROWS | row)
    choose.cache_clear()
    assert choose(GPU, CASE) == own


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_rule_stays_without_a_gpu(choose, device):
    assert choose(torch.device(device), CASE) == RULE


def test_a_choice_is_made_once(choose, monkeypatch):
    found = choose(GPU, CASE)
    monkeypatch.delattr(tile_table, "_shipped")
    assert choose(GPU, CASE) is found


def test_a_table_is_read_as_it_was_written(tmp_path):
    file = tmp_path / "tiles.csv"
    write(file, ROWS)
    assert read(file) == ROWS
    first = file.read_bytes()
    write(file, dict(reversed(ROWS.items())))
    assert file.read_bytes() == first


def test_the_shipped_table_is_sound(tmp_path):
    write(tmp_path / "tiles.csv", read(tile_table.TABLE))
    assert (tmp_path / "tiles.csv").read_bytes() == tile_table.TABLE.read_bytes()


def refused(file: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(file)
    message = one_line(caught.value)
    assert "\n" not in message and "tune_tiles.py" in message and str(file) in message
    return message


GOOD = "NVIDIA H100 80GB HBM3,9.0,attention_forward,bfloat16,96,32,0,128,64,8,3,168"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("attention_forward", "softmax", "line 3: kernel must be one of attention_forward, "),
        ("bfloat16", "int8", "line 3: dtype must be one of float16, "),
        ("NVIDIA H100 80GB HBM3", "", "line 3: gpu and capability must be given"),
        (",128,64,", ",100,64,", "queries must be a power of two from 16 to 256, got '100'"),
        (",128,64,", ",128,8,", "keys must be a power of two from 16 to 256, got '8'"),
        (",8,3,", ",6,3,", "warps must be a power of two from 1 to 16, got '6'"),
        (",8,3,", ",8,0,", "stages must be from 1 to 8, got '0'"),
        (",168", ",256", "registers must be from 32 to 255, or nothing, got '256'"),
        (",96,", ",-96,", "channels must be at least 1, got '-96'"),
        (",32,0,", ",32,2,", "few_keys must be 0 or 1, got '2'"),
        (",168", "", "a row has 12 values"),
        (",168", ",168,5", "a row has 12 values"),
        ("attention_forward", "extend", "keys must be 0, got '64'"),
        ("128,64,8,3,168", "64,64,4,2,", "another row is for the same"),
    ],
)
def test_a_broken_or_foreign_row_is_refused(tmp_path, old, new, message):
    file = tmp_path / "tiles.csv"
    write(file, {})
    head = file.read_text()
    file.write_text(f"{head}{GOOD}\n")
    assert read(file) == {Key(*H100, "attention_forward", CASE): MEASURED}
    broken = GOOD.replace(old, new)
    file.write_text(f"{head}{GOOD}\n{broken}\n")
    assert message in refused(file)


def test_another_file_is_refused(tmp_path):
    file = tmp_path / "tiles.csv"
    file.write_text("kernel,milliseconds\nattention_forward,3\n")
    assert "line 1: the columns must be gpu,capability,kernel" in refused(file)
    file.write_text("")
    assert "line 1" in refused(file)
