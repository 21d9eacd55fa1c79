"""Checkpoints: whole or not at all."""

import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.tiny import SENTENCES, randomise_adapter, tiny_folder, tiny_ullme
from ullme.models import ULLME, WrappedULLME


@pytest.fixture
def model(tiny_models):
    return tiny_ullme(tiny_models, lora_name="test", lora_r=4, pooling="latent", prompts={"query": "q: "})


@pytest.fixture
def checkpoint(model, tmp_path):
    for parameter in model.pooler.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_saved_model_embeds_the_same_and_keeps_its_settings(model, checkpoint):
    again = ULLME.from_pretrained(checkpoint)
    assert np.array_equal(again.encode(SENTENCES), model.encode(SENTENCES))
    assert again.settings == model.settings
    assert again.fingerprint() == model.fingerprint()


def test_full_weights_round_trip_without_the_base(tiny_models, tmp_path):
    model = tiny_ullme(tiny_models)
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    model.save_pretrained(tmp_path / "full")
    again = ULLME.from_pretrained(tmp_path / "full")
    assert np.array_equal(again.encode(SENTENCES), model.encode(SENTENCES))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "full").config.model_type == "llama"


def test_peft_alone_opens_the_adapter(tiny_models, model, checkpoint):
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_models / "llama"), str(checkpoint)
    ).eval()
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(plain(ids).logits, model.eval()(ids, is_generate=True).logits)


def test_an_existing_adapter_can_be_trained_further(tiny_models, model, checkpoint):
    again = ULLME(str(tiny_models / "llama"), adapter_path=str(checkpoint))
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(again.eval()(ids, is_generate=True).logits, model.eval()(ids, is_generate=True).logits)
    assert any(p.requires_grad for n, p in again.named_parameters() if "lora_" in n)


def test_saving_again_replaces_the_old_checkpoint_whole(model, checkpoint):
    (checkpoint / "stale.txt").write_text("old")
    randomise_adapter(model, seed=5)
    model.save_pretrained(checkpoint)
    assert not (checkpoint / "stale.txt").exists()
    assert np.array_equal(ULLME.from_pretrained(checkpoint).encode("cat"), model.encode("cat"))
    assert [p.name for p in checkpoint.parent.iterdir()] == ["checkpoint"]


def test_interrupted_save_leaves_the_old_checkpoint(model, checkpoint, monkeypatch):
    before = ULLME.from_pretrained(checkpoint).encode("cat")
    monkeypatch.setattr(model.tokenizer, "save_pretrained", lambda folder: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        model.save_pretrained(checkpoint)
    assert np.array_equal(ULLME.from_pretrained(checkpoint).encode("cat"), before)
    assert [p.name for p in checkpoint.parent.iterdir()] == ["checkpoint"]


def edit_adapter(checkpoint, change):
    path = checkpoint / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_missing_and_extra_tensors_are_errors(checkpoint):
    name = sorted(load_file(checkpoint / "adapter_model.safetensors"))[0]
    edit_adapter(checkpoint, lambda t: t.pop(name))
    with pytest.raises(ValueError, match=f"1 tensors are missing, first '{name}'"):
        ULLME.from_pretrained(checkpoint)
    edit_adapter(checkpoint, lambda t: t.update({name: torch.zeros(4, 32), "extra": torch.zeros(1)}))
    with pytest.raises(ValueError, match="do not belong to this model, first 'extra'|has shape"):
        ULLME.from_pretrained(checkpoint)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "pooler.safetensors", "ullme.json"])
def test_truncated_file_is_an_error_that_names_it(checkpoint, file):
    content = (checkpoint / file).read_bytes()
    (checkpoint / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{file}.*use another checkpoint"):
        ULLME.from_pretrained(checkpoint)
    (checkpoint / file).unlink()
    with pytest.raises(ValueError, match=file):
        ULLME.from_pretrained(checkpoint)


def test_truncated_base_weights_are_an_error(tmp_path):
    folder = tiny_folder(tmp_path / "base")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="weights cannot be loaded"):
        ULLME(str(folder))


def test_base_with_a_missing_tensor_is_an_error(tmp_path):
    folder = tiny_folder(tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="1 tensors are missing from its weights, first 'model.norm.weight'"):
        ULLME(str(folder))


def test_checkpoint_of_another_base_is_an_error(checkpoint, tmp_path):
    other = tiny_folder(tmp_path / "other", seed=7)
    with pytest.raises(ValueError, match="was made for other weights"):
        ULLME.from_pretrained(checkpoint, model_name_or_path=str(other))
    gpt2 = tiny_folder(tmp_path / "gpt2", "gpt2")
    with pytest.raises(ValueError, match="was made for a 'llama' model, not 'gpt2'"):
        ULLME.from_pretrained(checkpoint, model_name_or_path=str(gpt2))


def test_the_same_base_in_bfloat16_is_accepted(checkpoint):
    half = ULLME.from_pretrained(checkpoint, dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    same = ULLME.from_pretrained(checkpoint, dtype=half.dtype)  # torch's own name will do
    assert same.dtype == torch.bfloat16 and same.settings == half.settings


def test_folder_that_is_no_checkpoint_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no ullme.json there"):
        ULLME.from_pretrained(tmp_path)


def test_unknown_key_in_settings_is_an_error(checkpoint):
    content = json.loads((checkpoint / "ullme.json").read_text())
    content["settings"]["poolin"] = content["settings"].pop("pooling")
    (checkpoint / "ullme.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="key: 'poolin' is unknown; did you mean 'pooling'"):
        ULLME.from_pretrained(checkpoint)


def test_wrapped_model_with_checkpoint_equals_the_trained_one(tiny_models, model, checkpoint):
    wrapped = WrappedULLME(
        model_name_or_path=str(tiny_models / "llama"),
        model_backbone_type="llama",
        lora_name="test",
        lora_r=4,
        model_checkpoint=str(checkpoint),
    )
    assert not wrapped.training
    assert np.array_equal(wrapped.encode(SENTENCES), model.encode(SENTENCES))


def test_wrapped_model_without_checkpoint_is_the_base(tiny_models):
    base = tiny_ullme(tiny_models)
    wrapped = WrappedULLME(str(tiny_models / "llama"), "llama", lora_name="x", max_length=64)
    assert np.allclose(wrapped.encode(SENTENCES), base.encode(SENTENCES), atol=1e-6)


def test_stated_setting_that_contradicts_the_checkpoint_is_an_error(tiny_models, checkpoint):
    with pytest.raises(ValueError, match="pooling: 'mean' contradicts the checkpoint .* 'latent'"):
        WrappedULLME(str(tiny_models / "llama"), model_checkpoint=checkpoint, pooling="mean")
    with pytest.raises(ValueError, match="lora_r: 8 contradicts"):
        WrappedULLME(str(tiny_models / "llama"), model_checkpoint=checkpoint, lora_r=8)


def test_fingerprint_tells_weights_settings_and_nothing_else_apart(tiny_models, model, checkpoint, tmp_path):
    one = model.fingerprint()
    assert ULLME.from_pretrained(checkpoint, max_length=32).fingerprint() != one
    assert ULLME.from_pretrained(checkpoint, attention="causal").fingerprint() != one
    assert ULLME.from_pretrained(checkpoint, dtype="bfloat16").fingerprint() != one
    moved = tmp_path / "moved"
    tiny_folder(moved)
    assert ULLME.from_pretrained(checkpoint, model_name_or_path=str(moved)).fingerprint() == one
    randomise_adapter(model, seed=9)
    assert model.fingerprint() != one
