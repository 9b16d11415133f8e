"""Faults of processes, disks and folders: a run is ended by one, resumed, and compared.

A run counts as lost if it cannot be resumed, and as unequal if its weights, its optimizer or its
logged losses differ from those of the run that was left alone.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fault_runs import (
    FINISHED,
    PATIENCE,
    REFUSED,
    arguments,
    equal,
    make_data,
    outcome,
    start,
    state,
    wait,
)

STOP_SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP]
PEER_LOST = 76
STOPPED, KILLED = (75, 130), (-signal.SIGKILL,)


class Runs:
    """Trials in a folder, and what came of them.

    Args:
        folder: for all files.
        rng: of all that is drawn.
    """

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.rng = folder, rng
        self.data, self.whole = folder / "data", folder / "whole"
        make_data(self.data)
        begun = time.monotonic()
        said = folder / "whole.txt"
        if wait(start(arguments(self.data, self.whole), said)):
            raise SystemExit(said.read_text())
        self.seconds = time.monotonic() - begun
        self.expected = state(self.whole)

    def _until_finished(
        self,
        name: str,
        fault: Callable[[int], None],
        *,
        times: int = 1,
        workers: int = 0,
        statuses: tuple[int, ...],
        before_resuming: Callable[[Path], None] = lambda _: None,
        **options: Any,
    ) -> str:
        """Starts a run, which a fault ends, and resumes it.

        Args:
            name: of its folder.
            fault: is called with the process.
            times: how often in a row the fault comes.
            statuses: with which the run may end by it.
            before_resuming: is called with the folder.
            workers: of the loader.
            options: further ones of :func:`start`, for the runs with the fault.
        """
        output, said = self.folder / name, self.folder / f"{name}.txt"
        command = [*arguments(self.data, output), f"dataloader.train.num_workers={workers}"]
        output.mkdir(exist_ok=True)
        status, left = -1, 0
        for _ in range(times):
            resume = ["--resume"] if left else []
            process = start([*command, *resume], said, **options)
            fault(process)
            status = wait(process)
            if status == FINISHED:
                break
            if status not in statuses:
                if status > 0 or not (output / "model_final.pth").is_file():
                    return f"status {status}"
                # A signal after the last checkpoint does what it does to any program.
                break
            left += 1
        before_resuming(output)
        for _ in range(2):
            if status == FINISHED:
                break
            status = wait(start([*command, "--resume"], said))
        came = outcome(said, status)
        if came != "trained":
            return "trace" if came == "trace" else f"lost: {came}"
        result = "equal" if equal(state(output), self.expected) else "unequal"
        shutil.rmtree(output, ignore_errors=True)
        return result if left else f"{result}, finished before"

    def kills(self, count: int) -> Counter[str]:
        """SIGKILL at random moments, once or twice in a row, then `--resume`"""

        def fault(process: int) -> None:
            time.sleep(self.rng.uniform(0, self.seconds))
            os.kill(process, signal.SIGKILL)

        return Counter(
            self._until_finished(
                f"kill{n}", fault, times=n % 4 // 3 + 1, workers=n % 3, statuses=KILLED
            )
            for n in range(count)
        )

    def kills_in_writes(self, count: int) -> Counter[str]:
        """SIGKILL while a checkpoint or a pointer is written, and around its renaming"""
        seeds = iter(range(count))

        def trial(number: int) -> str:
            seed = next(seeds)
            return self._until_finished(
                f"write{number}",
                lambda _: None,
                statuses=KILLED,
                prepare=lambda: die_in_a_write(seed),
            )

        return Counter(map(trial, range(count)))

    def signals(self, count: int) -> Counter[str]:
        """SIGTERM, SIGINT, SIGUSR1 or SIGHUP at random moments, then `--resume`"""

        def trial(number: int) -> str:
            sent = STOP_SIGNALS[number % len(STOP_SIGNALS)]
            return self._signalled(f"signal{number}", lambda process: os.kill(process, sent))

        return Counter(map(trial, range(count)))

    def group_signals(self, count: int) -> Counter[str]:
        """the same to all processes of the run, with two workers of the loader"""

        def trial(number: int) -> str:
            sent = STOP_SIGNALS[number % len(STOP_SIGNALS)]
            return self._signalled(
                f"group{number}", lambda process: os.killpg(process, sent), workers=2
            )

        return Counter(map(trial, range(count)))

    def _signalled(self, name: str, send: Callable[[int], None], workers: int = 0) -> str:
        """Sends a signal once the first step is logged: before, there is nothing to save."""
        moment = self.rng.uniform(0, 0.5)

        def fault(process: int) -> None:
            metrics = self.folder / name / "metrics.json"
            end = time.monotonic() + PATIENCE
            while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < end:
                time.sleep(0.005)
            time.sleep(moment * self.seconds)
            send(process)

        return self._until_finished(name, fault, workers=workers, statuses=STOPPED)

    def full_disks(self, count: int) -> Counter[str]:
        """a limit on the size of files, at which a checkpoint fails as on a full disk"""
        size = (self.whole / "model_final.pth").stat().st_size

        def trial(number: int) -> str:
            limit = self.rng.randrange(size // 10, size)

            def prepare() -> None:
                import resource

                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

            return self._until_finished(
                f"full{number}", lambda _: None, statuses=(REFUSED,), prepare=prepare
            )

        return Counter(map(trial, range(count)))

    def full_tmpfs(self, count: int) -> Counter[str]:
        """an output folder on a full tmpfs, which is made larger before `--resume`"""
        size = (self.whole / "model_final.pth").stat().st_size

        def trial(number: int) -> str:
            output = self.folder / f"tmpfs{number}"
            output.mkdir()
            room = self.rng.randrange(size // 20, 6 * size) // 1024
            mount = ["mount", "-t", "tmpfs", "-o", f"size={room}k", "none", str(output)]
            if subprocess.run(mount, capture_output=True).returncode:
                output.rmdir()
                return "not allowed here"
            try:
                return self._until_finished(
                    output.name,
                    lambda _: None,
                    statuses=(REFUSED,),
                    before_resuming=lambda _: subprocess.run(
                        ["mount", "-o", "remount,size=64m", str(output)], check=True
                    ),
                )
            finally:
                subprocess.run(["umount", "--lazy", str(output)], check=True)

        return Counter(map(trial, range(count)))

    def folders(self, count: int) -> Counter[str]:
        """output folders of which files are cut, changed, emptied, removed or exchanged, some for
        hostile ones, then `--resume`"""
        results: Counter[str] = Counter()
        for number in range(count):
            output, said = self.folder / f"folder{number}", self.folder / f"folder{number}.txt"
            shutil.copytree(self.whole, output)
            trace = self.folder / "ran"
            for _ in range(self.rng.randint(1, 4)):
                _damage(self.rng, output, trace)
            came = outcome(said, wait(start([*arguments(self.data, output), "--resume"], said)))
            if came == "trained":
                # Steps that are no longer there are made again, their losses logged again.
                came = "equal" if equal(state(output)[:2], self.expected[:2]) else "unequal"
            results[came] += 1
            if trace.exists():
                results["ran code"] += 1
                trace.unlink()
            shutil.rmtree(output)
        return results

    # Two processes, started as torchrun does it.

    def dead_peers(self, count: int) -> Counter[str]:
        """one of two processes is killed, then both are resumed"""
        return self._peers(count, "dead", signal.SIGKILL)

    def frozen_peers(self, count: int) -> Counter[str]:
        """one of two processes is stopped by SIGSTOP, then both are resumed"""
        return self._peers(count, "frozen", signal.SIGSTOP)

    def _peers(self, count: int, kind: str, sent: signal.Signals) -> Counter[str]:
        whole, expected = self.folder / f"{kind}_whole", None
        results: Counter[str] = Counter()
        for number in range(count + 1):
            output = whole if number == 0 else self.folder / f"{kind}{number}"
            said = [self.folder / f"{output.name}.{rank}.txt" for rank in range(2)]
            if number == 0:
                processes = self._start_two(output, said)
                if any([wait(process) for process in processes]):
                    raise SystemExit("".join(file.read_text() for file in said))
                expected = state(output)
                continue
            results[self._one_gone(output, said, number % 2, sent, expected)] += 1
        return results

    def _one_gone(
        self, output: Path, said: list[Path], gone: int, sent: signal.Signals, expected: Any
    ) -> str:
        moment = self.rng.uniform(0, 0.6)
        processes = self._start_two(output, said)
        # Both have met by then; before, torchrun or srun is who notices.
        end = time.monotonic() + PATIENCE
        while not (output / "config.yaml").is_file() and time.monotonic() < end:
            time.sleep(0.005)
        time.sleep(moment * self.seconds)
        os.kill(processes[gone], sent)
        begun = time.monotonic()
        status = wait(processes[1 - gone])
        took = time.monotonic() - begun
        os.kill(processes[gone], signal.SIGKILL)
        wait(processes[gone])
        text = "".join(file.read_text() for file in said)
        if status != FINISHED:
            if "Traceback" in text:
                return "trace"
            if status != PEER_LOST or f"process {gone} of 2" not in text:
                return f"status {status}, the process is not named"
            if took > 30:
                return f"status {PEER_LOST} only after {took:.0f} s"
        if any([wait(process) for process in self._start_two(output, said, "--resume")]):
            return "lost"
        result = "equal" if equal(state(output), expected) else "unequal"
        shutil.rmtree(output)
        return f"named within 30 s, {result}" if status else f"{result}, finished before"

    def _start_two(self, output: Path, said: list[Path], *more: str) -> list[int]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return [
            start(
                [*arguments(self.data, output), *more],
                said[rank],
                environment={
                    "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank),
                    "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                },
            )
            for rank in range(2)
        ]  # fmt: skip


def die_in_a_write(seed: int) -> None:
    """Lets this process die at one of the steps by which a file gets its name.

    Args:
        seed: decides at which, and at which time that it is taken.
    """
    import io

    import torch

    from mvitv2_det import whole_files

    rng = random.Random(seed)
    times, site, calls = rng.randrange(1, 5), rng.randrange(4), [0]
    save, replace, sync = torch.save, Path.replace, whole_files._sync

    def is_time(place: int) -> bool:
        calls[0] += place == site
        return place == site and calls[0] == times

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def dying_save(content: Any, file: Any) -> None:
        if is_time(0):
            buffer = io.BytesIO()
            save(content, buffer)
            whole = buffer.getvalue()
            file.write(whole[: rng.randrange(len(whole))])
            file.flush()
            die()
        save(content, file)

    def dying_replace(path: Path, target: Path) -> Path:
        if is_time(1):
            die()
        done = replace(path, target)
        if is_time(2):
            die()
        return done

    def dying_sync(path: Path) -> None:
        if is_time(3):
            die()
        sync(path)

    torch.save, Path.replace, whole_files._sync = dying_save, dying_replace, dying_sync


def _damage(rng: random.Random, output: Path, trace: Path) -> None:
    """Damages one file of a run; what would run leaves ``trace`` behind."""
    names = [
        "last_checkpoint", "metrics.json", "run.json", "config.yaml",
        *sorted(f.name for f in output.glob("model_*.pth")) * 2,
    ]  # fmt: skip
    file = output / rng.choice(names)
    if file.is_dir():  # made by an earlier one
        return
    content = bytearray(file.read_bytes()) if file.is_file() else bytearray()
    hostile = f"cposix\nsystem\n(S'touch {trace}'\ntR.".encode()
    kind = rng.randrange(10)
    if kind == 0:
        content = content[: rng.randrange(len(content) + 1)]
    elif kind == 1 and content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        content = bytearray()
    elif kind == 3:
        content = bytearray(rng.randbytes(rng.randrange(1, 300)))
    elif kind == 4:
        content = bytearray(hostile)
    elif kind == 5:
        (output / "evil.pkl").write_bytes(hostile)
        file, content = output / "last_checkpoint", bytearray(b"evil.pkl")
    elif kind == 6:
        content = bytearray(json.dumps({"model": [[]], "trainer": None}).encode())
    elif kind == 7:
        other = output / rng.choice(names)
        content = bytearray(other.read_bytes()) if other.is_file() else bytearray()
    else:
        file.unlink(missing_ok=True)
        if kind == 8:
            file.mkdir() if rng.random() < 0.5 else file.symlink_to(file)
        return
    if file.is_dir():
        return
    if file.is_symlink():
        file.unlink()
    file.write_bytes(content)
