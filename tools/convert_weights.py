#!/usr/bin/env python3
"""Shows or converts MViTv2 weights.

    python tools/convert_weights.py --show MViTv2_T_in1k.pyth
    python tools/convert_weights.py timm://mvitv2_tiny mvitv2_t.pyth
    python tools/convert_weights.py output/model_final.pth backbone.safetensors --to timm

SOURCE is a path, a URL, detectron2://… or timm://NAME: weights of facebookresearch/mvit,
PySlowFast, timm, torchvision, Detectron2 or this project. TARGET ends in .safetensors, .pkl, .pth
or .pyth.
"""

import argparse
import sys

from tabulate import tabulate

from mvitv2_det.errors import UserError, one_line
from mvitv2_det.weights import TARGETS, Checkpoint, convert_weights, read_source


def describe(checkpoint: Checkpoint) -> str:
    """What a checkpoint holds: its kind, its size, and every tensor."""
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


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("target", metavar="TARGET", nargs="?")
    parser.add_argument("--to", choices=list(TARGETS), help="by default as TARGET's ending says")
    parser.add_argument("--show", action="store_true", help="print what SOURCE holds")
    parser.add_argument(
        "--strict", action="store_true", help="stop where TARGET has no name for a tensor"
    )
    args = parser.parse_args(arguments)
    if not args.show and args.target is None:
        parser.error("name a TARGET, or give --show")
    return args


def main(arguments: list[str] | None = None) -> int:
    """Does it; returns the exit status, 2 where the user has something to put right."""
    args = parse(arguments)
    try:
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
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
