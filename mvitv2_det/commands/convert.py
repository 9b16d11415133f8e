"""Shows or converts MViTv2 weights.

    mvitv2-det convert --show MViTv2_T_in1k.pyth
    mvitv2-det convert timm://mvitv2_tiny mvitv2_t.pyth
    mvitv2-det convert output/model_final.pth backbone.safetensors --to timm

SOURCE is a path, a URL, detectron2://… or timm://NAME: weights of facebookresearch/mvit,
PySlowFast, timm, torchvision, mmpretrain, mmaction2, Detectron2 or this project. TARGET ends in
.safetensors, .pkl, .pth or .pyth.
"""

import argparse
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    from ..weights import Checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the source, the target and the options."""
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("target", metavar="TARGET", nargs="?")
    parser.add_argument(
        "--to",
        metavar="{timm,mvit,pyslowfast,torchvision,detectron2,safetensors}",
        help="whose names the tensors get; by default as TARGET's ending says",
    )
    parser.add_argument("--show", action="store_true", help="print what SOURCE holds")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="stop if the target has no name for a tensor, or no frames",
    )


def run(args: argparse.Namespace) -> int:
    """Prints what the source holds, converts it, or both."""
    if not args.show and args.target is None:
        raise UserError("name a TARGET, or give --show")
    from ..weights import convert_weights, read_source
    from ..weights.report import shortened

    if args.show:
        print(describe(read_source(args.source)))
    if args.target is not None:
        done = convert_weights(args.source, args.target, args.to, args.strict)
        print(
            f"{args.target}: {len(done.written)} tensors, from {done.source_format} to "
            f"{done.target_format}"
        )
        for name in done.dropped:
            print(f"dropped, as {done.target_format} has no name for it: {name}")
        if done.reduced:
            print(
                f"the centre frame alone, as {done.target_format} has no frames, of "
                f"{', '.join(shortened(done.reduced))}; --to pyslowfast keeps all"
            )
    return 0


def describe(checkpoint: "Checkpoint") -> str:
    """Describes a checkpoint: its kind, its size, and every tensor."""
    from tabulate import tabulate

    layout = checkpoint.layout
    lines = [f"{checkpoint.source}: weights of {checkpoint.format}"]
    if layout is not None:
        place = "attention" if layout.expand_in_attention else "the MLP"
        lines.append(f"{layout}; channels double in {place}")
    numel = sum(value.numel() for value in checkpoint.weights.values())
    lines.append(f"{len(checkpoint.weights)} tensors, {numel / 1e6:.2f} M numbers\n")
    rows = [
        (checkpoint.own_names[name], "×".join(map(str, value.shape)) or "one number", value.dtype)
        for name, value in checkpoint.weights.items()
    ]
    return "\n".join(lines) + "\n" + tabulate(rows, ("tensor", "shape", "type"))
