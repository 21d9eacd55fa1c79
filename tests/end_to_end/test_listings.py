"""The paper's listings run as ``docs/listings.md`` has them, with model paths exchanged."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.mteb_folders import write_msmarco
from tests.tiny import tiny_folder
from transformers import AutoModelForCausalLM

from ullme.data import PairCollator, PairDataset, train_loader
from ullme.models.loading import resolve
from ullme.models.tensors import weights_digest
from ullme.types import PairExample

PAGE = Path(__file__).resolve().parents[2] / "docs" / "listings.md"

#: What the paper's lines must contain, so that the page cannot drift from them.
LINES = [
    'model = ULLME(model_name_or_path="mistralai/Mistral-7B-v0.1", model_backbone_type="mistral",',
    '              lora_name="ullme-mistral", lora_r=16, lora_alpha=32)',
    'inputs = model.tokenizer(["This a example sentence."], return_tensors="pt")',
    'model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], is_generate=False)',
    'trainer = GradCacheTrainer(con_loss_type="NTXentLoss", gen_loss_type="dpo", use_kl_loss=True)',
    "trainer.fit_epoch(model=model, train_loader=train_data_loader)",
    'eval_mteb_dataset(model=wrapped, dataset_name="MSMARCO", langs=["eng"])',
]

PAIRS = [
    PairExample(f"What is a {w}?", (f"A {w} is a kind of {kind}.",), (f"Nobody saw the {kind} today.",))
    for w, kind in (("apple", "fruit"), ("violin", "instrument"), ("glacier", "ice"), ("lantern", "light"))
]


def listings() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)


def run(code: str, names: dict[str, Any]) -> Any:
    """Execute a listing; the value of its last line if that is an expression."""
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(PAGE), "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), str(PAGE), "eval"), names)


def exchanged(code: str, model: str, backbone: str, checkpoint: Path) -> str:
    code = code.replace('"mistralai/Mistral-7B-v0.1"', repr(model)).replace(
        "model_name_or_path=...", f"model_name_or_path={model!r}"
    )
    code = code.replace('model_backbone_type="mistral"', f'model_backbone_type="{backbone}"')
    return code.replace('"path/to/your/checkpoint"', repr(str(checkpoint)))


def check_listings(model: str, backbone: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ULLME_MTEB_DATA", str(folder / "data"))
    monkeypatch.setenv("MTEB_CACHE", str(folder / "mteb"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(folder / "datasets-cache"))
    write_msmarco(folder / "data")
    names: dict[str, Any] = {}
    first, second, third = (exchanged(code, model, backbone, folder / "checkpoint") for code in listings())

    rep = run(first, names)
    ullme, inputs = names["model"], names["inputs"]
    assert set(rep) == {"rep"} and rep["rep"].shape == (1, ullme.config.hidden_size)
    plain = AutoModelForCausalLM.from_pretrained(resolve(ullme.settings), dtype=torch.float32).eval()
    with torch.no_grad():
        generated = ullme.eval()(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], is_generate=True
        )
        assert torch.equal(generated.logits, plain(**inputs).logits)
    del plain

    before = weights_digest(ullme)
    collator = PairCollator(ullme.text_tokenizer, generation=True)
    names["train_data_loader"] = train_loader(PairDataset.from_examples(PAIRS), collator, batch_size=2)
    output = run(second, names)
    assert math.isfinite(output.training_loss) and weights_digest(ullme) != before

    ullme.save_pretrained(folder / "checkpoint")
    score = run(third, names)
    assert set(score) == {"eng"} and 0 <= score["eng"] <= 100
    assert names["wrapped"].fingerprint() == ullme.fingerprint()
    assert names["eval_mteb_dataset"](ullme, "MSMARCO") == score


def test_the_page_has_the_papers_lines():
    code = "\n".join(listings())
    assert [line for line in LINES if line not in code] == []


def test_listings_run_on_a_tiny_mistral(tmp_path, monkeypatch):
    model = tiny_folder(tmp_path / "base", "mistral")
    check_listings(str(model), "mistral", tmp_path, monkeypatch)


@pytest.mark.real_model
def test_listings_run_on_a_real_model(tmp_path, monkeypatch, real_model):
    check_listings(real_model, "llama", tmp_path, monkeypatch)
