"""Small trainings to inject faults into: each is a process forked from one that has all modules.

What a fault is to end is a real process, with its own files, signals and loader workers; what it is
spared is the seconds of importing. Linux only.
"""

import contextlib
import gc
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CONFIG = "mask_rcnn_mvitv2_t_3x"
ITERATIONS = 5
FINISHED, REFUSED, HANGS = 0, 2, -99
# Seconds after which a run counts as hanging; it takes some on a machine that does nothing else.
PATIENCE = 240.0

# Reading a config takes as long as some steps: all but these overrides are read once.
_OF_TRIALS = ("train.output_dir=", "dataset.")
_READ_CONFIG: list[Callable[..., Any]] = []
_CONFIGS: dict[tuple[str, ...], Any] = {}


def make_data(folder: Path, train_images: int = 6) -> None:
    """Writes images of a bright rectangle for training, and two for validation."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train_images), ("val", 2)):
        (folder / split).mkdir(parents=True)
        content: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
        content["categories"] = [{"id": 1, "name": "box"}]
        for number in range(1, count + 1):
            pixels = rng.integers(0, 80, (48, 64, 3), dtype=np.uint8)
            pixels[10:30, 20:50] = 220
            # The check before training reads all of a PNG, and the header of a JPEG.
            Image.fromarray(pixels).save(folder / split / f"{number}.jpg")
            content["images"].append(
                {"id": number, "file_name": f"{number}.jpg", "width": 64, "height": 48}
            )
            content["annotations"].append(
                {"id": number, "image_id": number, "category_id": 1, "bbox": [20, 10, 30, 20],
                 "area": 600, "iscrowd": 0,
                 "segmentation": [[20, 10, 50, 10, 50, 30, 20, 30]]}
            )  # fmt: skip
        (folder / f"{split}.json").write_text(json.dumps(content))


def arguments(data: Path, output: Path) -> list[str]:
    """The command line of a training of a second: checkpoints of a megabyte, steps of 0.1 s."""
    bottom_up, heads = "model.backbone.bottom_up", "model.roi_heads"
    return [
        "train", "--config-file", CONFIG, "train.device=cpu", "train.init_checkpoint=",
        f"train.output_dir={output}", f"train.max_iter={ITERATIONS}", "train.eval_period=0",
        "train.checkpointer.period=2", "train.log_period=1", "train.seed=1",
        "dataloader.train.total_batch_size=2", "dataloader.train.num_workers=0",
        "dataloader.test.num_workers=0", f"{bottom_up}.embed_dim=8", f"{bottom_up}.depth=4",
        f"{bottom_up}.last_block_indexes=[0,1,2,3]", f"{bottom_up}.drop_path_rate=0.2",
        "model.backbone.out_channels=8", f"{heads}.batch_size_per_image=8",
        f"{heads}.mask_head.conv_dims=[8,8]", f"{heads}.box_head.fc_dims=[16]",
        f"{heads}.box_predictor.input_shape.channels=16",
        "model.proposal_generator.batch_size_per_image=16",
        "model.proposal_generator.pre_nms_topk=[50,50]",
        "model.proposal_generator.post_nms_topk=[20,20]",
        "dataloader.test.mapper.augmentations.0.short_edge_length=48",
        "dataloader.train.mapper.augmentations.0.prob=0.0",
        "dataloader.train.mapper.augmentations.1.short_edge_length=[48,64]",
        *(f"dataset.{split}_{kind}={data}/{split}{end}"
          for split in ("train", "val") for kind, end in (("json", ".json"), ("images", ""))),
    ]  # fmt: skip


def start(
    command: list[str],
    said: Path,
    *,
    prepare: Callable[[], None] = lambda: None,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Starts a command of the project in a process group of its own; returns its id.

    Args:
        command: what follows ``mvitv2-det``.
        said: file to which what it prints is appended.
        prepare: is called first.
        environment: further variables.
    """
    sys.stdout.flush()
    if command[0] == "train" and _READ_CONFIG:
        known = [text for text in command if "=" in text and not text.startswith(_OF_TRIALS)]
        _known_config(CONFIG, known)
    process = os.fork()
    if process:
        with contextlib.suppress(OSError):  # both do it: whoever comes first
            os.setpgid(process, process)
        return process
    status = 70
    try:
        os.setpgid(0, 0)
        for stream in (1, 2):
            os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream)
        os.environ.update(environment or {})
        from mvitv2_det import commands

        prepare()
        status = commands.main(command)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def wait(process: int, seconds: float = PATIENCE) -> int:
    """Waits for a process, and ends what it leaves behind, such as workers.

    Returns:
        its status, negative for a signal; HANGS if it does not end in time.
    """
    end = time.monotonic() + seconds
    status = HANGS
    while status == HANGS and time.monotonic() < end:
        done, found = os.waitpid(process, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(found)
        else:
            time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    if status == HANGS:
        os.waitpid(process, 0)
    return status


def prepare_runs(folder: Path) -> None:
    """Does once what the runs that are forked later need not do each for itself.

    It imports what a whole run has imported in the end, reads each config once, and takes out what
    Detectron2 does at the start: the list of all versions, and the text of the config.
    """
    from detectron2.config import LazyConfig
    from detectron2.engine import defaults

    defaults.collect_env_info = lambda: "versions"
    defaults._highlight = lambda code, _: code
    names = folder / "modules.txt"
    make_data(folder / "first_data")

    def note() -> None:
        from mvitv2_det import commands

        main = commands.main

        def noting_main(command: list[str]) -> int:
            status = main(command)
            names.write_text("\n".join(sys.modules))
            return status

        commands.main = noting_main

    said = folder / "first.txt"
    command = arguments(folder / "first_data", folder / "first_run")
    if wait(start(command, said, prepare=note)):
        raise SystemExit(said.read_text())
    for name in names.read_text().splitlines():
        # Names such as those of torch.ops, which no module has.
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    text = (folder / "first_run" / "config.yaml").read_text()
    LazyConfig.save = staticmethod(lambda _, file: Path(file).write_text(text))
    from mvitv2_det import trained

    _READ_CONFIG.append(trained.read_config)
    trained.read_config = _read_config
    gc.collect()
    gc.freeze()  # a collection would write to all pages, which forked processes then copy


def _read_config(file: str, overrides: list[str], trust: object = ()) -> Any:
    """Reads a config once; what is forked has a copy of its own, with what differs by trial."""
    from omegaconf import OmegaConf

    cfg = _known_config(file, [text for text in overrides if not text.startswith(_OF_TRIALS)])
    for text in overrides:
        if text.startswith(_OF_TRIALS):
            OmegaConf.update(cfg, *text.split("=", 1))
    return cfg


def _known_config(file: str, overrides: list[str]) -> Any:
    key = tuple(overrides)
    if key not in _CONFIGS:
        _CONFIGS[key] = _READ_CONFIG[0](file, overrides)
    return _CONFIGS[key]


def state(output: Path) -> Any:
    """What must not depend on whether a run was left: weights, optimizer and losses."""
    import torch

    content = torch.load(output / "model_final.pth", weights_only=True)
    lines = map(json.loads, (output / "metrics.json").read_text().splitlines())
    losses = [(x["iteration"], x["total_loss"]) for x in lines if "total_loss" in x]
    return content["model"], content["trainer"]["optimizer"]["state"], losses


def equal(one: Any, other: Any) -> bool:
    """Bit for bit."""
    import torch

    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def outcome(said: Path, status: int, *, good: str = "trained") -> str:
    """In words, what came of a run that may end with one line: a trace is what must not be."""
    if "Traceback" in said.read_text(errors="replace"):
        return "trace"
    if status == HANGS:
        return "hangs"
    return {FINISHED: good, REFUSED: "one line"}.get(status, f"status {status}")
