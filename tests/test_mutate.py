"""tools/mutate.py finds a module's tests, names what is wrong and leaves the checkout alone."""

import configparser
import subprocess
from pathlib import Path

import pytest
from scripts import ROOT, load_script

mutate = load_script("tools/mutate.py")


def test_a_module_is_tested_by_the_files_named_after_it():
    tests = mutate.own_tests(Path("mvitv2_det/backbone/schedule.py"))
    assert "tests/backbone/test_schedule.py" in tests
    assert "tests/backbone/test_schedule_rates.py" in tests
    assert "tests/backbone/test_vit.py" not in tests
    assert mutate.own_tests(Path("mvitv2_det/weights/load.py")) == [
        "tests/weights/test_load_weights.py"
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tools/mutate.py"], "there is no module 'tools/mutate.py': expected a .py file in mvit"),
        (["mvitv2_det/none.py"], "there is no module 'mvitv2_det/none.py'"),
        (["mvitv2_det/sizes.py", "tests/none"], "there is no test file or folder 'tests/none'"),
        (["mvitv2_det/sizes.py"], "no test file is named after mvitv2_det/sizes.py"),
        (["mvitv2_det/costs.py", "--minutes", "0"], "--minutes must be above 0, got 0.0"),
    ],
)
def test_wrong_arguments_are_named(arguments, words, capsys):
    with pytest.raises(SystemExit):
        mutate.main(arguments)
    assert words in capsys.readouterr().err


def test_mutants_are_made_in_a_copy(tmp_path):
    if subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True).returncode:
        pytest.skip("no git checkout")
    module, tests = Path("mvitv2_det/costs.py"), ["tests/test_costs.py"]
    mutate.copy_checkout(tmp_path, module, tests)
    assert (tmp_path / module).read_bytes() == (ROOT / module).read_bytes()
    settings = configparser.ConfigParser()
    settings.read(tmp_path / "setup.cfg")
    mutmut = settings["mutmut"]
    assert mutmut["only_mutate"].split() == [str(module)]
    assert mutmut["pytest_add_cli_args_test_selection"].split() == tests
    assert {"configs", "tests", "pyproject.toml"} <= set(mutmut["also_copy"].split())
    assert "mvitv2_det" not in mutmut["also_copy"].split()
