"""``docs/extending.md``: an objective, a pooling and a format of one's own, from its run file to a resumed model."""

import json
import sys

import numpy as np
import pytest
import yaml
from tests.extending import ROWS, forget_modules, write_all
from tests.tiny import tiny_folder

from ullme.cli import main
from ullme.models import ULLME

FAST = ("trainer.max_steps=3", "trainer.report_to=none", "trainer.use_cpu=true", "trainer.logging_steps=1")


@pytest.fixture
def here(tmp_path, monkeypatch):
    write_all(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # the command adds the directory it runs in
    yield tmp_path
    forget_modules(tmp_path)


def train(here, tiny_models, *overrides):
    model = tiny_models / "llama"
    if not model.exists():
        tiny_folder(model)
    arguments = [f"model.name_or_path={model}", "trainer.per_device_train_batch_size=4", *FAST, *overrides]
    return main(["train", "run.yaml", *arguments])


def test_the_run_file_of_the_page_trains_resumes_and_its_model_loads(here, tiny_models):
    assert train(here, tiny_models, "trainer.save_steps=2") == 0
    out = here / "runs" / "extended"
    kept = yaml.safe_load((out / "run.yaml").read_text())
    assert kept["objectives"][1] == {"type": "my_objective:MarginRanking", "weight": 0.5, "margin": 0.1}
    assert kept["data"]["train"][0]["format"] == "my_format:tsv_rows"

    assert train(here, tiny_models, "trainer.save_steps=2", "trainer.max_steps=6") == 0
    history = json.loads((out / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
    losses = {entry["step"]: entry["MarginRanking_loss"] for entry in history if "MarginRanking_loss" in entry}
    assert sorted(losses) == [1, 2, 3, 4, 5, 6]  # step 3 ran a second time, from the checkpoint of step 2
    assert all(np.isfinite(loss) and loss > 0 for loss in losses.values())

    model = ULLME.from_pretrained(out / "model")
    assert model.pooling == "my_pooling:AttentionPooling"
    assert model.pooler.outside.score.weight.abs().sum() > 0  # it started at zero
    assert model.encode(["a text", "and a longer one"]).shape == (2, 32)


def test_a_dry_run_reads_code_data_and_options_of_ones_own(here, tiny_models, capsys):
    before = sorted(here.rglob("*.*"))
    assert train(here, tiny_models, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "rows of pairs.tsv" in out and str(ROWS) in out
    assert sorted(path for path in here.rglob("*.*") if "__pycache__" not in path.parts) == before


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("objectives.1.type=my_objectve:MarginRanking", ("objectives.1: type: ", "'my_objective'")),
        ("objectives.1.type=my_objective:MarginRankng", ("objectives.1: type: ", "'MarginRanking'")),
        ("objectives.1.marginn=1", ("objectives.1.marginn: unknown key", "'margin'")),
        ("objectives.1.margin=-1", ("objectives.1.margin: -1 should be greater than or equal to 0",)),
        ("model.pooling=my_pooling:maximumm", ("model.pooling: ", "'maximum'")),
        ("data.train.0.format=my_format:tsv_row", ("data.train.0.format: ", "'tsv_rows'")),
    ],
)
def test_a_mistake_about_ones_own_code_is_one_line_with_its_place(here, tiny_models, capsys, override, said):
    assert train(here, tiny_models, override) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: run.yaml: ") and error.count("\n") == 1
    assert all(words in error for words in said)
    assert not (here / "runs").exists()


def test_a_broken_row_is_named_with_its_line(here, tiny_models, capsys):
    (here / "pairs.tsv").write_text("what?\tthat\nalone\n")
    assert train(here, tiny_models) == 2
    error = capsys.readouterr().err
    assert "pairs.tsv, after row 1: line 2 has one cell; write query and positive" in error
