"""Unsupervised SimCSE: a text against itself under another dropout mask."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import yaml

from tests.batches import random_batch
from tests.parity.float64 import in_float64
from tests.parity.oracle import forward_of, relative_error, step_gradient, whole_gradient
from tests.tiny import tiny_folder, tiny_ullme
from ullme.apps.run_data import load_training_pairs
from ullme.config import read_run_file
from ullme.objectives import PRESETS

DROPOUTS = {"lora": {"lora_dropout": 0.3}, "attention": {"attention_dropout": 0.3}}


@pytest.fixture(scope="module", params=DROPOUTS)
def model(request, tmp_path_factory):
    settings = {"lora_name": "test", "lora_r": 4, **DROPOUTS[request.param]}
    return in_float64(tiny_ullme(tmp_path_factory.mktemp("models"), **settings)).train()


@pytest.fixture
def batch():
    """Six texts, each its own positive."""
    one = random_batch(6, 1, seed=1)
    return replace(one, query=one.passage, query_key_B=one.passage_key_BP[:, 0])


def test_the_two_views_of_a_text_differ_in_training_alone(model, batch):
    inputs = model(batch=batch, needs={"embedding"})
    difference_B = (inputs.query_BD - inputs.passage_BPD[:, 0]).norm(dim=1) / inputs.query_BD.norm(dim=1)
    assert (difference_B > 1e-4).all()
    model.eval()
    inputs = model(batch=batch, needs={"embedding"})
    model.train()
    assert torch.allclose(inputs.query_BD, inputs.passage_BPD[:, 0], rtol=1e-9)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_gradient_is_that_of_the_masks_that_were_drawn(model, batch, checkpointing):
    forward, parts = forward_of(model, PRESETS["simcse"]), []

    def recording(chunk):
        parts.append((chunk, torch.get_rng_state()))
        return forward(chunk)

    if checkpointing:
        model.gradient_checkpointing_enable()
    try:
        torch.manual_seed(2)
        found, total, chunks = step_gradient(model, batch, "simcse", 30, forward=recording)
    finally:
        model.gradient_checkpointing_disable()
    right, loss = whole_gradient(model, batch, "simcse", parts)
    assert chunks > 2 and relative_error(found, right) < 1e-9
    assert total == pytest.approx(loss, rel=1e-12)


def test_other_masks_give_another_gradient_so_the_test_above_sees_them(model, batch):
    gradients = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        gradients.append(step_gradient(model, batch, "simcse", 30)[0])
    assert relative_error(*gradients) > 1e-3


@pytest.fixture
def run_file(tmp_path, tiny_models):
    for model_type in ("llama", "gpt2"):
        if not (tiny_models / model_type).exists():
            tiny_folder(tiny_models / model_type, model_type)
    rows = {"texts": [{"text": f"a text of number {i}"} for i in range(6)]}
    rows["pairs"] = [{"query": f"q {i}", "positive": f"p {i}"} for i in range(6)]
    for name, content in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    run = {
        "model": {"name_or_path": str(tiny_models / "llama"), "lora": {"r": 2}},
        "data": {"train": [{"path": str(tmp_path / "pairs.jsonl")}, {"path": str(tmp_path / "texts.jsonl")}]},
        "objectives": "simcse",
        "trainer": {"output_dir": str(tmp_path / "out"), "use_cpu": True},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


def test_own_positives_without_dropout_are_refused_before_the_model_is_loaded(run_file, monkeypatch):
    monkeypatch.setattr("ullme.apps.train.ULLME", None)
    said = "model.lora.dropout: is 0, and every row of texts.jsonl is its own positive.*contrastive cannot learn"
    for override in ([], ["model.lora=null"], ["model.attention_dropout=0"]):
        with pytest.raises(ValueError, match=said):
            load_training_pairs(read_run_file(run_file, override))


@pytest.mark.parametrize(
    "cure",
    [
        ["model.lora.dropout=0.1"],
        ["model.attention_dropout=0.1"],
        ["objectives=mntp"],
        ["data.train.1.instruction=Find it"],
        ["data.passage_prompt='text: '"],
    ],
)
def test_what_tells_the_views_apart_is_accepted(run_file, cure):
    assert len(load_training_pairs(read_run_file(run_file, cure))) == 12


def test_pairs_need_no_dropout_and_a_models_own_dropout_counts(run_file, tiny_models):
    config = read_run_file(run_file)
    pairs_alone = config.model_copy(update={"data": config.data.model_copy(update={"train": config.data.train[:1]})})
    assert len(load_training_pairs(pairs_alone)) == 6
    own = read_run_file(run_file, [f"model.name_or_path={tiny_models / 'gpt2'}"])
    assert len(load_training_pairs(own)) == 12
