"""The command line: what it answers, with which exit code, and what it imports."""

import subprocess
import sys

import pytest

from ullme import __version__, cli
from ullme.cli import main

COMMANDS = ["train", "eval", "encode", "data", "check", "quickstart", "search"]


HELP_WITHOUT_TORCH = """
import sys
from ullme.cli import main
code = main(sys.argv[1:])
heavy = {"torch", "transformers", "mteb", "numpy"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else code)
"""


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in COMMANDS)], ids=" ".join)
def test_help_answers_without_importing_torch(arguments):
    answer = subprocess.run(
        [sys.executable, "-c", HELP_WITHOUT_TORCH, *arguments], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert "Usage: ullme" in answer.stdout


def test_the_command_and_the_module_are_the_same_program():
    as_module = subprocess.run([sys.executable, "-m", "ullme", "--version"], capture_output=True, text=True, check=True)
    assert as_module.stdout.strip() == f"ullme {__version__}"


def test_help_names_every_command(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)


def failing(error):
    def command(*arguments, **options):
        raise error

    return command


@pytest.fixture
def app_that_raises(monkeypatch):
    def install(error):
        monkeypatch.setattr(cli, "app", failing(error))

    return install


def test_an_error_of_several_lines_is_told_in_one(app_that_raises, capsys):
    app_that_raises(ValueError("field: value\n   is wrong;\tcorrect it"))
    assert main(["train", "x"]) == 2
    assert capsys.readouterr().err == "error: field: value is wrong; correct it\n"


def test_an_error_of_the_system_is_told_with_its_file(app_that_raises, capsys):
    app_that_raises(PermissionError(13, "Permission denied", "/some/file"))
    assert main(["train", "x"]) == 2
    assert "'/some/file': Permission denied; check" in capsys.readouterr().err


def test_an_interrupted_training_says_how_to_go_on(app_that_raises, capsys):
    app_that_raises(KeyboardInterrupt())
    monkey = ["train", "run.yaml", "trainer.seed=1"]
    assert main(monkey) == 130
    assert "with the same command: ullme train run.yaml trainer.seed=1\n" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(app_that_raises):
    app_that_raises(KeyError("a bug"))
    with pytest.raises(KeyError):
        main(["train", "x"])


def test_the_traceback_of_a_mistake_can_be_asked_for(app_that_raises, monkeypatch):
    monkeypatch.setenv("ULLME_TRACEBACK", "1")
    app_that_raises(ValueError("x"))
    with pytest.raises(ValueError):
        main(["train", "x"])
