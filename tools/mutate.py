#!/usr/bin/env python
"""Measures how well tests hold a module: changes it in small ways and lists unnoticed changes.

    make mutate MODULE=mvitv2_det/backbone/schedule.py
    make mutate MODULE=mvitv2_det/weights/load.py TESTS="tests/weights" MINUTES=30

mutmut makes the mutants and runs the tests. It was chosen because it imports torch once and forks
one process for each mutant, where other tools start Python anew, and because it works in a copy:
the checkout is never changed, not even by an interrupted run. Code outside of functions and
functions with decorators are not mutated.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MUTMUT = [sys.executable, "-m", "mutmut"]
UNNOTICED = {"survived", "no tests"}


def main(argv: list[str] | None = None) -> None:
    """Runs mutmut on one module and prints what its tests do not notice."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("module", help="file in mvitv2_det/, from the checkout's root")
    parser.add_argument("tests", nargs="*", help="test files or folders; default: the module's own")
    parser.add_argument("--minutes", type=float, default=15, help="limit of the run (default: 15)")
    arguments = parser.parse_args(argv)
    module = Path(arguments.module)
    if module.suffix != ".py" or module.parts[0] != "mvitv2_det" or not (ROOT / module).is_file():
        parser.error(f"there is no module {arguments.module!r}: expected a .py file in mvitv2_det/")
    if arguments.minutes <= 0:
        parser.error(f"--minutes must be above 0, got {arguments.minutes}")
    tests = arguments.tests or own_tests(module)
    if not tests:
        parser.error(f"no test file is named after {module}: name the tests, as TESTS=… of make")
    for test in tests:
        if not (ROOT / test).exists():
            parser.error(f"there is no test file or folder {test!r}")
    if importlib.util.find_spec("mutmut") is None:
        parser.error("mutmut is not installed: pip install --editable '.[mutate]'")
    print(f"{module}, tested by {', '.join(tests)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy_checkout(Path(folder), module, tests)
        run_mutmut(Path(folder), 60 * arguments.minutes)
        report(Path(folder))


def own_tests(module: Path) -> list[str]:
    """Test files at the module's place in tests/ whose names begin with the module's."""
    folder = ROOT / "tests" / module.parent.relative_to("mvitv2_det")
    return [str(file.relative_to(ROOT)) for file in sorted(folder.glob(f"test_{module.stem}*.py"))]


def copy_checkout(folder: Path, module: Path, tests: list[str]) -> None:
    """Copies every file that git does not ignore, and writes mutmut's configuration."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    settings = {
        "source_paths": ["mvitv2_det"],
        "only_mutate": [str(module)],
        # Everything else that tests read, such as configs/ and README.md.
        "also_copy": sorted(path.name for path in folder.iterdir() if path.name != "mvitv2_det"),
        "pytest_add_cli_args": ["-p", "no:cacheprovider"],
        "pytest_add_cli_args_test_selection": tests,
        "use_git_change_detection": ["false"],
    }
    lines = [f"{key} =\n    " + "\n    ".join(values) for key, values in settings.items()]
    (folder / "setup.cfg").write_text("\n".join(["[mutmut]", *lines, ""]), encoding="utf-8")


def run_mutmut(folder: Path, seconds: float) -> None:
    """Tests the mutants, for a limited time; exits where the tests fail without any mutant."""
    log = folder / "mutmut.log"
    # Forked processes must have no threads of torch.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [*MUTMUT, "run"],
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        print(f"stopped after {seconds / 60:g} minutes: the rest of the mutants is not checked")
        return
    finally:
        # Workers that are still testing a mutant.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if code:
        sys.exit(f"{log.read_text(encoding='utf-8')[-4000:]}\nmutmut failed with exit code {code}")


def report(folder: Path) -> None:
    """Prints the difference of each mutant that no test noticed, then the counts."""
    results = [
        line.split(": ", 1) for line in mutmut(folder, "results").splitlines() if ": " in line
    ]
    for mutant, outcome in results:
        if outcome in UNNOTICED:
            # The first line names the mutant and its outcome.
            print(mutmut(folder, "show", mutant.strip()))
    mutmut(folder, "export-cicd-stats")
    statistics = folder / "mutants" / "mutmut-cicd-stats.json"
    counts = json.loads(statistics.read_text(encoding="utf-8"))
    total = counts.pop("total")
    not_checked = total - sum(counts.values())
    found = {**counts, "not checked": not_checked}
    words = [f"{number} {name.replace('_', ' ')}" for name, number in found.items() if number]
    print(f"{total} mutants: {', '.join(words)}")


def mutmut(folder: Path, *arguments: str) -> str:
    """Runs another command of mutmut and returns what it prints."""
    done = subprocess.run(
        [*MUTMUT, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout


if __name__ == "__main__":
    main()
