"""What the benchmarks share around their measurements: options, and the files of results."""

import csv
import platform
import shlex
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import detectron2
import torch
import torchvision
from tabulate import tabulate

import mvitv2_det
from mvitv2_det.errors import UserError, one_line
from projects.common.memory import GIB

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Rows = Sequence[Mapping[str, object]]


def main(
    script: str,
    parse: Callable[[Sequence[str]], Namespace],
    run: Callable[[Namespace, str], None],
    arguments: Sequence[str] | None,
) -> int:
    """Runs a benchmark from its command line, and reports a wrong option in one line.

    Args:
        script: path of the script in the checkout, for the command that results show.
        parse: reads the options.
        run: takes the options and the command.
        arguments: of the command line; by default those of this process.

    Returns:
        the exit status: 2 where the user has something to put right.
    """
    given = sys.argv[1:] if arguments is None else arguments
    args = parse(given)
    try:
        run(args, command_line(script, given))
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def default_device() -> str:
    """The GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


class Progress:
    """Prints lines with the seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def __call__(self, line: str) -> None:
        print(f"[{self.seconds:6.0f} s] {line}", flush=True)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start


def write_csv(file: Path, head: Mapping[str, str], rows: Rows) -> None:
    """Writes rows, under lines of comment that hold the head."""
    with file.open("w", encoding="utf-8", newline="") as out:
        out.writelines(f"# {key}: {value}\n" for key, value in head.items())
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def markdown(
    title: str,
    head: Mapping[str, str],
    table: Rows | Mapping[str, Sequence[str]],
    notes: Iterable[str] = (),
) -> str:
    """A title, the head as a list, a table of rows or of columns, and paragraphs of notes."""
    lines = [f"# {title}", "", *(f"- {key}: {value}" for key, value in head.items()), ""]
    lines += [tabulate(table, headers="keys", tablefmt="github", disable_numparse=True)]
    for note in notes:
        lines += ["", note]
    return "\n".join(lines) + "\n"


def check_measurable(device: str, precision: str, **counts: int | None) -> None:
    """Refuses options that this machine cannot measure.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        precision: ``"fp32"``, ``"fp16"`` or ``"bf16"``.
        counts: values by name of options that must be at least 1 where they are given.

    Raises:
        UserError: an option does not suit this machine or another option.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no GPU that torch can use; give cpu")
    if device == "cpu" and precision == "fp16":
        raise UserError("--precision fp16 needs a GPU: a CPU measures fp32 or bf16")
    for name, value in counts.items():
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}")


def describe_machine(device: torch.device | str) -> dict[str, str]:
    """Describes hardware and versions for the head of a result, without the machine's name."""
    device = torch.device(device)
    threads = torch.get_num_threads()
    hardware = {"CPU": f"{_cpu_model()}, {threads} thread{'s' if threads > 1 else ''}"}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        gpu = f"{properties.name}, {properties.total_memory / GIB:.0f} GiB"
        hardware["GPU"] = f"{gpu}, driver {_gpu_driver()}, CUDA {torch.version.cuda}"
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "detectron2": detectron2.__version__,
        "mvitv2_det": mvitv2_det.__version__,
    }
    return {
        **hardware,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def command_line(script: str, arguments: Iterable[str]) -> str:
    """Formats the command that results show; absolute paths are shortened to their last part."""
    shown = [Path(word).name if Path(word).is_absolute() else word for word in arguments]
    return f"python {script} {shlex.join(shown)}".strip()


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()


def _gpu_driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.split()[0] if answer.stdout.split() else "unknown"
