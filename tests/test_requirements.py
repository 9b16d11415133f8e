"""Lock and floors agree with pyproject.toml; tools/install_locked.py keeps what is there."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from scripts import load_script

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements" / "lock.txt"
# What is not installed for tests: of services with accounts; lvis and trackers, which bring another
# OpenCV; gradio, which holds Pillow back; what drives a browser; of streams, which bring much.
NOT_LOCKED = (
    "wandb", "mlflow-skinny", "lvis", "trackers", "gradio", "playwright", "webdataset", "datasets",
)  # fmt: skip


@pytest.fixture
def tool():
    return load_script("tools/install_locked.py")


def declared() -> list[Requirement]:
    """All requirements of pyproject.toml, extras too."""
    # Python 3.10 has no TOML reader.
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = text[text.index("\ndependencies = [") : text.index("\n[project.urls]")]
    project = re.sub(r"(?m)^ *#.*$", "", project)
    names = re.findall(r'"([a-z][^"\n]*)"', project)
    return [Requirement(name) for name in names if not name.startswith("mvitv2_det")]


def test_floors_are_those_of_pyproject():
    lines = (ROOT / "requirements" / "floors.txt").read_text().splitlines()
    floors = dict(line.split("==") for line in lines if not line.startswith("#"))
    lowest = {
        requirement.name: specifier.version
        for requirement in declared()
        for specifier in requirement.specifier
        if specifier.operator == ">="
    }
    assert len(floors) > 20 and set(floors) <= set(lowest)
    for name, floor in floors.items():
        assert Version(floor) == Version(lowest[name]), name


def test_lock_holds_every_package_with_hashes_and_no_address(tool):
    text = LOCK.read_text(encoding="utf-8")
    assert "://" not in text and "--index" not in text and "--find-links" not in text
    lock = tool.read_lock(LOCK)
    for lines in lock.values():
        assert all("--hash=sha256:" in line for line in lines)
    for requirement in declared():
        if requirement.name in NOT_LOCKED:
            continue
        versions = [line.split()[0].split("==")[1] for line in lock[requirement.name.lower()]]
        assert all(requirement.specifier.contains(version) for version in versions)


@pytest.fixture
def lock(tool):
    return {
        name: [f"{name}==2.0 --hash=sha256:0"]
        for name in ("torch", "torchvision", "triton", "nvidia-nccl-cu13", "numpy", tool.OPENCV)
    }


def pretend(tool, monkeypatch, versions: dict[str, str], modules: set[str]) -> None:
    monkeypatch.setattr(tool, "installed_version", versions.get)
    monkeypatch.setattr(tool.importlib.util, "find_spec", lambda name: name in modules or None)


def test_an_empty_environment_gets_all(tool, lock, monkeypatch, capsys):
    pretend(tool, monkeypatch, {}, set())
    assert tool.keep_installed(lock) == lock
    assert capsys.readouterr().out == ""


def test_what_the_lock_installed_before_is_not_taken_for_the_users(tool, lock, monkeypatch):
    versions = {"torch": "2.0", tool.OPENCV: "2.0"}
    pretend(tool, monkeypatch, versions, {"torch", "torchvision", "cv2"})
    assert tool.keep_installed(lock) == lock


def test_a_torch_of_the_users_is_kept_with_its_libraries(tool, lock, monkeypatch, capsys):
    pretend(tool, monkeypatch, {"torch": "2.0+cpu"}, {"torch", "torchvision"})
    assert set(tool.keep_installed(lock)) == {"numpy", tool.OPENCV}
    assert "torch 2.0+cpu is installed already and is kept" in capsys.readouterr().out


def test_a_torch_without_torchvision_is_one_line(tool, lock, monkeypatch):
    pretend(tool, monkeypatch, {"torch": "2.0+cpu"}, {"torch"})
    with pytest.raises(SystemExit, match="without torchvision; install the torchvision"):
        tool.keep_installed(lock)


def test_an_opencv_of_another_package_is_kept(tool, lock, monkeypatch, capsys):
    pretend(tool, monkeypatch, {}, {"cv2"})
    assert tool.OPENCV not in tool.keep_installed(lock)
    assert "OpenCV is installed already" in capsys.readouterr().out
