"""What all commands share: help without heavy imports, errors in one line, exit statuses."""

import json
import os
import signal
import subprocess
import sys
from importlib import import_module

import pytest
from scripts import ROOT, load_script

import mvitv2_det
from mvitv2_det import export, weights
from mvitv2_det.commands import entry, main, run_command
from mvitv2_det.errors import UserError
from mvitv2_det.predict import PRECISIONS

HEAVY = {"torch", "torchvision", "detectron2", "numpy", "cv2", "matplotlib", "timm", "omegaconf"}


def python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs code in a process of its own, which imports the package of this checkout."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def module(name):
    return import_module(f"mvitv2_det.commands.{name.replace('-', '_')}")


LISTS_IMPORTS = """
import json, runpy, sys
name, *sys.argv = sys.argv[1:]
status = None
try:
    if name.endswith(".py"):
        runpy.run_path(name, run_name="__main__")
    else:
        runpy.run_module(name, run_name="__main__")
except SystemExit as end:
    status = end.code
print(json.dumps([status, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


@pytest.mark.parametrize(
    "command",
    [
        ["mvitv2_det", "mvitv2-det", "--help"],
        *(["mvitv2_det", "mvitv2-det", name, "--help"] for name in entry.COMMANDS),
        ["mvitv2_det.predict", "predict", "--help"],
        [str(ROOT / "train_net.py"), "train_net.py", "--help"],
    ],
    ids=" ".join,
)
def test_help_imports_nothing_heavy(command):
    """Torch alone takes two seconds."""
    answer = python(LISTS_IMPORTS, *command)
    text, _, last = answer.stdout.strip().rpartition("\n")
    status, imported = json.loads(last)
    assert status in (0, None) and text.startswith("usage: ")
    assert not HEAVY & set(imported)


def test_the_list_names_every_command(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    folder = ROOT / "mvitv2_det" / "commands"
    files = {file.stem.replace("_", "-") for file in folder.glob("*.py")}
    assert files - {"--init--", "entry"} == set(entry.COMMANDS)
    lines = {line.split()[0] for line in text.splitlines() if line.startswith("    ")}
    assert set(entry.COMMANDS) <= lines
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.strip() == mvitv2_det.__version__


@pytest.mark.parametrize("arguments", [[], ["traim"], ["--no-such-option"], ["--", "train"]])
def test_no_such_command(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "usage: mvitv2-det" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "choices"),
    [
        ("export", export.PARTS),
        ("export", export.FORMATS),
        ("export", export.PRECISIONS),
        ("predict", PRECISIONS),
        ("convert", weights.TARGETS),
    ],
)
def test_help_names_the_choices_of_the_library(command, choices, capsys):
    """The parsers cannot import them: that would take long."""
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert "{" + ",".join(choices) + "}" in capsys.readouterr().out


@pytest.fixture
def failing(monkeypatch):
    """Makes ``mvitv2-det count`` raise; returns its exit status."""

    def run(error):
        def fail(args):
            raise error

        monkeypatch.setattr(module("count"), "run", fail)
        return main(["count", "--all"])

    return run


def test_user_errors_are_one_line(failing, capsys):
    assert failing(UserError("a\nb")) == 2
    assert capsys.readouterr().err == "error: a b\n"
    of_worker = RuntimeError("Traceback …\n  File x\nmvitv2_det.errors.UserError: no image")
    assert failing(of_worker) == 2
    assert capsys.readouterr().err == "error: no image\n"


def test_bugs_keep_their_trace(failing):
    with pytest.raises(RuntimeError, match="a bug"):
        failing(RuntimeError("a bug"))


def test_interrupt(failing, capsys):
    assert failing(KeyboardInterrupt()) == 128 + signal.SIGINT
    assert capsys.readouterr().err == "interrupted\n"


def test_closed_pipe():
    """As with ``| head``: no trace, and no complaint of Python's as it exits."""
    code = (
        "import os, sys; from mvitv2_det.commands import count, main\n"
        "count.run = lambda args: print('line') or 0\n"
        "reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 1)\n"
        "sys.exit(main(['count', '--all']))"
    )
    answer = python(code)
    assert (answer.returncode, answer.stderr) == (128 + signal.SIGPIPE, "")


def test_arguments_of_the_process(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mvitv2-det", "convert", "x.pth"])
    assert main() == 2
    monkeypatch.setattr(sys, "argv", ["convert", "x.pth"])
    assert run_command("convert") == 2
    assert capsys.readouterr().err == 2 * "error: name a TARGET, or give --show\n"


WITHOUT_DETECTRON2 = """
import contextlib, io, json, sys
sys.modules["detectron2"] = None
from mvitv2_det.commands import main
answers = []
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        status = main(arguments)
    answers.append([arguments[0], status, errors.getvalue()])
print(json.dumps(answers))
"""


@pytest.mark.long
def test_without_detectron2():
    """All in one process: the libraries that they load take seconds."""
    model = ["--config", "demo", "--weights", "w.pth", "--output", "o"]
    commands = [
        ["train", "--config-file", "demo"],
        ["predict", "i.png", *model],
        ["export", *model, "--part", "backbone", "--format", "onnx"],
        ["count", "--all"],
        ["draw", "output"],
        ["report", "output"],
        ["look-inside", "i.png", *model, "--position", "0", "0"],
    ]
    done = python(WITHOUT_DETECTRON2, json.dumps(commands))
    assert done.returncode == 0, done.stderr
    requirement = load_script("tools/install_detectron2.py").REQUIREMENT
    answers = json.loads(done.stdout)
    assert [name for name, _, _ in answers] == [name for name, *_ in commands]
    for name, status, errors in answers:
        assert status == 2, name
        assert errors.startswith("error: ") and errors.count("\n") == 1, name
        assert "Detectron2, which is not installed: run" in errors, name
        assert requirement in errors and "tools/install_detectron2.py" in errors, name
