"""Weights by name, downloaded from a server on this machine."""

import csv
import hashlib
import os
import re
import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from models import TINY, randomize

from mvitv2_det import MViT, load_weights
from mvitv2_det.commands import main
from mvitv2_det.commands.models import markdown_table
from mvitv2_det.config import config_files
from mvitv2_det.errors import UserError
from mvitv2_det.suggestions import nearest
from mvitv2_det.weights import released, sources
from mvitv2_det.weights.files import write_weights
from mvitv2_det.weights.released import Released, released_weights

ROOT = Path(__file__).parents[2]
NAME = "mvitv2_t_in1k"


class Server(SimpleHTTPRequestHandler):
    """Serves a folder; as many bytes of the first answer as it is told, then it hangs up."""

    cut_after: int | None = None
    asked: list[str] = []  # noqa: RUF012
    ranges: list[str | None] = []  # noqa: RUF012

    def log_message(self, *_):
        self.asked.append(self.path)

    def do_GET(self):
        """As the standard library's, which knows no ranges, but for those of the same version."""
        wanted = self.headers.get("Range")
        Server.ranges.append(wanted)
        file = Path(self.translate_path(self.path))
        if not wanted or self.headers["If-Range"] != self.date_time_string(file.stat().st_mtime):
            return super().do_GET()
        content = file.read_bytes()[int(re.match(r"bytes=(\d+)-$", wanted)[1]) :]
        self.send_response(206 if content else 416)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        return None

    def copyfile(self, source, output):
        if Server.cut_after is None:
            return super().copyfile(source, output)
        output.write(source.read(Server.cut_after))
        Server.cut_after = None
        return None


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Serves weights as if they were those of a name, and returns what they were made of."""
    monkeypatch.setenv("IOPATH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "served"
    folder.mkdir()
    Server.cut_after, Server.asked, Server.ranges = None, [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()

    def of(model, algorithm="md5", digits=None):
        write_weights(model.state_dict(), folder / "model.pyth", key="model_state")
        content = (folder / "model.pyth").read_bytes()
        digits = digits or hashlib.new(algorithm, content).hexdigest()[:6]
        entry = released_weights()[NAME]
        url = f"http://127.0.0.1:{server.server_port}/model.pyth"
        entry = Released(**{**vars(entry), "url": url, "checksum": f"{algorithm}:{digits}"})
        monkeypatch.setattr(released, "released_weights", lambda: {NAME: entry})
        return url

    yield of
    server.shutdown()
    server.server_close()


def other_model(seed):
    return randomize(MViT(**TINY), seed=seed)


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_a_name_is_downloaded_once_and_loaded(serve, algorithm):
    theirs, ours = other_model(1), other_model(2)
    serve(theirs, algorithm)
    for _ in range(2):
        report = load_weights(ours, NAME, strict=True)
    assert report.source == NAME and Server.asked == ["/model.pyth"]
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def test_another_file_than_was_published_is_refused(serve, tmp_path):
    serve(other_model(1), digits="abcdef")
    ours = other_model(2)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    with pytest.raises(UserError, match=r"md5 sum begins with \w{6}, not abcdef") as refused:
        load_weights(ours, NAME)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
    assert (tmp_path / "cache" / "model.pyth.refused").is_file()
    assert "model.pyth.refused" in str(refused.value)
    with pytest.raises(UserError, match="not abcdef"):  # it is asked for again
        load_weights(ours, NAME)
    assert len(Server.asked) == 2


@pytest.mark.parametrize("left", [1000, None])
def test_an_interrupted_download_goes_on(serve, tmp_path, left):
    """None: all has been received, but the file has not been moved."""
    theirs, ours = other_model(1), other_model(2)
    serve(theirs)
    size = (tmp_path / "served" / "model.pyth").stat().st_size
    Server.cut_after = 1000
    with pytest.raises(UserError, match=f"ended after 1000 of {size} bytes; try again to go on"):
        load_weights(ours, NAME)
    cache = tmp_path / "cache"
    assert not (cache / "model.pyth").exists()
    if left is None:
        shutil.copy(tmp_path / "served" / "model.pyth", cache / "model.pyth.part")
    load_weights(ours, NAME, strict=True)
    assert torch.equal(ours.blocks[0].norm1.weight, theirs.blocks[0].norm1.weight)
    assert Server.ranges == [None, f"bytes={left or size}-", *([] if left else [None])]
    assert not list(cache.glob("*.part*"))


def test_another_version_of_the_file_starts_anew(serve, tmp_path):
    serve(other_model(1))
    Server.cut_after = 1000
    with pytest.raises(UserError, match="cannot be fetched"):
        load_weights(other_model(2), NAME)
    theirs, ours = other_model(3), other_model(2)
    serve(theirs)
    os.utime(tmp_path / "served" / "model.pyth", (0, 1e9))
    load_weights(ours, NAME, strict=True)
    assert torch.equal(ours.blocks[0].norm1.weight, theirs.blocks[0].norm1.weight)
    assert Server.ranges == [None, "bytes=1000-"]


def test_without_a_network_it_says_what_to_do(serve, tmp_path):
    url = serve(other_model(1)).replace("model.pyth", "none.pyth")
    place = tmp_path / "cache" / "none.pyth"
    message = rf"404.*; without a network, put {url} at {re.escape(str(place))}"
    with pytest.raises(UserError, match=message):
        load_weights(other_model(2), url)
    write_weights(other_model(1).state_dict(), place.parent / "x.pyth", key="model_state")
    (place.parent / "x.pyth").rename(place)
    load_weights(other_model(2), url, strict=True)


def test_detectron2s_addresses_say_what_to_do_as_well(monkeypatch, tmp_path):
    monkeypatch.setenv("IOPATH_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))

    def fail(*_):
        raise OSError("no route to host")

    monkeypatch.setattr(released, "download", fail)
    address = "https://dl.fbaipublicfiles.com/detectron2/x/m.pkl"
    message = f"no route to host; without a network, put {address} at .*/detectron2/x/m.pkl"
    with pytest.raises(UserError, match=message):
        released.fetch("detectron2://x/m.pkl", fail)


def test_a_file_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_weights(other_model(1).state_dict(), tmp_path / "x.pyth", key="model_state")
    (tmp_path / "x.pyth").rename(NAME)
    load_weights(other_model(2), NAME, strict=True)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("mvitv2_b_in22k", "neither a file nor released weights 'mvitv2_b_in22k'; did you mean"),
        ("cascade_mask_rcnn_mvitv2_b_in21k", "did you mean 'cascade_mask_rcnn_mvitv2_b_in21k_3x'"),
        ("resnet50", "'resnet50'; mvitv2-det models lists them"),
        ("MViTv2_T_in1k.pyth", "no checkpoint file 'MViTv2_T_in1k.pyth'; did you mean 'mvitv2_t_"),
        ("folder/model.pth", "^there is no checkpoint file 'folder/model.pth'$"),
    ],
)
def test_a_wrong_name_suggests_the_nearest(source, words):
    with pytest.raises(UserError, match=words):
        sources.check_source(source)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mask_rcnn_mvitv2_t", "mask_rcnn_mvitv2_t_3x"),
        ("mvitv2_l_50ep", "cascade_mask_rcnn_mvitv2_l_in21k_50ep"),
        ("mask_rcn_mvitv2_s_3x", "mask_rcnn_mvitv2_s_3x"),
        ("zzz", None),
        ("", None),
    ],
)
def test_the_nearest_config(name, expected):
    assert nearest(name, config_files()) == expected


def test_the_list():
    """Names, links and sums that fit each other; detectors are called as their configs."""
    with (ROOT / "mvitv2_det/weights/released.csv").open(encoding="utf-8") as lines:
        assert len(list(csv.DictReader(lines))) == len(released_weights())
    configs = config_files()
    for name, one in released_weights().items():
        assert name.isidentifier() and one.kind in ("images", "clips", "detector")
        assert one.url.startswith("https://") and one.page.startswith("https://") and one.licence
        if one.kind == "detector":
            assert one.config == name and name in configs
            docstring = " ".join(configs[name].read_text(encoding="utf-8").split())
            assert one.published in docstring, name
            digits = re.fullmatch(r".*/model_final_([0-9a-f]{6})\.pkl", one.url)[1]
            assert one.checksum == f"md5:{digits}"
        else:
            project = {"images": "imagenet", "clips": "video"}[one.kind]
            folder, _, config = one.config.partition("/")
            assert folder == project and (ROOT / f"projects/{folder}/configs/{config}.py").exists()


def test_the_page_has_the_list():
    """Where it has not: python -c "from mvitv2_det.commands.models import *; print(…)"."""
    assert markdown_table() in (ROOT / "docs/weights.md").read_text(encoding="utf-8")


def test_the_command(capsys):
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    for name in (*released_weights(), *config_files()):
        assert re.search(rf"^{name} ", printed, re.MULTILINE), name
    assert main(["models", "in21k", "H"]) == 0
    printed = capsys.readouterr().out
    assert "mvitv2_h_in21k " in printed and "mvitv2_t_in1k" not in printed
    assert main(["models", "resnet"]) == 2
    assert "no name has resnet in it" in capsys.readouterr().err
