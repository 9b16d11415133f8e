"""tools/measure_gpu.py with stages that need no GPU."""

import zipfile

import pytest
from scripts import load_script


@pytest.fixture
def tool(monkeypatch):
    tool = load_script("tools/measure_gpu.py")
    writes = "import sys, pathlib; pathlib.Path(sys.argv[1], 'table.csv').write_text('1'); print(2)"
    stages = {
        "short": tool.Stage(1, (("-c", writes, "{output}"),)),
        "broken": tool.Stage(1, (("-c", "raise SystemExit(3)"), ("-c", "print('goes on')"))),
        "long": tool.Stage(
            1, (("-c", "import time; print({minutes}, flush=True); time.sleep(60)"),)
        ),
    }
    monkeypatch.setattr(tool, "STAGES", stages)
    return tool


@pytest.mark.long
def test_each_stage_ends_and_leaves_what_it_wrote(tool, tmp_path, capsys):
    status = tool.main(["--output", str(tmp_path), "--minutes", "0.05"])
    said = capsys.readouterr().out.splitlines()
    assert status == 1
    assert [line.split(",")[0] for line in said[:2]] == ["short: passed", "broken: failed"]
    assert said[2].startswith("long: ended after ")
    assert (tmp_path / "short.txt").read_text().strip() == "2"
    assert "goes on" in (tmp_path / "broken.txt").read_text()
    assert 0 < float((tmp_path / "long.txt").read_text()) < 0.05
    assert zipfile.ZipFile(tmp_path / "results.zip").namelist() == ["table.csv"]


def test_chosen_stages(tool, tmp_path):
    assert tool.main(["--output", str(tmp_path), "--stages", "short"]) == 0
    assert not (tmp_path / "long.txt").exists()
    with pytest.raises(SystemExit, match="2"):
        tool.main(["--output", str(tmp_path), "--minutes", "0"])


def test_the_stages_are_commands_of_this_project():
    tool = load_script("tools/measure_gpu.py")
    for stage in tool.STAGES.values():
        for script, *_ in stage.commands:
            assert script == "-m" or (tool.ROOT / script).is_file()
