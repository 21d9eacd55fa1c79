"""The run files of the repository, carried out on a tiny model; those of LLM2Vec one after another."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny import tiny_folder
from transformers import AutoModelForCausalLM

from ullme.apps.plan import plan
from ullme.apps.train import train
from ullme.config import read_run_file
from ullme.models import ULLME
from ullme.templates import ECHO_TEMPLATE

CONFIGS = Path(__file__).parents[2] / "configs"
MODEL = "llama-of-large-values"
WORDS = "cat dog tree house river stone cloud bread night music road light".split()


@pytest.fixture
def workplace(tmp_path, tiny_models, monkeypatch):
    """A folder with the data that the run files name; runs leave theirs in it."""
    if not (tiny_models / MODEL).exists():  # with the usual values its LM head could not become sure of anything
        tiny_folder(tiny_models / MODEL, initializer_range=0.3)
    (tmp_path / "data").mkdir()
    texts = [f"{word} {other} {word} {other} {word}" for word in WORDS for other in WORDS[:4] if word != other]
    pairs = [
        {"query": f"{word}?", "positive": f"the {word}", "negatives": [f"the {other}", "none of it"]}
        for word, other in zip(WORDS, WORDS[3:] + WORDS[:3], strict=True)
    ]
    write(tmp_path / "data" / "texts.jsonl", [{"text": text} for text in texts])
    write(tmp_path / "data" / "pairs.jsonl", pairs)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(name, tiny_models, steps, *overrides):
    """A run file of the repository, on the tiny model and in few steps."""
    small = [
        f"model.name_or_path={tiny_models / MODEL}",
        "model.max_length=48",
        f"trainer.max_steps={steps}",
        "trainer.per_device_train_batch_size=12",
        "trainer.warmup_steps=0",
        "trainer.learning_rate=1e-2",
        "trainer.logging_steps=1",
        "trainer.report_to=none",
        "trainer.use_cpu=true",
    ]
    return read_run_file(CONFIGS / name, [*small, *overrides])


def falls(done, name, share):
    """Whether the mean of a loss over the last steps is at most this share of that over the first ones."""
    losses = [entry[name] for entry in done.history if name in entry]
    return np.mean(losses[-4:]) <= share * np.mean(losses[:4])


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_run_file_can_be_planned_and_trains(workplace, tiny_models, path):
    config = run(path.relative_to(CONFIGS), tiny_models, 1)
    planned = plan(config)
    assert planned.steps == 1 and planned.parameters[1] > 0
    if config.model.merged_adapters:
        with pytest.raises(ValueError, match=r"merged_adapters: 'runs/\w+/\w+/model' has no .*run the stage"):
            train(config)
        return
    done = train(config)
    assert np.isfinite(done.history[0]["loss"])
    assert np.isfinite(ULLME.from_pretrained(done.folder).encode(["a text"])).all()


@pytest.mark.parametrize("second", ["simcse", "supervised"])
def test_llm2vec_is_two_run_files_one_after_another(workplace, tiny_models, second):
    first = train(run("llm2vec/mntp.yaml", tiny_models, 25))
    assert falls(first, "mntp_loss", 0.8)
    done = train(run(f"llm2vec/{second}.yaml", tiny_models, 25))
    assert falls(done, "contrastive_loss", 0.8)
    assert done.model.merged and done.model.settings.merged_adapters == ("runs/llm2vec/mntp/model",)
    again = ULLME.from_pretrained(done.folder)
    assert np.array_equal(again.encode(WORDS), done.model.encode(WORDS))
    assert not np.allclose(again.encode(WORDS), first.model.encode(WORDS), atol=1e-3)


def test_an_interrupted_stage_resumes_on_its_merged_adapter(workplace, tiny_models):
    train(run("llm2vec/mntp.yaml", tiny_models, 2))
    saved = "trainer.save_steps=2"
    train(run("llm2vec/supervised.yaml", tiny_models, 2, saved, "trainer.lr_scheduler_type=constant"))
    resumed = train(run("llm2vec/supervised.yaml", tiny_models, 4, saved, "trainer.lr_scheduler_type=constant"))
    whole = "trainer.output_dir=runs/whole"
    at_once = train(run("llm2vec/supervised.yaml", tiny_models, 4, saved, "trainer.lr_scheduler_type=constant", whole))
    assert np.array_equal(resumed.model.encode(WORDS), at_once.model.encode(WORDS))


def test_the_reference_of_a_merged_model_is_the_original_llm(workplace, tiny_models):
    train(run("llm2vec/mntp.yaml", tiny_models, 10, "model.lora.dropout=0"))
    dpo = "objectives=[{type: dpo}]"
    with pytest.raises(ValueError, match=r"trainer.reference: 'live' .*merged_adapters"):
        run("llm2vec/supervised.yaml", tiny_models, 1, dpo, "trainer.reference=live")
    with pytest.raises(ValueError, match=r"model.merged_adapters: is set.*'kto'.*model.adapter_path"):
        run("llm2vec/supervised.yaml", tiny_models, 1, "objectives=grl_kto")
    merged = run("llm2vec/supervised.yaml", tiny_models, 1, dpo, "trainer.learning_rate=1e-8")
    assert merged.reference == "precomputed"
    continued = run(
        "llm2vec/supervised.yaml",
        tiny_models,
        1,
        dpo,
        "model.merged_adapters=[]",
        "model.lora=null",
        "model.adapter_path=runs/llm2vec/mntp/model",
        "trainer.output_dir=runs/continued",
        "trainer.learning_rate=1e-8",
    )
    assert continued.reference == "live"
    losses = [train(config).history[0]["dpo_loss"] for config in (merged, continued)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)  # the same model against the same original
    assert abs(losses[0] - np.log(2)) > 1e-3  # a reference that held the first stage would give log 2


def last_of_closing_eos(tokenizer, decoder, text):
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    return decoder(torch.tensor([ids]))[0][0, -1]


def later_tokens_weigh_more(tokenizer, decoder, text):
    hidden_TD = decoder(**tokenizer([text], return_tensors="pt"))[0][0]
    weight_T = torch.arange(1.0, len(hidden_TD) + 1)
    return weight_T @ hidden_TD / weight_T.sum()


def second_reading(tokenizer, decoder, text):
    ids = tokenizer([ECHO_TEMPLATE.format(text=text) + text], return_tensors="pt")["input_ids"]
    before = len(
        tokenizer(ECHO_TEMPLATE.format(text=text).rstrip())["input_ids"]
    )  # a space belongs to the word after it
    return decoder(ids)[0][0, before:].mean(0)


@pytest.mark.parametrize(
    ("name", "pooled"),
    [("repllama", last_of_closing_eos), ("sgpt", later_tokens_weigh_more), ("echo", second_reading)],
)
def test_a_baseline_embeds_as_its_paper_says(workplace, tiny_models, name, pooled):
    settings = run(f"{name}.yaml", tiny_models, 1, "model.max_length=128").model.settings()
    model = ULLME(**settings.to_dict())  # a new adapter adds nothing
    plain = AutoModelForCausalLM.from_pretrained(tiny_models / MODEL).model.eval()
    for text in ("cat", "the dog and the tree"):
        with torch.no_grad():
            right = pooled(model.tokenizer, plain, text)
        assert np.allclose(model.encode(text), right, atol=1e-5)
