"""Running a file of ONNX with a library: one image in, the outputs as arrays out."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UserError

# Runs images (3, H, W) float32, each of its own size; gives the outputs of each, in their order.
Session = Callable[[Sequence[np.ndarray]], list[list[np.ndarray]]]


def open_session(file: Path, runtime: str, precision: str) -> Session:
    """Reads a file for a runtime that :func:`mvitv2_det.runtimes.check_runtime` has passed.

    As many threads are used as torch uses.

    Raises:
        UserError: the runtime cannot read the file, or this CPU has not the precision.
    """
    try:
        return _OpenVINO(file, precision) if runtime == "openvino" else _onnxruntime(file)
    except UserError:
        raise
    except Exception as error:  # both libraries have errors of their own, of no common kind
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{runtime} cannot read {file}: {reason}; delete the file, and it is made again"
        ) from error


@cache
def openvino_core() -> Any:
    """Returns the one ``openvino.Core`` of this process, which is never given up.

    A core gives the thread that first compiles with it a stack for signals, and frees that stack
    when the last that refers to the core is dropped, in whatever thread. In another thread than
    the first one (a garbage collection is enough) the first then keeps a stack that is gone, and
    the next signal that Python handles, such as Ctrl-C, is a segmentation fault (OpenVINO 2026.4).
    """
    import openvino

    return openvino.Core()


class _OpenVINO:
    """OpenVINO on the CPU.

    One image is computed by all threads. Several are computed beside each other, each by few
    threads, which takes more memory and less time in all.
    """

    def __init__(self, file: Path, precision: str) -> None:
        import openvino

        core = openvino_core()
        able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bf16" and "BF16" not in able:
            # OpenVINO itself would compute in fp32, and not say so.
            raise UserError("this CPU does not multiply bf16 by itself: choose the precision fp32")
        model = core.read_model(file)
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }

        @cache
        def queue(hint: str) -> Any:
            compiled = core.compile_model(model, "CPU", options | {"PERFORMANCE_HINT": hint})
            return openvino.AsyncInferQueue(compiled)

        queue("LATENCY")  # errors, and the time that it takes, belong to the start
        self._queue = queue

    def __call__(self, images: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        found: dict[int, list[np.ndarray]] = {}

        def keep(request: Any, index: int) -> None:
            # The request's memory is used again for a later image.
            found[index] = [output.data.copy() for output in request.output_tensors]

        queue = self._queue("LATENCY" if len(images) == 1 else "THROUGHPUT")
        queue.set_callback(keep)
        for index, image in enumerate(images):
            queue.start_async({0: image}, index)
        queue.wait_all()
        return [found[index] for index in range(len(images))]


def _onnxruntime(file: Path) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised as well
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    (inputs,) = session.get_inputs()
    return lambda images: [session.run(None, {inputs.name: image}) for image in images]
