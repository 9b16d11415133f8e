#!/usr/bin/env python3
"""Injects faults into small trainings, and writes a table of what came of them.

    python tools/faults.py --output tools/faults.md
    python tools/faults.py --only kills --count 200

Everything follows from --seed but the moments at which processes are killed. A run counts as lost
if it cannot be resumed, and as unequal if its weights, its optimizer or its logged losses differ
from those of the run that was left alone. Each trial is a process of its own, forked from this one,
which has imported everything. Linux only.
"""

import argparse
import contextlib
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CONFIG = "mask_rcnn_mvitv2_t_3x"
ITERATIONS = 8
PARTIAL, FINISHED, STOPPED, REFUSED = "killed", 0, (75, 130), 2


def make_data(folder: Path) -> None:
    """Writes six images of a bright rectangle for training and two for validation."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
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
    """The command line of a training of seconds."""
    bottom_up, heads = "model.backbone.bottom_up", "model.roi_heads"
    return [
        "train", "--config-file", CONFIG, "train.device=cpu", "train.init_checkpoint=",
        f"train.output_dir={output}", f"train.max_iter={ITERATIONS}", "train.eval_period=0",
        "train.checkpointer.period=2", "train.log_period=1", "train.seed=1",
        "dataloader.train.total_batch_size=2", "dataloader.train.num_workers=1",
        "dataloader.test.num_workers=0", f"{bottom_up}.embed_dim=8", f"{bottom_up}.depth=4",
        f"{bottom_up}.last_block_indexes=[0,1,2,3]", f"{bottom_up}.drop_path_rate=0.2",
        "model.backbone.out_channels=8", f"{heads}.batch_size_per_image=8",
        f"{heads}.mask_head.conv_dims=[8,8]", "model.proposal_generator.batch_size_per_image=16",
        "model.proposal_generator.pre_nms_topk=[50,50]",
        "model.proposal_generator.post_nms_topk=[20,20]",
        "dataloader.test.mapper.augmentations.0.short_edge_length=48",
        "dataloader.train.mapper.augmentations.0.prob=0.0",
        "dataloader.train.mapper.augmentations.1.short_edge_length=[48,64]",
        *(f"dataset.{split}_{kind}={data}/{split}{end}"
          for split in ("train", "val") for kind, end in (("json", ".json"), ("images", ""))),
    ]  # fmt: skip


def start(command: list[str], said: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Starts the command in a process of its own; returns its id. What it prints is appended."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    status = 70
    try:
        os.setpgid(0, 0)
        for stream in (1, 2):
            os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream)
        from mvitv2_det.commands import main

        prepare()
        status = main(command)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(process: int) -> int:
    """Waits for a process; returns its status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


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


class Campaign:
    """Trials in a folder, and what came of them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng = folder, random.Random(seed)
        self.data, self.whole = folder / "data", folder / "whole"
        make_data(self.data)
        begun = time.monotonic()
        status = wait(start(arguments(self.data, self.whole), folder / "whole.txt"))
        if status:
            raise SystemExit((folder / "whole.txt").read_text())
        self.seconds = time.monotonic() - begun
        self.expected = state(self.whole)

    def _until_finished(self, name: str, fault: Callable[[int], None], **options: Any) -> str:
        """Starts a run, which a fault ends, and resumes it; the fault comes again at first."""
        output, said = self.folder / name, self.folder / f"{name}.txt"
        command = arguments(self.data, output)
        process = start(command, said, **options)
        fault(process)
        status = wait(process)
        self._reap(process)
        left = status != FINISHED
        for _ in range(3):
            if status == FINISHED:
                break
            process = start([*command, "--resume"], said)
            status = wait(process)
            self._reap(process)
        if "Traceback" in said.read_text():
            return "trace"
        if status != FINISHED:
            return "lost"
        result = "equal" if equal(state(output), self.expected) else "unequal"
        shutil.rmtree(output)
        return result if left else f"{result}, finished before"

    def _reap(self, process: int) -> None:
        """Ends workers that a killed process has left, and waits for none of them."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)

    def kills(self, count: int) -> Counter[str]:
        """SIGKILL at random moments."""

        def fault(process: int) -> None:
            time.sleep(self.rng.uniform(0, self.seconds))
            os.kill(process, signal.SIGKILL)

        return Counter(self._until_finished(f"kill{n}", fault) for n in range(count))

    def kills_in_writes(self, count: int) -> Counter[str]:
        """SIGKILL while a checkpoint or a pointer is written, and around its renaming."""

        def prepare() -> None:
            import torch

            from mvitv2_det import whole_files

            rng = random.Random(os.getpid())
            die_at, site, calls = rng.randrange(8), rng.randrange(4), [0]
            save, replace, sync = torch.save, Path.replace, whole_files._sync

            def now(place: int) -> bool:
                calls[0] += place == site
                return place == site and calls[0] > die_at // 2

            def dying_save(content: Any, file: Any) -> None:
                if now(0):
                    import io

                    buffer = io.BytesIO()
                    save(content, buffer)
                    file.write(buffer.getvalue()[: rng.randrange(len(buffer.getvalue()))])
                    file.flush()
                    os.kill(os.getpid(), signal.SIGKILL)
                save(content, file)

            def dying_replace(path: Path, target: Path) -> Path:
                if now(1):
                    os.kill(os.getpid(), signal.SIGKILL)
                done = replace(path, target)
                if now(2):
                    os.kill(os.getpid(), signal.SIGKILL)
                return done

            def dying_sync(path: Path) -> None:
                if now(3):
                    os.kill(os.getpid(), signal.SIGKILL)
                sync(path)

            torch.save, Path.replace, whole_files._sync = dying_save, dying_replace, dying_sync

        return Counter(
            self._until_finished(f"write{n}", lambda _: None, prepare=prepare) for n in range(count)
        )

    def signals(self, count: int) -> Counter[str]:
        """Each signal at random moments."""
        numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP]

        def fault(process: int) -> None:
            time.sleep(self.rng.uniform(0.5, 1) * self.seconds)
            os.kill(process, self.rng.choice(numbers))

        return Counter(self._until_finished(f"signal{n}", fault) for n in range(count))

    def full_disks(self, count: int) -> Counter[str]:
        """A limit on the size of files, at which writing a checkpoint fails as on a full disk."""
        size = (self.whole / "model_final.pth").stat().st_size

        def prepare() -> None:
            import resource

            limit = random.Random(os.getpid()).randrange(200_000, size)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        return Counter(
            self._until_finished(f"full{n}", lambda _: None, prepare=prepare) for n in range(count)
        )

    def folders(self, count: int) -> Counter[str]:
        """Output folders of which files are cut, changed, emptied, removed or exchanged."""
        results: Counter[str] = Counter()
        for number in range(count):
            output, said = self.folder / f"folder{number}", self.folder / f"folder{number}.txt"
            shutil.copytree(self.whole, output)
            for _ in range(self.rng.randint(1, 4)):
                self._damage(output)
            command = arguments(self.data, output)
            process = start([*command, "--resume"], said)
            status = wait(process)
            self._reap(process)
            if "Traceback" in said.read_text():
                results["trace"] += 1
            elif status == FINISHED:
                same = equal(state(output)[:2], self.expected[:2])
                results["equal" if same else "unequal"] += 1
            else:
                results["one line" if status == REFUSED else f"status {status}"] += 1
            shutil.rmtree(output)
        return results

    def _damage(self, output: Path) -> None:
        names = ["last_checkpoint", *sorted(f.name for f in output.glob("model_*.pth"))]
        file = output / self.rng.choice(names)
        content = bytearray(file.read_bytes()) if file.is_file() else bytearray()
        kind = self.rng.randrange(6)
        if kind == 0:
            content = content[: self.rng.randrange(len(content) + 1)]
        elif kind == 1 and content:
            content[self.rng.randrange(len(content))] ^= 1 << self.rng.randrange(8)
        elif kind == 2:
            content = bytearray()
        elif kind == 3:
            content = bytearray(self.rng.randbytes(self.rng.randrange(1, 300)))
        elif kind == 4:
            content = bytearray(b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.")
        else:
            file.unlink(missing_ok=True)
            return
        file.write_bytes(content)

    def annotations(self, count: int) -> Counter[str]:
        """Mutated annotation files through the check."""
        from mvitv2_det import UserError
        from mvitv2_det.data.coco_format import check_coco_data

        good = json.loads((self.data / "train.json").read_text())
        results: Counter[str] = Counter()
        file = self.folder / "mutated.json"
        passed = self.folder / "passed"
        passed.mkdir(exist_ok=True)
        for number in range(count):
            changed = good
            for _ in range(self.rng.randint(1, 3)):
                changed = mutated(self.rng, changed)
            file.write_text(json.dumps(changed))
            try:
                check_coco_data(str(file), str(self.data / "train"))
                results["passed"] += 1
                file.replace(passed / f"{number}.json")
            except UserError as error:
                results["one line" if "\n" not in str(error) else "lines"] += 1
            except Exception as error:
                results[f"trace: {type(error).__name__}"] += 1
        return results

    def trained_annotations(self, count: int) -> Counter[str]:
        """Annotation files that have passed the check, through three iterations."""
        results: Counter[str] = Counter()
        for file in sorted((self.folder / "passed").iterdir())[:count]:
            output = self.folder / "trained"
            said = self.folder / f"trained_{file.stem}.txt"
            command = [*arguments(self.data, output), f"dataset.train_json={file}"]
            process = start([*command, "train.max_iter=3"], said)
            status = wait(process)
            self._reap(process)
            trace = "Traceback" in said.read_text()
            results["trace" if trace else {0: "trained", 2: "one line"}.get(status, "other")] += 1
            shutil.rmtree(output, ignore_errors=True)
        return results

    def images(self, count: int) -> Counter[str]:
        """Mutated images through training, which replaces them."""
        results: Counter[str] = Counter()
        for number in range(count):
            data, output = self.folder / f"images{number}", self.folder / f"out{number}"
            shutil.copytree(self.data, data)
            for file in sorted((data / "train").iterdir())[:3]:
                content = bytearray(file.read_bytes())
                for _ in range(self.rng.choice((1, 10, 100))):
                    # The header stays: the check reads it.
                    content[self.rng.randrange(620, len(content))] = self.rng.randrange(256)
                file.write_bytes(content[: self.rng.choice((len(content), len(content) // 2))])
            said = self.folder / f"images{number}.txt"
            command = [*arguments(data, output), "train.max_unreadable=99"]
            process = start([*command, "train.max_iter=3"], said)
            status = wait(process)
            self._reap(process)
            trace = "Traceback" in said.read_text()
            results["trace" if trace else {0: "trained", 2: "one line"}.get(status, "other")] += 1
            shutil.rmtree(data)
            shutil.rmtree(output, ignore_errors=True)
        return results

    def configs(self, count: int) -> Counter[str]:
        """YAML configs with hostile and mutated lines, which must not leave a trace behind."""
        from mvitv2_det import UserError
        from mvitv2_det.config import load_config

        good = (self.whole / "config.yaml").read_text().splitlines()
        trace = self.folder / "ran"
        hostile = [
            f"z: !!python/object/apply:os.system ['touch {trace}']",
            f"z: {{_target_: os.system, command: 'touch {trace}'}}",
            f"z: !!python/object/new:subprocess.Popen [['touch', '{trace}']]",
            "z: !!python/name:os.system ''",
            "z: {_target_: torch.hub.load}",
            f"z: '${{oc.create:{{_target_: os.system, command: \"touch {trace}\"}}}}'",
            "z: &a [*a]",
            "z: !!python/module:this",
        ]
        results: Counter[str] = Counter()
        file = self.folder / "config.yaml"
        for _ in range(count):
            lines = list(good)
            kind = self.rng.randrange(3)
            if kind == 0:
                lines.insert(0, self.rng.choice(hostile))
            for _ in range(kind and self.rng.randint(1, 5)):
                place = self.rng.randrange(len(lines))
                text = lines[place]
                cut = self.rng.randrange(len(text) + 1)
                junk = self.rng.choice(
                    ["", "!!python/name:os.system ", "{", "[", "&a ", "*a", "\t"]
                )
                lines[place] = text[:cut] + junk + text[cut + self.rng.randrange(4) :]
            file.write_text("\n".join(lines))
            try:
                load_config(str(file))
                results["passed"] += 1
            except UserError as error:
                results["one line" if "\n" not in str(error) else "lines"] += 1
            except Exception as error:
                results[f"trace: {type(error).__name__}"] += 1
            if trace.exists():
                results["ran code"] += 1
                trace.unlink()
        return results


def mutated(rng: random.Random, value: Any) -> Any:
    """A json value with something in it replaced or left out."""
    if isinstance(value, dict) and value and rng.random() < 0.95:
        key = rng.choice(sorted(value))
        if rng.random() < 0.1:
            return {name: item for name, item in value.items() if name != key}
        return value | {key: mutated(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.95:
        place = rng.randrange(len(value))
        return [*value[:place], mutated(rng, value[place]), *value[place + 1 :]]
    return rng.choice(
        [None, True, False, -1, 0, 1, 7, 1.5, -1000, math.nan, math.inf, 1e30, 2**70, "", "x",
         "1.jpg", "\0", "\ud800", [], {}, [[]], [1, 2], {"size": [48, 64], "counts": "zz"},
         {"size": [48, 64], "counts": [3072]}, [[1, 2, 3, 4]], [20, 10, 30, 20]]
    )  # fmt: skip


COUNTS = {
    "kills": 150, "kills_in_writes": 50, "signals": 20, "full_disks": 10, "folders": 50,
    "configs": 500, "annotations": 2000, "trained_annotations": 50, "images": 25,
}  # fmt: skip


def main() -> int:
    """Runs the campaign; returns 1 if something was lost, unequal, run or said in a trace."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=COUNTS, default=list(COUNTS))
    parser.add_argument("--count", type=int, help="trials of each kind, instead of those of a kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="table in Markdown; otherwise it is printed")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    # What trials need, once for all of them. Nothing here may start a thread of torch's.
    import mvitv2_det.data
    import mvitv2_det.engine.launch
    import mvitv2_det.trained  # noqa: F401

    torch.set_num_threads(1)
    rows, is_good = [], True
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder), args.seed)
        for kind in args.only:
            count = args.count or COUNTS[kind]
            found = getattr(campaign, kind)(count)
            what = (getattr(Campaign, kind).__doc__ or "").strip()
            came = ", ".join(f"{number} {result}" for result, number in found.most_common())
            rows.append(f"| {kind.replace('_', ' ')} | {what} | {sum(found.values())} | {came} |")
            print(rows[-1], flush=True)
            bad = ("lost", "unequal", "trace", "ran code", "lines", "other", "status")
            is_good &= not any(result.startswith(bad) for result in found)
    head = ["| fault | what | trials | what came of it |", "|---|---|---|---|"]
    table = "\n".join([*head, *rows]) + "\n"
    if args.output:
        text = f"# Faults\n\n`python tools/faults.py --seed {args.seed}`, on a CPU.\n\n{table}"
        args.output.write_text(text, encoding="utf-8")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
