"""Counts and measures the rows of a table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from omegaconf import DictConfig
from torch import nn

from mvitv2_det.costs import Cost, count_backbone
from mvitv2_det.detection.costs import IMAGE_SIZE, count_costs
from mvitv2_det.fused.block import FusedBlock
from projects.attention_benchmark.tables import Row, Table, model_of
from projects.attention_benchmark.workloads import Settings, Workload
from projects.common.memory import GIB, OutOfMemory, attempt, peak_memory
from projects.common.timing import Timing, interleave

CLASSIFICATION_SIZE = (224, 224)
Report = Callable[[str], None]


@dataclass
class Measured:
    """Costs of a row; those that were not measured are None.

    Attributes:
        cost: counted at the paper's protocol, whatever the size of the measurement.
        memory: peak bytes of training.
        saved: bytes of activations saved for the backward pass, the part of ``memory`` that
            attention decides; weights and the optimizer outweigh it on small images.
        train, test: seconds of an iteration over a batch.
        backend: name of the attention backend that was asked for.
        accuracies: in percent, of each seed that was trained here.
    """

    row: Row
    cost: Cost
    memory: int | OutOfMemory | None = None
    saved: int | OutOfMemory | None = None
    train: Timing | OutOfMemory | None = None
    test: Timing | OutOfMemory | None = None
    backend: str = ""
    accuracies: Sequence[float] = ()
    workload: Workload | None = field(default=None, repr=False)


def count(table: Table, row: Row) -> Cost:
    """Counts multiply-adds and parameters, of a detector at 800×1280 or a classifier at 224×224."""
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
    model_of: Callable[[Row, str], DictConfig] = model_of,
) -> list[Measured]:
    """Counts every row of a table and, with ``settings``, measures it.

    Args:
        rounds: number of turns of each row, for training and for inference.
        iterations: number of timed iterations in each turn; by default 1 on a CPU, 10 on a GPU.
        report: called with each line of progress.
        model_of: makes the LazyCall of a row's network to measure, from the row and the task.
    """
    report(table.title)
    results = []
    for row in table.rows:
        results.append(Measured(row, count(table, row)))
        cost = results[-1].cost
        report(f"  counted  {row.name}: {cost.giga:.2f} G, {cost.million_parameters:.2f} M")
    if settings is not None:
        for result in results:
            _measure_memory(result, model_of(result.row, table.task), table.task, settings, report)
        _measure_times(results, settings, rounds, iterations, report)
        for result in results:
            result.workload = None
    return results


def _measure_memory(
    result: Measured, network: DictConfig, task: str, settings: Settings, report: Report
) -> None:
    def run() -> int:
        result.workload = Workload(network, task, settings)
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
    """Times training of the rows that fit, then inference of all rows that could be built."""
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
    """Names the backends that a network's blocks were asked to use."""
    names = {block.backend for block in model.modules() if isinstance(block, FusedBlock)}
    return ", ".join(sorted(names)) or "its own"
