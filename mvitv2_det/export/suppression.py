"""Non-maximum suppression in files of ONNX."""

from typing import Any


def end_suppression_early(graph: Any) -> None:
    """Ends each non-maximum suppression of a detector when it has found what is taken of it.

    Suppression finds boxes by descending score, and Detectron2 takes the first of them: as many
    proposals and detections as its config says. The exporter leaves out that number, and all boxes
    are gone through: with a score threshold of 0, the 80,000 of an image were a fifth of the
    time of Mask R-CNN T in OpenVINO (two cores).

    Args:
        graph: an ``onnx.GraphProto`` of the tracing exporter; is changed. Where it has another
            form than torchvision's suppression gives it, it stays as it is.
    """
    constants = _constants(graph)
    for choice in graph.node:
        if choice.op_type != "If":  # whether there are boxes at all
            continue
        takers = [node for node in graph.node if choice.output[0] in node.input]
        if [node.op_type for node in takers] != ["Slice"]:
            continue
        _, start, end, *_ = takers[0].input
        if end not in constants or start not in constants or _number(constants[start]) != 0:
            continue
        for branch in choice.attribute:
            values = _constants(branch.g)
            for node in branch.g.node:
                if node.op_type == "NonMaxSuppression" and node.input[2] in values:
                    # The most boxes of a class, and the exporter knows one class alone.
                    values[node.input[2]].CopyFrom(constants[end])


def _constants(graph: Any) -> dict[str, Any]:
    """Values of a graph's constants, by name."""
    nodes = (node for node in graph.node if node.op_type == "Constant")
    return {node.output[0]: node.attribute[0].t for node in nodes}


def _number(value: Any) -> int:
    from onnx import numpy_helper

    return int(numpy_helper.to_array(value).item())
