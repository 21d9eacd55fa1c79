"""What a wheel must hold is found as an installed package finds it, and shells complete the command."""

import os
import subprocess
import sys
from importlib.resources import files

import pytest
import yaml

from ullme.cli import _command_names
from ullme.reproduce.options import Options
from ullme.reproduce.rows import ROWS, shipped_configs


@pytest.mark.parametrize("name", ["py.typed", "apps/report.html"])
def test_package_data_is_found_through_importlib(name):
    assert files("ullme").joinpath(name).is_file()


def test_the_run_files_of_every_row_are_shipped():
    stages = {stage for row in ROWS.values() for stage in row.stages}
    assert stages and all((shipped_configs() / stage).is_file() for stage in stages)


def test_the_study_uses_them_wherever_it_is_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert yaml.safe_load((Options().configs / "grl.yaml").read_text())["objectives"]


def completed(shell, **words):
    """What the program answers to a shell that completes a command line."""
    environment = {**os.environ, "_ULLME_COMPLETE": shell, **words}
    command = [sys.executable, "-m", "ullme"]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


@pytest.mark.parametrize(
    ("shell", "words"),
    [
        ("complete_bash", {"COMP_WORDS": "ullme ", "COMP_CWORD": "1"}),
        ("complete_zsh", {"_TYPER_COMPLETE_ARGS": "ullme "}),
        ("complete_fish", {"_TYPER_COMPLETE_ARGS": "ullme ", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}),
    ],
)
def test_a_shell_completes_every_command(shell, words):
    offered = completed(shell, **words)
    assert not [name for name in _command_names() if name not in offered]


def test_a_shell_completes_options():
    assert "--output" in completed("complete_bash", COMP_WORDS="ullme report --", COMP_CWORD="2")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_of_a_shell_names_the_command(shell):
    script = completed(f"source_{shell}")
    assert "_ULLME_COMPLETE=complete_" + shell in script and "ullme" in script


def test_completion_can_be_installed_from_the_command():
    shown = subprocess.run([sys.executable, "-m", "ullme", "--help"], capture_output=True, text=True, check=True).stdout
    assert "--install-completion" in shown and "--show-completion" in shown
