"""Counts and measures the rows of a table."""

from collections.abc import Callable
from dataclasses import dataclass, field

from omegaconf import DictConfig
from torch import nn

from mvitv2_det.attention.multiscale import MultiScaleAttention
from mvitv2_det.costs import IMAGE_SIZE, Cost, count_backbone, count_costs
from mvitv2_det.measure import GIB, OutOfMemory, Timing, attempt, interleave, peak_memory
from projects.attention_benchmark.tables import Row, Table, model_of
from projects.attention_benchmark.workloads import Settings, Workload

CLASSIFICATION_SIZE = (224, 224)
Report = Callable[[str], None]


@dataclass
class Measured:
    """What is known of a row; None is not measured.

    Attributes:
        cost: counted at the paper's protocol, whatever the size of the measurement.
        memory: most bytes while training.
        saved: bytes that a forward pass keeps for its backward pass, the part of ``memory`` that
            attention decides; on small images weights and the optimizer outweigh it.
        train, test: seconds of an iteration over a batch.
        backend: what computes the attention.
    """

    row: Row
    cost: Cost
    memory: int | OutOfMemory | None = None
    saved: int | OutOfMemory | None = None
    train: Timing | OutOfMemory | None = None
    test: Timing | OutOfMemory | None = None
    backend: str = ""
    workload: Workload | None = field(default=None, repr=False)


def count(table: Table, row: Row) -> Cost:
    """Multiply-adds and parameters: a detector at 800×1280, a classifier at 224×224."""
    model: DictConfig | nn.Module = model_of(row, table.task)
    if table.task == "classification":
        return count_backbone(model, CLASSIFICATION_SIZE)
    return count_costs(model, IMAGE_SIZE).total


def measure(
    table: Table,
    settings: Settings | None,
    rounds: int,
    iterations: int | None = None,
    report: Report = print,
) -> list[Measured]:
    """Counts every row of a table and, with ``settings``, measures it.

    Args:
        rounds: turns of each row, for training and for inference.
        iterations: timed in each turn; by default 1 on a CPU, 10 on a GPU.
        report: called with lines of progress.
    """
    report(table.title)
    results = []
    for row in table.rows:
        results.append(Measured(row, count(table, row)))
        cost = results[-1].cost
        report(f"  counted  {row.name}: {cost.giga:.2f} G, {cost.million_parameters:.2f} M")
    if settings is not None:
        for result in results:
            _measure_memory(result, table.task, settings, report)
        _measure_times(results, settings, rounds, iterations, report)
        for result in results:
            result.workload = None
    return results


def _measure_memory(result: Measured, task: str, settings: Settings, report: Report) -> None:
    def run() -> int:
        result.workload = Workload(model_of(result.row, task), task, settings)
        model = result.workload.model
        result.backend = backend_of(model)
        held = [*model.parameters(), *model.buffers()]
        return peak_memory(result.workload.training, settings.device, held=held)

    result.memory = attempt(run)
    if isinstance(result.memory, OutOfMemory):
        result.saved = result.memory
        report(f"  memory   {result.row.name}: out of memory")
        return
    result.saved = attempt(result.workload.saved_for_backward)
    report(f"  memory   {result.row.name}: {result.memory / GIB:.2f} GiB")


def _measure_times(
    results: list[Measured],
    settings: Settings,
    rounds: int,
    iterations: int | None,
    report: Report,
) -> None:
    """Training of those that fit, then inference of all that could be built."""
    on_gpu = settings.device == "cuda"
    built = {result.row.name: result for result in results if result.workload is not None}
    for kind in ("train", "test"):
        tasks = {}
        for name, result in built.items():
            workload = result.workload
            if kind == "train" and isinstance(result.memory, OutOfMemory):
                result.train = result.memory
            else:
                tasks[name] = workload.training if kind == "train" else workload.testing
        times = interleave(
            tasks,
            rounds=rounds,
            iterations=iterations or (10 if on_gpu else 1),
            warmup=3 if on_gpu else 1,
            device=settings.device,
            progress=lambda line, kind=kind: report(f"  {kind:8} {line}"),
        )
        for name, timing in times.items():
            setattr(built[name], kind, timing)


def backend_of(model: nn.Module) -> str:
    """What was asked to compute the attention of a network."""
    names = {
        module.attention_backend
        for module in model.modules()
        if isinstance(module, MultiScaleAttention)
    }
    return ", ".join(sorted(names)) or "Detectron2's own"
