"""``ullme train`` ended by signals, kills and damage: the same command goes on, or says in one line why it cannot."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from safetensors.torch import load_file
from tests.tiny import tiny_folder

from ullme.apps.run_folder import LOCK_FILE
from ullme.cli import main
from ullme.trainer import EmbeddingTrainer
from ullme.trainer.resume import checkpoints

ROWS = 20


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run file, its data, and what the run leaves that nothing interrupts: seven steps of five an epoch."""
    folder = tmp_path_factory.mktemp("run")
    tiny_folder(folder / "llama")
    pairs = [{"query": f"what is {i}?", "positive": f"it is {i}", "negatives": [f"not {i}"]} for i in range(ROWS)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    run = {
        "model": {"name_or_path": str(folder / "llama"), "lora": {"r": 2, "dropout": 0.1}, "max_length": 32},
        "data": {"train": [{"path": str(folder / "pairs.jsonl")}]},
        "objectives": "mntp",
        "trainer": {"output_dir": str(folder / "whole"), "max_steps": 7, "per_device_train_batch_size": 4},
    }
    run["trainer"] |= {"save_steps": 3, "logging_steps": 4, "report_to": "none", "use_cpu": True}
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    assert main(["train", str(folder / "run.yaml")]) == 0
    return folder


@pytest.fixture
def out(place, tmp_path):
    """The folder of a run that was killed between its last step and the saving of its model."""
    shutil.copytree(place / "whole", tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "model")
    return tmp_path / "out"


def command(place: Path, out: Path, *overrides: str) -> list[str]:
    return ["train", str(place / "run.yaml"), f"trainer.output_dir={out}", *overrides]


def same(place: Path, out: Path) -> bool:
    """Whether a run ended in the same weights, and logged the same losses."""
    (right, losses), (found, logged) = (
        (load_file(folder / "model" / "adapter_model.safetensors"), history(folder))
        for folder in (place / "whole", out)
    )
    return losses == logged and right.keys() == found.keys() and all(right[k].equal(found[k]) for k in right)


def history(folder: Path) -> list[float]:
    state = json.loads((folder / "checkpoint-7" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def test_a_folder_in_which_another_command_trains_is_left_alone(place, out, capsys):
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with FileLock(out / LOCK_FILE):
        assert main(command(place, out)) == 2
    assert "another command trains in" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main(command(place, out)) == 0


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_same_command_ends_in_the_same_weights(
    place, tmp_path, monkeypatch, caplog, signum, code
):
    steps, step = [], EmbeddingTrainer.training_step

    def told_to_end_in_the_fourth(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == 4:
            signal.raise_signal(signum)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(EmbeddingTrainer, "training_step", told_to_end_in_the_fourth)
    with pytest.raises(SystemExit) as ended:
        main(command(place, tmp_path / "out"))
    assert ended.value.code == code
    assert f"{signal.Signals(signum).name}: stopped after step 4 of 7" in caplog.text
    assert not (tmp_path / "out" / "model").exists()
    assert main(command(place, tmp_path / "out")) == 0
    assert len(steps) == 7 and same(place, tmp_path / "out")


def test_a_run_killed_before_its_model_was_saved_takes_no_further_step(place, out, monkeypatch):
    monkeypatch.setattr(EmbeddingTrainer, "training_step", None)
    assert main(command(place, out)) == 0
    assert same(place, out)


def test_what_killed_processes_left_is_cleared_away(place, out):
    for left in (".unfinished-checkpoint-9", ".unfinished-deleted-checkpoint-3", ".model-k1ll3d", ".model-old-k1ll3d"):
        (out / left).mkdir()
        (out / left / "half").write_text("written")
    (out / ".unfinished-run.yaml").write_text("model:")
    assert main(command(place, out)) == 0
    assert [path.name for path in out.glob(".*")] == [LOCK_FILE] and same(place, out)


def test_a_process_killed_before_it_wrote_its_run_file_blocks_nothing(place, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".unfinished-run.yaml").write_text("mod")
    assert main(command(place, tmp_path / "out", "trainer.max_steps=1")) == 0


def test_a_damaged_checkpoint_is_named_and_the_run_goes_on_from_the_one_before(place, out, caplog):
    weights = out / "checkpoint-7" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert main(command(place, out)) == 0
    assert "adapter_model.safetensors has" in caplog.text and "goes on from 'checkpoint-6'" in caplog.text
    assert same(place, out)


def test_where_no_checkpoint_is_whole_the_command_says_so_in_one_line(place, out, capsys):
    for checkpoint in checkpoints(out):
        (checkpoint / "optimizer.pt").unlink()
    assert main(command(place, out)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: no checkpoint in") and "optimizer.pt is missing" in error


def test_rows_of_a_step_may_not_change(place, out, capsys):
    assert main(command(place, out, "trainer.per_device_train_batch_size=2", "trainer.max_steps=9")) == 2
    assert "set per_device_train_batch_size to 4" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_process_that_is_killed_three_times_ends_in_the_same_weights(tmp_path):
    script = Path(__file__).parents[2] / "benchmarks" / "kill_training.py"
    arguments = ["--output", str(tmp_path), "--kills", "3"]
    found = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr[-500:]
    figures = json.loads((tmp_path / "kills.json").read_text())
    assert len(figures["kills"]) == 3 and all(run["weights"] and run["losses"] for run in figures["runs"])
