#!/usr/bin/env python3
"""Writes silhouettes of walkers as video files, a folder for each walker.

    python tools/make_gait_videos.py gait.npz --output datasets/gait

The file holds ``train_clips`` and ``val_clips``, (clips, T, H, W) of 0 and 1, and ``train_labels``
and ``val_labels``, who walks. Clips of the USF HumanID gallery are of this kind: the repository
pykale/data has them as ``videos/gait/gait_gallery_data.mat``. PyAV writes H.264 at 30 frames a
second (``pip install 'mvitv2_det[video]'``).
"""

import argparse
import sys
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for its neighbour

import numpy as np
from class_folders import new_folder, run

from mvitv2_det.errors import UserError
from mvitv2_det.video.writing import write_video

FPS = 30


def make_gait_videos(source: Path, output: Path) -> dict[str, int]:
    """Writes both splits.

    Returns:
        the number of videos of each split.

    Raises:
        UserError: ``source`` is not such a file, or ``output`` exists or cannot be written.
    """
    if output.exists():  # it may be of another source
        raise UserError(f"--output {output} exists: name a new folder")
    try:
        with np.load(source) as content:
            splits = {
                split: (content[f"{split}_clips"], content[f"{split}_labels"])
                for split in ("train", "val")
            }
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read clips and labels from {source}: {error}") from error
    counts = {split: len(labels) for split, (_, labels) in splits.items()}
    with new_folder(output, counts, ".mp4") as made:
        for split, (clips, labels) in splits.items() if made else ():
            for number, (clip, label) in enumerate(zip(clips, labels, strict=True)):
                frames = np.repeat(clip[..., None] * np.uint8(255), 3, axis=-1)
                file = made / split / f"{label:02d}" / f"{number:04d}.mp4"
                file.parent.mkdir(parents=True, exist_ok=True)
                write_video(file, frames, FPS, options={"crf": "10"})
    return counts


def main(arguments: list[str] | None = None) -> int:
    """Writes the videos; returns the exit status, 2 where the user has something to put right."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="npz file")
    return run(make_gait_videos, parser, arguments, "videos")


if __name__ == "__main__":
    sys.exit(main())
