"""Inputs that are damaged or hostile: configs, annotations and images."""

import io
import json
import math
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fault_kinds import Runs
from fault_runs import arguments, make_data, outcome, start, wait
from PIL import Image

IMAGES_OF_A_RUN = 8
FORMATS = {"jpg": "JPEG", "png": "PNG", "bmp": "BMP", "tif": "TIFF", "webp": "WEBP"}


class Inputs(Runs):
    """Trials of what a run reads; without a trace, the worst that may come of one is a line."""

    def configs(self, count: int) -> Counter[str]:
        """YAML configs with hostile and mutated lines, read as every command reads them"""
        from mvitv2_det.config import load_config

        good = (self.whole / "config.yaml").read_text().splitlines()
        trace, file = self.folder / "ran", self.folder / "config.yaml"
        results: Counter[str] = Counter()
        for _ in range(count):
            file.write_text("\n".join(_changed_config(self.rng, good, trace)))
            results[_without_trace(lambda: load_config(str(file)))] += 1
            if trace.exists():
                results["ran code"] += 1
                trace.unlink()
        return results

    def annotations(self, count: int) -> Counter[str]:
        """mutated annotation files through the check; those that pass, through three iterations"""
        from mvitv2_det.data.coco_format import check_coco_data
        from mvitv2_det.data.findings import ODD

        good = json.loads((self.data / "train.json").read_text())
        images = str(self.data / "train")
        results: Counter[str] = Counter()
        for number in range(count):
            file = self.folder / f"annotations{number}.json"
            changed, odd = good, self.rng.choice(ODD)
            # Half have what is plausible in its place, and the rest anything anywhere.
            change = self.rng.choice((mutated, plausible))
            for _ in range(self.rng.randint(1, 3)):
                changed = change(self.rng, changed)
            file.write_text(json.dumps(changed))
            came = _without_trace(lambda f=str(file), o=odd: check_coco_data(f, images, o))
            if came == "passed":
                output, said = self.folder / "trained", self.folder / f"{file.stem}.txt"
                more = ["train.max_iter=3", "dataloader.train.num_workers=0"]
                more += [f"dataset.train_json={file}", f"dataset.odd_annotations={odd}"]
                if self.rng.random() < 0.5:  # evaluated on the same
                    more += [f"dataset.val_json={file}", f"dataset.val_images={images}"]
                process = start([*arguments(self.data, output), *more], said)
                came = f"passed, {outcome(said, wait(process))}"
                shutil.rmtree(output, ignore_errors=True)
            results[came] += 1
            if came in ("one line", "passed, trained"):
                file.unlink()
        return results

    def images(self, count: int) -> Counter[str]:
        """mutated images through training, which replaces those that it cannot read"""
        results: Counter[str] = Counter()
        for first in range(0, count, IMAGES_OF_A_RUN):
            number = min(IMAGES_OF_A_RUN, count - first)
            data, output = self.folder / f"images{first}", self.folder / "out"
            said = self.folder / f"images{first}.txt"
            make_data(data, number + 1)  # the last stays good
            for file in sorted((data / "train").iterdir(), key=lambda f: int(f.stem))[:number]:
                # The check before training reads the header: what it refuses is not trained on.
                file.write_bytes(_changed_image(self.rng, "JPEG", header=first % 5 == 0))
            command = [*arguments(data, output), "train.max_unreadable=9999"]
            command += ["train.max_iter=1", f"dataloader.train.total_batch_size={number + 1}"]
            results[outcome(said, wait(start(command, said)))] += number
            shutil.rmtree(data)
            shutil.rmtree(output, ignore_errors=True)
        return results

    def predicted_images(self, count: int) -> Counter[str]:
        """mutated images of five formats through prediction, which names what it cannot read"""
        pictures, output = self.folder / "pictures", self.folder / "predicted"
        said = self.folder / "predicted.txt"
        pictures.mkdir()
        for number in range(count):
            ending = self.rng.choice(list(FORMATS))
            content = _changed_image(self.rng, FORMATS[ending], header=True)
            (pictures / f"{number}.{ending}").write_bytes(content)
        command = ["predict", "--config", str(self.whole / "config.yaml"), "--weights"]
        command += [str(self.whole / "model_final.pth"), str(pictures), "--output", str(output)]
        status = wait(start([*command, "--device", "cpu", "--no-overlays"], said), 20.0 * count)
        came = outcome(said, status, good="predicted")
        if came not in ("predicted", "status 1"):  # 1: some could not be read
            return Counter({came: count})
        read = len(json.loads((output / "images.json").read_text())["images"])
        return Counter({"predicted": read, "named": count - read})


def _without_trace(action: Callable[[], Any]) -> str:
    from mvitv2_det import UserError

    try:
        action()
    except UserError as error:
        return "one line" if "\n" not in str(error) and len(str(error)) < 1000 else "long lines"
    except Exception as error:
        return f"trace: {type(error).__name__}"
    return "passed"


def _changed_config(rng: random.Random, good: list[str], trace: Path) -> list[str]:
    hostile = [
        f"z: !!python/object/apply:os.system ['touch {trace}']",
        f"z: {{_target_: os.system, command: 'touch {trace}'}}",
        f"z: !!python/object/new:subprocess.Popen [['touch', '{trace}']]",
        "z: !!python/name:os.system ''",
        "z: {_target_: torch.hub.load}",
        f"z: '${{oc.create:{{_target_: os.system, command: \"touch {trace}\"}}}}'",
        f"z: {{_target_: mvitv2_det.engine.run_state.os.system, command: 'touch {trace}'}}",
        "z: &a [*a]",
        "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [{f'*a{n - 1},' * 9}]" for n in range(1, 12))]),
        "z: !!python/module:this",
    ]
    lines = list(good)
    kind = rng.randrange(3)
    if kind == 0:
        lines.insert(0, rng.choice(hostile))
    for _ in range(kind and rng.randint(1, 5)):
        place = rng.randrange(len(lines))
        text = lines[place]
        cut = rng.randrange(len(text) + 1)
        junk = rng.choice(["", "!!python/name:os.system ", "{", "[", "&a ", "*a", "\t", "\0", "é"])
        lines[place] = text[:cut] + junk + text[cut + rng.randrange(4) :]
    return lines


def _changed_image(rng: random.Random, kind: str, *, header: bool) -> bytes:
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 255, (48, 64, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    content = bytearray(file.getvalue())
    first = 0 if header else 620
    for _ in range(rng.choice((1, 10, 100))):
        content[rng.randrange(first, len(content))] = rng.randrange(256)
    end = rng.choice((len(content), len(content), len(content) // 2, 700 if not header else 5))
    return bytes(content[:end])


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


def plausible(rng: random.Random, content: Any) -> Any:
    """A json file whose images and annotations have other values, of the kind that they may have.

    Such as those of careless tools: boxes outside of the image, masks of no area, ids in use.
    """
    content = json.loads(json.dumps(content))
    annotation = rng.choice(content["annotations"])
    x, y = rng.uniform(-80, 80), rng.uniform(-60, 60)
    corners = [round(rng.uniform(-90, 130), rng.randrange(3)) for _ in range(2 * rng.randrange(7))]
    runs: list[int] = []
    while sum(runs) < 48 * 64 and rng.random() < 0.9:
        runs.append(rng.randrange(0, 48 * 64 - sum(runs) + 1))
    changes = [
        {"bbox": [x, y, rng.uniform(0, 90), rng.uniform(0, 70)]},
        {"bbox": [x, y, 1e-9, 1e-9]},
        {"bbox": [20, 10, rng.choice((0, -30, 1e9)), 20]},
        {"bbox": [0, 0, 64, 48], "segmentation": [corners]},
        {"segmentation": [corners, [20, 10, 50, 10, 50, 30]]},
        {"segmentation": [[x, y] * 4]},
        {"segmentation": {"size": [48, 64], "counts": runs}},
        {"segmentation": {"size": [48, 64], "counts": [*runs, 48 * 64 - sum(runs)]}},
        {"segmentation": {"size": [64, 48], "counts": [0, 48 * 64]}},
        {"segmentation": {"size": [48, 64], "counts": "".join(chr(rng.randrange(48, 112))
                                                             for _ in range(rng.randrange(9)))}},
        {"segmentation": []},
        {"iscrowd": rng.choice((1, True, 0.0, 2)), "segmentation": None},
        {"iscrowd": 1, "segmentation": {"size": [48, 64], "counts": [0, 48 * 64]}},
        {"area": rng.choice((0, -5, 1e12, 0.1, math.nan))},
        {"id": rng.choice((0, -1, 2, 2**40))},
        {"image_id": rng.randrange(8)},
        {"category_id": rng.randrange(3)},
        {"keypoints": [1, 2, 2], "num_keypoints": 1, "score": "x"},
    ]  # fmt: skip
    annotation |= rng.choice(changes)
    if rng.random() < 0.2:
        image = rng.choice(content["images"])
        image |= rng.choice(
            [{"id": "one"}, {"id": 0}, {"width": 65}, {"height": 48.0}, {"license": None},
             {"file_name": "./1.jpg"}, {"file_name": "../train/2.jpg"}, {"file_name": "é.jpg"}]
        )  # fmt: skip
    if rng.random() < 0.1:
        content["categories"] = rng.choice(
            [[{"id": 0, "name": "box"}], [{"id": 1, "name": "box"}, {"id": 2**40, "name": "\t"}],
             [{"id": 1, "name": ""}], [{"id": 5, "name": "z"}, {"id": 1, "name": "box"}]]
        )  # fmt: skip
    return content
