"""Stages: adapters of earlier ones merged into the base, and the dropout that unsupervised contrast lives on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM

from tests.batches import random_batch
from tests.tiny import SENTENCES, randomise_adapter, tiny_config, tiny_folder, tiny_ullme
from ullme.export import export_sentence_transformers
from ullme.models import ULLME, ModelSettings, WrappedULLME
from ullme.models.dropout import dropout_of, set_attention_dropout
from ullme.models.merging import merge_adapters

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture
def base(tiny_models):
    path = tiny_models / "llama"
    return path if path.exists() else tiny_folder(path)


def stage(base, folder, seed, **settings):
    """A trained stage: its model, and its checkpoint in ``folder``."""
    model = ULLME(str(base), lora_name="stage", lora_r=2, max_length=64, **settings)
    randomise_adapter(model, seed)
    model.save_pretrained(folder)
    return model.eval()


@pytest.fixture
def first(base, tmp_path):
    return stage(base, tmp_path / "first", seed=1)


@pytest.fixture
def second(base, first, tmp_path):
    return stage(base, tmp_path / "second", seed=2, merged_adapters=(str(tmp_path / "first"),))


def test_merging_equals_applying_in_float64(base, first, second, tmp_path):
    ids = IDS.repeat(2, 3)
    applied = AutoModelForCausalLM.from_pretrained(base).double()
    for name in ("first", "second"):
        applied = PeftModel.from_pretrained(applied, str(tmp_path / name)).eval()
        with torch.no_grad():
            right = applied(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(base).double().eval()
        folders = [str(tmp_path / n) for n in ("first", "second")[: 1 + (name == "second")]]
        merge_adapters(merged, folders)
        assert torch.allclose(merged(ids).logits, right, rtol=0, atol=1e-6)  # RMS norms pass through float32
        weight = merged.model.layers[0].self_attn.q_proj.weight
        added = _weight_of(applied)
        assert torch.allclose(weight, added, rtol=1e-12, atol=1e-15)
        applied = applied.merge_and_unload()


def _weight_of(peft_model):
    layer = peft_model.base_model.model.model.layers[0].self_attn.q_proj
    return layer.base_layer.weight + layer.get_delta_weight("default")


def test_a_plain_peft_adapter_is_merged_too(base, first, tmp_path):
    (tmp_path / "first" / "ullme.json").unlink()
    model = ULLME(str(base), merged_adapters=(str(tmp_path / "first"),), max_length=64)
    assert np.allclose(model.encode(SENTENCES), first.encode(SENTENCES), atol=1e-5)


def test_a_merged_model_is_bare_and_wholly_trainable_without_a_new_adapter(base, first, tmp_path):
    model = ULLME(str(base), merged_adapters=(str(tmp_path / "first"),))
    assert model.peft_model is None and not any("lora_" in n for n, _ in model.named_parameters())
    assert all(p.requires_grad for p in model.parameters())
    assert not hasattr(model.causal_lm, "peft_config")


def test_only_the_new_adapter_is_trained_on_a_merged_model(second):
    assert {n for n, p in second.named_parameters() if p.requires_grad} == {
        n for n, _ in second.named_parameters() if "lora_" in n
    }


def test_the_order_of_stages_is_theirs(base, first, second, tmp_path):
    stages = [str(tmp_path / "first"), str(tmp_path / "second")]
    model = ULLME(str(base), merged_adapters=tuple(stages), max_length=64)
    assert np.allclose(model.encode(SENTENCES), second.encode(SENTENCES), atol=1e-5)
    for wrong in (stages[::-1], stages[1:]):
        with pytest.raises(ValueError, match=r"second' was trained on 1 earlier adapter.*in their order"):
            ULLME(str(base), merged_adapters=tuple(wrong))


def test_an_adapter_of_another_base_is_refused(first, tmp_path):
    other = tiny_folder(tmp_path / "other", seed=5)
    with pytest.raises(ValueError, match=r"merged_adapters: .*first' was made for other weights than .*other'"):
        ULLME(str(other), merged_adapters=(str(tmp_path / "first"),))


def test_checkpoint_on_merged_adapters_loads_in_bfloat16(second, tmp_path):
    """Sums of small weights and an adapter as large as they are, rounded twice."""
    again = ULLME.from_pretrained(tmp_path / "second", dtype="bfloat16")
    assert again.dtype == torch.bfloat16 and again.merged == second.merged


def test_checkpoint_on_merged_adapters_loads_again(second, tmp_path):
    again = ULLME.from_pretrained(tmp_path / "second")
    assert np.array_equal(again.encode(SENTENCES), second.encode(SENTENCES))
    assert again.settings == second.settings and again.merged == second.merged


def test_wrapped_model_keeps_the_merged_adapters(base, second, tmp_path):
    wrapped = WrappedULLME(str(base), model_checkpoint=tmp_path / "second")
    assert np.array_equal(wrapped.encode(SENTENCES), second.encode(SENTENCES))


def test_an_adapter_that_moved_is_named_and_may_be_given_again(second, tmp_path):
    shutil.move(tmp_path / "first", tmp_path / "moved")
    with pytest.raises(ValueError, match=r"merged_adapters: .*first' has no adapter_config.json.*give its new place"):
        ULLME.from_pretrained(tmp_path / "second")
    again = ULLME.from_pretrained(tmp_path / "second", merged_adapters=[str(tmp_path / "moved")])
    assert np.array_equal(again.encode(SENTENCES), second.encode(SENTENCES))
    assert again.fingerprint() == second.fingerprint()


def test_an_earlier_adapter_that_another_process_saved_again_is_the_same(first, second, tmp_path):
    """peft holds the names of its modules in a set, whose order each process makes anew."""
    config = first.peft_model.active_peft_config
    config.target_modules = sorted(config.target_modules, reverse=True)
    first.save_pretrained(tmp_path / "first")
    assert ULLME.from_pretrained(tmp_path / "second").merged == second.merged


def test_another_adapter_in_its_place_is_refused_however_alike(base, second, tmp_path):
    stage(base, tmp_path / "first", seed=3)
    with pytest.raises(ValueError, match=r"second' was trained on 1 earlier adapter.*first' is another adapter"):
        ULLME.from_pretrained(tmp_path / "second")
    with pytest.raises(ValueError, match="0 are merged into this model"):
        ULLME.from_pretrained(tmp_path / "second", merged_adapters=[])


def test_a_checkpoint_can_be_saved_when_the_earlier_stage_is_gone(second, tmp_path):
    shutil.rmtree(tmp_path / "first")
    second.save_pretrained(tmp_path / "again")
    kept = [json.loads((tmp_path / n / "ullme.json").read_text()) for n in ("second", "again")]
    assert kept[0] == kept[1] and kept[0]["merged_adapters"]


def test_full_weights_hold_the_merged_adapters_themselves(base, first, tmp_path):
    model = ULLME(str(base), merged_adapters=(str(tmp_path / "first"),), max_length=64)
    model.save_pretrained(tmp_path / "full")
    shutil.rmtree(tmp_path / "first")
    for again in (
        ULLME.from_pretrained(tmp_path / "full"),
        WrappedULLME(str(base), model_checkpoint=tmp_path / "full"),
    ):
        assert again.settings.merged_adapters == ()
        assert np.array_equal(again.encode(SENTENCES), model.encode(SENTENCES))


def test_fingerprint_covers_merged_weights(base, first, second, tmp_path):
    stage(base, tmp_path / "third", seed=3)
    names = {ULLME(str(base), merged_adapters=(str(tmp_path / n),)).fingerprint() for n in ("first", "third")}
    assert len(names | {ULLME(str(base)).fingerprint()}) == 3


def test_export_holds_every_stage(second, tmp_path):
    exported = SentenceTransformer(str(export_sentence_transformers(second, tmp_path / "export")), device="cpu")
    np.testing.assert_allclose(exported.encode(SENTENCES), second.encode(SENTENCES), atol=1e-5)


def test_a_live_reference_is_refused_on_merged_adapters(second):
    batch = random_batch(1, 2, 0, generation=True)
    with pytest.raises(ValueError, match="reference: earlier adapters are merged .* precomputed"):
        second(batch=batch, needs={"reference"})
    assert not second.settings.keeps_original


def test_folders_may_be_paths_in_a_list_but_no_string():
    assert ModelSettings("any", merged_adapters=[Path("a"), "b"]).merged_adapters == ("a", "b")
    with pytest.raises(ValueError, match="merged_adapters: 'a' is one string; give a list"):
        ModelSettings("any", merged_adapters="a")


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_merging_into_quantised_weights_is_refused(quantization):
    with pytest.raises(ValueError, match=f"merged_adapters: cannot be merged into weights of {quantization}"):
        ULLME("any", quantization=quantization, merged_adapters=("x",))


# ---- Dropout ----


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3", "gemma3_text", "gpt2", "phi"])
def test_attention_dropout_is_active_in_train_mode_alone(tmp_path, model_type):
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0}
    model = tiny_ullme(tmp_path, model_type, none if model_type in ("gpt2", "phi") else None, attention_dropout=0.5)
    ids = torch.arange(5, 25)[None]
    for training in (True, False):
        model.train(training)
        reps = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            reps.append(model(ids)["rep"])
        assert torch.equal(reps[0], reps[1])
        assert torch.equal(reps[0], reps[2]) != training


def test_attention_dropout_does_not_change_the_embedding_or_its_fingerprint(tiny_models, base):
    plain, dropping = ULLME(str(base)), ULLME(str(base), attention_dropout=0.3)
    assert np.array_equal(plain.encode(SENTENCES), dropping.encode(SENTENCES))
    assert plain.fingerprint() == dropping.fingerprint()


@pytest.mark.parametrize(("model_type", "reason"), [("ernie4_5", "no such field"), ("falcon", "ignores")])
def test_architecture_without_attention_dropout_is_refused(model_type, reason):
    from transformers import AutoConfig

    with pytest.raises(ValueError, match=f"attention_dropout: 0.2 cannot be set for .*{model_type}.*{reason}"):
        set_attention_dropout(AutoConfig.for_model(model_type), 0.2)


def test_dropout_of_a_config_is_what_training_meets():
    assert dropout_of(tiny_config("llama")) == {}
    assert set(dropout_of(tiny_config("gpt2"))) == {"resid_pdrop", "embd_pdrop", "attn_pdrop"}


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_attention_dropout_is_a_probability(value):
    with pytest.raises(ValueError, match=f"attention_dropout: {value} is no probability"):
        ULLME("any", attention_dropout=value)
