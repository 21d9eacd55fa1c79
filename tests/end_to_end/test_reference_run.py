"""``ullme train`` against a reference computed before training: run, interrupted, resumed, refused, planned."""

import json
from functools import partial

import pytest
import yaml
from safetensors.torch import load_file
from tests.tiny import tiny_folder

from ullme.apps import run_data
from ullme.apps.plan import plan
from ullme.cli import main
from ullme.config import read_run_file
from ullme.models import ULLME
from ullme.trainer import EmbeddingTrainer, compute_reference
from ullme.trainer import reference as reference_module

ROWS, HELD_OUT = 10, 3


@pytest.fixture
def run_file(tmp_path, tiny_models, monkeypatch):
    """Full fine-tuning with grl, of a tiny model, on the first of several negatives; the reference in small files."""
    model = tiny_models / "llama"
    if not model.exists():
        tiny_folder(model)
    rows = [
        {"query": f"what is {i}?", "positive": f"it is {i}, no more", "negatives": [f"it is {i + 30}", f"{i + 60}!"]}
        for i in range(ROWS + HELD_OUT)
    ]
    for name, part in [("pairs.jsonl", rows[:ROWS]), ("held.jsonl", rows[ROWS:])]:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in part))
    run = {
        "model": {"name_or_path": str(model), "max_length": 32},
        "data": {
            "train": [{"path": str(tmp_path / "pairs.jsonl")}],
            "eval": [{"path": str(tmp_path / "held.jsonl")}],
            "negatives_per_query": 1,
            "choice": "sampled",
        },
        "objectives": "grl",
        "trainer": {
            "output_dir": str(tmp_path / "out"),
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "chunk_tokens": 200,
            "learning_rate": 1e-3,
            "save_steps": 2,
            "report_to": "none",
            "use_cpu": True,
        },
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    monkeypatch.setattr(run_data, "compute_reference", partial(compute_reference, shard_texts=16))
    return path


def trained(folder, file="model.safetensors"):
    return load_file(folder / "model" / file)


def interrupting(monkeypatch, owner, name, at):
    """Let a function be interrupted in its ``at``-th call; its calls are counted in the list that is returned."""
    calls, original = [], getattr(owner, name)

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, interrupted)
    return calls


def test_full_fine_tuning_interrupted_twice_ends_with_the_same_weights(run_file, tmp_path, monkeypatch):
    assert main(["train", str(run_file), f"trainer.output_dir={tmp_path / 'whole'}"]) == 0
    scored = interrupting(monkeypatch, reference_module, "_score", at=2)
    stepped = interrupting(monkeypatch, EmbeddingTrainer, "training_step", at=4)
    assert main(["train", str(run_file)]) == 130  # while the reference is computed
    assert main(["train", str(run_file)]) == 130  # in the fourth step
    assert len(scored) == 1 + 3  # 39 texts in 3 files, of which the second was interrupted
    assert main(["train", str(run_file)]) == 0
    assert (len(scored), len(stepped)) == (4, 4 + 2)  # no text is scored again by a model that has been trained
    whole, resumed = trained(tmp_path / "whole"), trained(tmp_path / "out")
    assert whole.keys() == resumed.keys()
    assert all((whole[name] == resumed[name]).all() for name in whole)
    before = ULLME(str(read_run_file(run_file).model.name_or_path)).causal_lm.state_dict()
    assert any((whole[name] != before[name]).any() for name in whole)


def test_the_loss_starts_where_the_model_is_its_own_reference(run_file, tmp_path):
    assert main(["train", str(run_file), "trainer.max_steps=2", "trainer.eval_steps=1", "trainer.logging_steps=1"]) == 0
    log = json.loads((tmp_path / "out" / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    assert log[0]["dpo_loss"] == pytest.approx(0.693147, abs=1e-4)
    held_out = [entry["eval_dpo_loss"] for entry in log if "eval_dpo_loss" in entry]
    assert len(held_out) == 2 and held_out[0] != pytest.approx(0.693147, abs=1e-4)


def test_an_adapter_learns_the_same_against_a_reference_computed_before(run_file, tmp_path):
    adapter = ["model.lora={r: 2, dropout: 0.1}", "trainer.max_steps=3"]
    live, before = f"trainer.output_dir={tmp_path / 'live'}", f"trainer.output_dir={tmp_path / 'before'}"
    assert main(["train", str(run_file), *adapter, live]) == 0
    assert main(["train", str(run_file), *adapter, before, "trainer.reference=precomputed"]) == 0
    assert not (tmp_path / "live" / "reference").exists() and (tmp_path / "before" / "reference").is_dir()
    right, found = (trained(tmp_path / name, "adapter_model.safetensors") for name in ("live", "before"))
    assert all((found[name] - right[name]).abs().max() < 1e-5 for name in right)


def test_what_cannot_work_is_refused_in_one_line(run_file, tmp_path, capsys):
    def refusal(*overrides):
        assert main(["train", str(run_file), *overrides]) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1
        return said[0]

    kto = "objectives=[{type: kto}]"
    assert "model.lora: is missing, and the objective 'kto' compares passages of other queries" in refusal(kto)
    assert "trainer.reference: 'live' is the model without its adapter" in refusal("trainer.reference=live")
    said = refusal("objectives=contrastive", "trainer.reference=precomputed")
    assert "trainer.reference: is 'precomputed', and no objective compares" in said
    assert "trainer.reference" in refusal("trainer.reference=before")
    assert not (tmp_path / "out").exists()
    assert main(["train", str(run_file), "trainer.max_steps=1"]) == 0
    capsys.readouterr()
    (tmp_path / "held.jsonl").write_text((tmp_path / "held.jsonl").read_text().replace("no more", "and more"))
    assert "was computed with data 'eval'" in refusal()
    (tmp_path / "out" / "reference" / "manifest.json").write_text("{}")
    assert "manifest.json' is damaged or no manifest" in refusal()


def test_the_plan_says_which_reference_will_be_used(run_file, tmp_path):
    def planned(*overrides):
        return plan(read_run_file(run_file, overrides)).reference

    assert planned() == (
        f"precomputed: the original LLM scores every passage once before training, kept in {tmp_path / 'out/reference'}"
    )
    assert planned("model.lora={r: 2}").startswith("live: the model without its adapter")
    assert planned("model.lora={r: 2}", "trainer.reference=precomputed").startswith("precomputed: ")
    assert planned("objectives=grl_sft").startswith("none: ")
    assert not (tmp_path / "out").exists()
