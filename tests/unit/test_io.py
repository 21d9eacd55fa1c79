"""Checkpoints: whole or not at all."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
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


@pytest.mark.parametrize(
    "adapter",
    [
        {"lora_alpha": 64},
        {"lora_r": 4, "lora_target_modules": ["q_proj", "v_proj"]},
        {"pooling": "latent"},
    ],
)
def test_an_adapter_that_was_trained_further_loads_as_what_it_is(tiny_models, tmp_path, adapter):
    """Its rank, scale, targets and pooler are those of the adapter it began as, whatever the defaults are."""
    pooling = adapter.get("pooling", "mean")
    first = tiny_ullme(tiny_models, lora_name="first", **adapter)
    for parameter in first.pooler.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    first.save_pretrained(tmp_path / "first")
    further = ULLME(str(tiny_models / "llama"), adapter_path=str(tmp_path / "first"), max_length=64, pooling=pooling)
    further.save_pretrained(tmp_path / "second")
    again = ULLME.from_pretrained(tmp_path / "second")
    assert np.array_equal(first.encode(SENTENCES), further.encode(SENTENCES))
    assert np.array_equal(again.encode(SENTENCES), further.encode(SENTENCES))
    assert again.fingerprint() == further.fingerprint() == first.fingerprint()
    assert (again.settings.lora_r, again.settings.lora_alpha) == (first.settings.lora_r, first.settings.lora_alpha)


def test_a_plain_adapter_with_what_no_setting_says_loads_as_what_it_is(tiny_models, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(tiny_ullme(tiny_models).settings.model_name_or_path)
    config = LoraConfig(r=4, use_rslora=True, use_dora=True, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(tmp_path / "plain")
    further = ULLME(str(tiny_models / "llama"), adapter_path=str(tmp_path / "plain"), max_length=64)
    further.save_pretrained(tmp_path / "second")
    again = ULLME.from_pretrained(tmp_path / "second")
    assert np.array_equal(again.encode(SENTENCES), further.eval().encode(SENTENCES))


def test_models_that_differ_only_in_the_scale_of_their_adapter_are_told_apart(tiny_models, tmp_path):
    tiny_ullme(tiny_models, lora_name="a").save_pretrained(tmp_path / "a")
    prints = []
    for alpha in (32, 64):
        place = tmp_path / "a" / "adapter_config.json"
        place.write_text(json.dumps(json.loads(place.read_text()) | {"lora_alpha": alpha}))
        prints.append(ULLME.from_pretrained(tmp_path / "a").fingerprint())
    assert prints[0] != prints[1]


def test_an_adapter_is_not_trained_further_on_another_base(checkpoint, tmp_path):
    other = tiny_folder(tmp_path / "other", seed=7)
    with pytest.raises(ValueError, match="adapter .*checkpoint' was made for other weights than"):
        ULLME(str(other), adapter_path=str(checkpoint))


def test_a_checkpoint_has_its_own_tokenizer(tiny_models, tmp_path):
    model = tiny_ullme(tiny_models, lora_name="a")
    before = model.fingerprint()
    begin = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", model.tokenizer.bos_token_id)])
    model.tokenizer.backend_tokenizer.post_processor = begin
    assert model.fingerprint() != before, "another tokenizer is another embedder"
    model.save_pretrained(tmp_path / "a")
    again = ULLME.from_pretrained(tmp_path / "a")
    assert again.tokenizer("cat").input_ids[0] == model.tokenizer.bos_token_id
    assert again.fingerprint() == model.fingerprint()
    assert np.array_equal(again.encode(SENTENCES), model.encode(SENTENCES))


def test_saving_replaces_nothing_but_a_checkpoint(tiny_models, model, checkpoint, tmp_path, monkeypatch):
    base = tiny_folder(tmp_path / "base")
    with pytest.raises(ValueError, match="base' holds other files, which would be lost; name a new folder"):
        model.save_pretrained(base)
    assert (base / "model.safetensors").is_file()
    tiny_ullme(tiny_models).save_pretrained(tmp_path / "whole")
    adapted = ULLME(str(tmp_path / "whole"), lora_name="b")
    with pytest.raises(ValueError, match="whole' is the base of this adapter"):
        adapted.save_pretrained(tmp_path / "whole")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    model.save_pretrained(".")
    assert np.array_equal(ULLME.from_pretrained(tmp_path / "empty").encode("cat"), model.encode("cat"))


def test_what_the_adapter_is_cannot_be_overridden(checkpoint, tiny_models):
    with pytest.raises(ValueError, match="lora_r: 8 is not what the adapter in .* has; leave it out"):
        ULLME.from_pretrained(checkpoint, lora_r=8)


def test_target_modules_may_be_a_list_for_a_wrapped_model(tiny_models, tmp_path):
    targets = ["q_proj", "v_proj"]
    model = tiny_ullme(tiny_models, lora_name="a", lora_target_modules=targets)
    model.save_pretrained(tmp_path / "a")
    base = str(tiny_models / "llama")
    wrapped = WrappedULLME(base, lora_name="a", lora_target_modules=targets, model_checkpoint=tmp_path / "a")
    assert np.array_equal(wrapped.encode(SENTENCES), model.encode(SENTENCES))


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
