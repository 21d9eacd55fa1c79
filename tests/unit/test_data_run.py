"""Run files that stream: what they refuse, and a run that stops and goes on as if it had not."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.tiny import tiny_folder
from tests.unit.streams import rows, write_jsonl, write_parquet
from ullme.apps.plan import plan
from ullme.apps.run_data import load_training_pairs
from ullme.apps.train import train
from ullme.config import read_run_file
from ullme.config.sections import DataConfig
from ullme.data import PairStream


@pytest.fixture
def run_file(tmp_path, tiny_models):
    if not (tiny_models / "llama").exists():
        tiny_folder(tiny_models / "llama")
    write_parquet(tmp_path / "a.parquet", rows(50), group=9)
    write_jsonl(tmp_path / "b.jsonl", rows(30, "b"))
    run = {
        "model": {"name_or_path": str(tiny_models / "llama"), "lora": {"r": 2, "dropout": 0.1}, "max_length": 32},
        "data": {
            "train": [
                {"path": str(tmp_path / "*.parquet"), "weight": 3, "instruction": "Find it"},
                {"path": str(tmp_path / "b.jsonl"), "weight": 1, "in_batch_negatives": False},
            ],
            "streaming": True,
            "shuffle_rows": 32,
        },
        "objectives": "grl",
        "trainer": {
            "output_dir": str(tmp_path / "out"),
            "num_train_epochs": 2,
            "per_device_train_batch_size": 8,
            "save_steps": 7,
            "save_total_limit": None,
            "logging_steps": 1,
            "report_to": "none",
            "use_cpu": True,
        },
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


def refusal(call, *arguments):
    with pytest.raises(ValueError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_run_file_streams_weighs_and_opts_out(run_file):
    config = read_run_file(run_file)
    stream = load_training_pairs(config)
    assert isinstance(stream, PairStream) and stream.weights == (3.0, 1.0) and len(stream) == 80
    planned = plan(config)
    assert planned.batches_per_epoch == 8 + 3 and planned.steps == 22 and planned.negatives is None
    assert planned.rows == {"*.parquet": 50, "b.jsonl": 30}
    assert "data.train.0.weightt" in refusal(read_run_file, run_file, ["data.train.0.weightt=2"])
    assert "data.streams" in refusal(read_run_file, run_file, ["data.streams=true"])


def test_a_stream_is_checked_by_its_first_rows(run_file, tmp_path):
    config = read_run_file(run_file)
    write_jsonl(tmp_path / "b.jsonl", [{"query": "q", "positive": "p"}])
    said = refusal(load_training_pairs, config)
    assert "b.jsonl: in_batch_negatives: is false, and its rows bring no negatives, so contrastive has nothing" in said
    write_jsonl(tmp_path / "b.jsonl", [*rows(2), {"query": "q", "positive": " "}])
    assert "b.jsonl, line 3: positive: empty text" in refusal(load_training_pairs, config)
    write_jsonl(tmp_path / "b.jsonl", rows(2))
    alone = read_run_file(run_file, ["objectives=[{type: distillation}]"])
    assert "scores: the row has none" in refusal(load_training_pairs, alone)


@pytest.mark.parametrize(
    ("override", "lacking"),
    [
        (["objectives=[{type: contrastive, in_batch_negatives: false}]", "data.negatives_per_query=0"], "data.neg"),
        (["objectives=[{type: contrastive, hard_negatives: false}]"], "hard_negatives is false"),
        (["objectives=[{type: contrastive}]", "data.negatives_per_query=0"], "data.negatives_per_query is 0"),
    ],
)
def test_a_contrast_without_any_negative_is_refused(run_file, override, lacking):
    said = refusal(load_training_pairs, read_run_file(run_file, override))
    assert "in_batch_negatives: is false, and " + lacking in said and "contrastive has nothing" in said


def test_rows_without_negatives_are_refused_where_a_contrast_takes_none_of_its_batch(run_file, tmp_path):
    write_jsonl(tmp_path / "b.jsonl", [{"query": f"q{i}", "positive": f"p{i}"} for i in range(9)])
    override = ["objectives=[{type: contrastive, in_batch_negatives: false}]", "data.train.1.in_batch_negatives=true"]
    said = refusal(load_training_pairs, read_run_file(run_file, override))
    assert "b.jsonl: in_batch_negatives: is false, and its rows bring no negatives" in said


def test_likelihoods_before_training_need_all_rows(run_file):
    said = refusal(read_run_file, run_file, ["trainer.reference=precomputed"])
    assert "data.streaming: is true, and the original LLM's likelihoods are to be computed before training" in said
    assert read_run_file(run_file, ["trainer.reference=precomputed", "data.streaming=false"])


def test_the_page_about_data_shows_sections_that_are_read():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    shown = DataConfig(**yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])["data"])
    assert shown == DataConfig(train=shown.train, streaming=True), "the page calls defaults what is none"
    assert [source.weight for source in shown.train] == [3, 1, 1]


def losses(run):
    return [entry["loss"] for entry in run.history if "loss" in entry]


def test_a_stopped_run_goes_on_as_if_it_had_not(run_file, tmp_path):
    """It stops after three batches of its second epoch; losses and weights are those of a run that never stopped."""
    whole = train(read_run_file(run_file, [f"trainer.output_dir={tmp_path / 'whole'}"]))
    left = tmp_path / "out"
    train(read_run_file(run_file))
    for gone in ("checkpoint-7", "checkpoint-21", "checkpoint-22", "model"):
        shutil.rmtree(left / gone)
    assert [path.name for path in left.glob("checkpoint-*")] == ["checkpoint-14"]
    resumed = train(read_run_file(run_file))
    assert losses(resumed) == losses(whole) and len(losses(whole)) == 22
    for name, value in load_file(whole.folder / "adapter_model.safetensors").items():
        assert torch.equal(value, load_file(resumed.folder / "adapter_model.safetensors")[name])
