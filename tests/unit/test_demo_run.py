"""The demo's second tab: what a run's folder holds, as a part of the page."""

import json

import pytest

from ullme.apps.demo_run import read_run, run_html

HISTORY = [
    {"step": 1, "loss": 3.0, "grad_norm": 1.0, "epoch": 0.1},
    {"step": 2, "loss": 1.5, "grad_norm": 0.5, "epoch": 0.2},
    {"step": 2, "eval_loss": 1.7, "eval_runtime": 3.0, "epoch": 0.2},
]


RUN_FILE = """
model: {name_or_path: "<tiny>", lora: {name: mine}}
data: {train: [{path: pairs.jsonl}]}
objectives: contrastive
trainer: {output_dir: run}
"""


def write_run(folder, steps=(), history=HISTORY):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.yaml").write_text(RUN_FILE)
    for step in steps:
        state = {"log_history": history if step == max(steps) else [], "global_step": step, "max_steps": 10}
        (folder / f"checkpoint-{step}").mkdir()
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    return folder


def test_a_run_shows_its_curves_its_figures_and_its_scores(tmp_path):
    write_run(tmp_path, steps=(9, 10))
    (tmp_path / "scores.md").write_text("| task | eng |\n|---|---:|\n| SciFact | **33.1** |\n")
    page = run_html(read_run(tmp_path))
    assert "<svg" in page and "<td>SciFact</td><td>33.1</td>" in page
    assert "<td>loss</td><td>3</td><td>1.5</td>" in page and "runtime" not in page and "&lt;tiny&gt;" in page


def test_a_run_that_has_only_begun_says_what_is_missing(tmp_path):
    page = run_html(read_run(write_run(tmp_path)))
    assert "<svg" not in page and "No loss was logged yet" in page and "The run has not ended" in page


def test_a_quickstarts_folder_is_a_run_too(tmp_path):
    write_run(tmp_path / "run")
    (tmp_path / "loss.png").write_bytes(b"picture")
    (tmp_path / "scores.json").write_text(json.dumps({"fine_tuned": {"ndcg@10": 0.541}, "gain": 2.4}))
    page = run_html(read_run(tmp_path))
    assert "data:image/png;base64," in page and "<td>fine tuned</td><td>54.1</td>" in page


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"run: '.*none' is no folder; name the output folder of ullme train"):
        read_run(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no run"):
        read_run(tmp_path)
    write_run(tmp_path, steps=(3,))
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text("{")
    with pytest.raises(ValueError, match=r"trainer_state.json: is missing or damaged .*; remove this checkpoint"):
        read_run(tmp_path)
