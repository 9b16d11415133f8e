"""tools/install_detectron2.py leaves an installed Detectron2 alone and refuses other files."""

import subprocess
from pathlib import Path

import pytest
from scripts import load_script


@pytest.fixture
def tool():
    return load_script("tools/install_detectron2.py")


def test_an_installed_detectron2_is_used_as_it_is(tool, monkeypatch, capsys):
    monkeypatch.setattr(tool, "install", lambda target: pytest.fail("installed"))
    assert tool.main() == 0
    assert "is used as it is" in capsys.readouterr().out


def test_pip_is_held_to_the_pinned_file(tool, monkeypatch):
    commands = []

    def run(command, check):
        requirement = Path(command[command.index("--requirement") + 1]).read_text()
        commands.append((command, requirement))

    monkeypatch.setattr(tool, "installed_file", lambda: None)
    monkeypatch.setattr(subprocess, "run", run)
    assert tool.main() == 0
    ((command, requirement),) = commands
    assert {"--require-hashes", "--no-deps", "--only-binary=:all:"} <= set(command)
    assert requirement.split() == [
        "sal-detectron2==0.7.2",
        "--hash=sha256:491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561",
    ]


def test_a_refused_file_is_one_line(tool, monkeypatch, capsys):
    def fail(target):
        raise subprocess.CalledProcessError(1, "pip")

    monkeypatch.setattr(tool, "installed_file", lambda: None)
    monkeypatch.setattr(tool, "install", fail)
    assert tool.main() == 1
    assert capsys.readouterr().err.startswith("error: sal-detectron2==0.7.2 with sha256 491af")
