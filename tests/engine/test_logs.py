"""What a run writes into its log, and to a file that its output is sent to."""

import argparse
import logging
import sys

import pytest
from omegaconf import OmegaConf

from mvitv2_det.engine.logs import set_up_run


@pytest.fixture
def run(tmp_path, fresh_loggers):
    """Starts a run, of a config's file with words that Detectron2 colours; gives its folder."""
    pytest.importorskip("pygments")
    config = tmp_path / "config.py"
    config.write_text("from somewhere import something  # and a comment\n")
    cfg = OmegaConf.create({"train": {"output_dir": str(tmp_path / "run")}})
    set_up_run(cfg, argparse.Namespace(config_file=str(config)))
    for name in ("detectron2.data", "fvcore.common", "mvitv2_det.engine"):
        logging.getLogger(name).info("\x1b[36ma table of %s\x1b[0m", name)
    return tmp_path / "run"


def test_no_colours_in_files(capsys, run):
    log, out = (run / "log.txt").read_text(), capsys.readouterr().out
    for text in (log, out):
        assert "\x1b" not in text
        assert text.count("from somewhere import something  # and a comment") == 1
        for name in ("detectron2.data", "fvcore.common", "mvitv2_det.engine"):
            assert text.count(f"a table of {name}") == 1


def test_colours_on_terminals(monkeypatch, request, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    run = request.getfixturevalue("run")
    assert "\x1b[36ma table of detectron2.data" in capsys.readouterr().out
    assert "\x1b" not in (run / "log.txt").read_text()
