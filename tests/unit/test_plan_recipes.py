"""The recipes of the paper: what they ask for, and a plan of each from published dimensions, without weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from tests.tiny import tiny_tokenizer
from ullme.apps.plan import plan
from ullme.config import read_run_file

PAPER = Path(__file__).parents[2] / "configs" / "paper"
GIB = 2**30

#: By recipe: name on the hub, published dimensions, weights of the LLM, and of LoRA of rank 16 on every linear layer.
MODELS = {
    "phi-1.5": (
        "microsoft/phi-1_5",
        {"model_type": "phi", "vocab_size": 51200, "hidden_size": 2048, "intermediate_size": 8192}
        | {"num_hidden_layers": 24, "num_attention_heads": 32, "partial_rotary_factor": 0.5},
        1_418_270_720,
        24 * 16 * (4 * (2048 + 2048) + 2 * (2048 + 8192)),
    ),
    "mistral-7b-instruct": (
        "mistralai/Mistral-7B-Instruct-v0.2",
        {"model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336}
        | {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "sliding_window": None},
        7_241_732_096,
        32 * 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)),
    ),
    "llama-3-8b-instruct": (
        "meta-llama/Meta-Llama-3-8B-Instruct",
        {"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336}
        | {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8},
        8_030_261_248,
        32 * 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)),
    ),
}


@pytest.mark.parametrize("recipe", MODELS)
def test_a_recipe_states_the_papers_hyper_parameters(recipe):
    run = read_run_file(PAPER / f"{recipe}.yaml")
    lora, trainer = run.model.lora, run.trainer
    assert run.model.name_or_path == MODELS[recipe][0]
    assert lora is not None and (lora.r, lora.alpha, lora.dropout) == (16, 32, 0.2)
    assert (trainer.optim, trainer.learning_rate, trainer.num_train_epochs) == ("adamw_torch", 2e-4, 1)
    assert (trainer.per_device_train_batch_size, run.data.negatives_per_query) == (512, 8)
    assert {o.type: o.weight for o in run.objectives} == {"contrastive": 1.0, "dpo": 0.5, "kl": 1.0}
    assert next(o.beta for o in run.objectives if o.type == "dpo") == 0.1
    assert run.reference == "live"


LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in ("mistral-7b-instruct", "llama-3-8b-instruct")]


@pytest.mark.parametrize("recipe", ["phi-1.5", *LARGE])
def test_a_recipe_is_planned_without_weights(tmp_path, monkeypatch, recipe):
    _, dimensions, weights, adapter = MODELS[recipe]
    folder = tmp_path / "model"
    AutoConfig.for_model(**dimensions).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (tmp_path / "data").mkdir()
    words = "a passage that says something about it"
    rows = [
        {"query": f"what is {i}?", "positive": f"{words} {i}", "negatives": [f"{words} {i} {j}" for j in range(8)]}
        for i in range(24)
    ]
    (tmp_path / "data" / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    planned = plan(
        read_run_file(PAPER / f"{recipe}.yaml", [f"model.name_or_path={folder}", "trainer.chunk_tokens=2048"])
    )
    assert planned.parameters == (weights + adapter, adapter)
    assert planned.memory["weights"] == 2 * weights + 4 * adapter
    assert planned.memory["gradients"] == 4 * adapter and planned.memory["optimizer (Adam)"] == 8 * adapter
    assert planned.memory_source.startswith("counted")
    assert 0.05 * GIB < planned.memory["activations"] < 20 * GIB
