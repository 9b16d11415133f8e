"""A small trained classifier that describes itself, in a checkpoint as training saves it."""

from pathlib import Path

import torch
from models import randomize

from mvitv2_det.recognition.description import Description, Input

SIZES = {"embed_dim": 8, "blocks": [1, 1, 1, 1], "num_heads": 1, "drop_path_rate": 0.0}
CLASSES = ("ant", "bee", "cat")


def describe(**arguments) -> Description:
    sizes = {"variant": SIZES, "image_size": 64}
    return Description("image", sizes | arguments, CLASSES, Input(size=64))


def save_classifier(file: Path, **arguments) -> Path:
    description = describe(**arguments)
    torch.manual_seed(0)
    model = randomize(description.build())
    entries = {"model": model.state_dict(), "recognizer": description.to_dict(), "iteration": 9}
    torch.save(entries, file)
    return file
