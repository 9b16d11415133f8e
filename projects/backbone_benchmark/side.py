"""Networks of a checkout in a process of their own, which works only when it is asked to.

Several such processes, each with another version of the package, take turns in one measurement. The
code of the benchmark is this checkout's in all of them. Requests and answers are pickled objects on
the standard input and output of the process.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]


class Process:
    """Side of :func:`speed.measure` that runs in another process.

    Memory that a process has mapped once makes its later passes faster, so a process for each
    setting is needed even where only one checkout is measured.

    Args:
        checkout: folder that has the package ``mvitv2_det``.
        setting, options: arguments of :class:`speed.Networks`.
    """

    def __init__(self, checkout: Path, *arguments: object) -> None:
        self.checkout = checkout
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(checkout)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._send(arguments)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_) -> None:
        self._process.communicate()

    def call(self, method: str, *arguments: str) -> object:
        """Calls a method of the networks in the process, and waits for its result.

        Raises:
            UserError: the process has ended, for example because its package cannot be imported;
                it has printed why.
            MemoryError: memory ran out in the process, which goes on.
        """
        from mvitv2_det.errors import UserError
        from projects.common.memory import OutOfMemory

        try:
            self._send((method, *arguments))
            answer = pickle.load(self._process.stdout)
        except (EOFError, BrokenPipeError):
            status = self._process.wait()
            raise UserError(
                f"the process that measures {self.checkout.name} has ended with status {status}; "
                "its message stands above"
            ) from None
        if isinstance(answer, OutOfMemory):
            raise MemoryError(answer.message)
        return answer

    def _send(self, request: tuple) -> None:
        pickle.dump(request, self._process.stdin)
        self._process.stdin.flush()


def serve(checkout: str) -> None:
    """Answers requests for the networks of a checkout until the standard input is closed."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # Whatever libraries print must not mix with the answers.
    sys.path[0] = checkout
    import mvitv2_det

    if Path(mvitv2_det.__file__).resolve().parents[1] != Path(checkout):
        sys.exit(f"error: mvitv2_det of {Path(checkout).name} is hidden by another one")
    # Only now, because the other checkout has a folder "projects" of its own.
    sys.path[0] = str(HERE)
    from projects.backbone_benchmark.speed import Networks
    from projects.common.memory import attempt, limited_memory

    requests = _requests()
    setting, options = next(requests)
    with limited_memory(setting.device):
        networks = Networks(setting, options)
        for request in requests:
            pickle.dump(attempt(lambda call=request: networks.call(*call)), answers)
            answers.flush()


def _requests() -> Iterator[tuple]:
    while True:
        try:
            yield pickle.load(sys.stdin.buffer)
        except EOFError:
            return


if __name__ == "__main__":
    serve(sys.argv[1])
