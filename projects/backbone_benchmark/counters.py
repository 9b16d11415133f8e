"""Where the backbone's inference spends its time: PyTorch's profile beside OpenVINO's counters."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from mvitv2_det.errors import UserError
from mvitv2_det.export import export_model
from mvitv2_det.runtimes import check_runtime
from mvitv2_det.runtimes.sessions import openvino_core
from projects.backbone_benchmark.networks import Setting, both_networks, inference
from projects.backbone_benchmark.profiling import profiler

# Kinds of operations, and words of the names that PyTorch and OpenVINO give to them; the first
# that fits counts.
KINDS = {
    "products": ("mm", "linear", "matmul", "fullyconnected"),
    "convolutions": ("conv", "mkldnn"),
    "softmax": ("softmax",),
    "norms": ("norm", "mvn", "rms", "reducemean"),
    "layout": (
        "copy", "cat", "pad", "index", "gather", "transpose", "reorder", "reshape", "permute",
        "slice", "select", "view", "expand", "tile", "broadcast", "concat", "split", "clone",
        "contiguous", "unflatten", "flatten", "as_strided", "empty", "resize", "zero", "fill",
    ),
    "pooling": ("pool",),
    "element by element": ("add", "mul", "gelu", "sub", "div", "exp", "eltwise", "math"),
}  # fmt: skip
NOTE = (
    "OpenVINO computes chains of element-wise operations as one (Subgraph), and GELU and sums at "
    "the end of a product; here they count where they are computed. PyTorch's are its own times, "
    "without the operations that it calls."
)


def kind_of(name: str) -> str:
    """The kind of an operation, by its name in either library."""
    name = name.lower()
    if name == "subgraph":
        return "element by element"
    found = (kind for kind, words in KINDS.items() if any(word in name for word in words))
    return next(found, "others")


def measure(setting: Setting, rounds: int, report: Callable[[str], None] = print) -> list[dict]:
    """Profiles ``rounds`` passes by each.

    Returns:
        a row for each kind of operation, in milliseconds of a pass.

    Raises:
        UserError: OpenVINO is not installed.
    """
    check_runtime("openvino", setting.precision, None)
    if setting.batch != 1:
        raise UserError(f"counters are of one image, got a batch of {setting.batch}")
    models = both_networks(setting)
    taken = {}
    for name, model in models.items():
        report(f"counters {setting.full_name} {name}")
        taken[name] = _of_torch(inference(model, setting), rounds)
    report(f"counters {setting.full_name} OpenVINO")
    taken["ours, OpenVINO"] = _of_openvino(models["ours"].eval(), setting, rounds)
    kinds = [*KINDS, "others"]
    rows = [
        {**setting.columns, "operations": kind}
        | {f"{name} ms": f"{1e3 * times[kind]:.1f}" for name, times in taken.items()}
        for kind in kinds
    ]
    total = {f"{name} ms": f"{1e3 * sum(times.values()):.1f}" for name, times in taken.items()}
    return [*rows, {**setting.columns, "operations": "all", **total}]


def _of_torch(step: Callable[[], object], rounds: int) -> Counter:
    """Seconds of a pass by kind."""
    step()
    with profiler("cpu") as recorded:
        for _ in range(rounds):
            step()
    seconds: Counter = Counter()
    for event in recorded.key_averages():
        seconds[kind_of(event.key)] += event.self_cpu_time_total / 1e6 / rounds
    return seconds


def _of_openvino(model: torch.nn.Module, setting: Setting, rounds: int) -> Counter:
    """The same of the exported network; a counter is of the node's last pass."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "backbone.onnx"
        export_model(model, file, part="backbone", format="onnx", image_size=setting.size)
        options = {
            "INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(setting.precision, setting.precision),
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERF_COUNT": True,
        }
        request = openvino_core().compile_model(file, "CPU", options).create_infer_request()
    images, seconds = setting.images().numpy(), Counter()
    request.infer({0: images})
    for _ in range(rounds):
        request.infer({0: images})
        for node in request.profiling_info:
            seconds[kind_of(node.node_type)] += node.real_time.total_seconds() / rounds
    return seconds
