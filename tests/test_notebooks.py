"""The notebooks: clean in git, and run from top to bottom."""

import json
import os
import sys
from pathlib import Path

import pytest
from scripts import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.name)
def test_no_outputs_are_kept(file):
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 5
    assert not [cell for cell in code if cell["outputs"] or cell["execution_count"] is not None]


@pytest.mark.long
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.name)
def test_it_runs_from_top_to_bottom(file, tmp_path, monkeypatch):
    """In a folder with the checkout's tools, as it stands; a cell that fails names itself."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    pytest.importorskip("sklearn")
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    for name, first in (("PATH", Path(sys.executable).parent), ("PYTHONPATH", ROOT)):
        monkeypatch.setenv(name, os.pathsep.join([str(first), os.environ.get(name, "")]))
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    outputs = [one for cell in notebook.cells for one in cell.get("outputs", ())]
    if kept := os.environ.get("MVITV2_DET_NOTEBOOKS"):  # for people to look at
        nbformat.write(notebook, Path(kept, file.name))
    pictures = [one for one in outputs if "image/png" in one.get("data", {})]
    assert len(pictures) >= 5
