"""The sentence-transformers export embeds as the model does, or is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from tests.tiny import _SIZES, SENTENCES, tiny_tokenizer, tiny_ullme
from ullme.apps import check_tiny
from ullme.export import export_sentence_transformers
from ullme.models import ULLME
from ullme.models.tensors import weights_digest

ARCHITECTURES = ["llama", "mistral", "gpt2", "gemma3_text", "qwen3"]
LONG = " ".join(SENTENCES * 4)


def assert_same(model, path, prompt=None):
    exported = SentenceTransformer(str(path), device="cpu")
    for texts in ([SENTENCES[0]], [*SENTENCES, "a", LONG]):
        ours = model.encode(texts, prompt=prompt)
        np.testing.assert_allclose(exported.encode(texts, prompt=prompt), ours, atol=1e-5)
    return exported


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_export_embeds_as_the_model_alone_and_padded(tmp_path, architecture, attention):
    model = tiny_ullme(tmp_path, architecture, attention=attention, lora_name="adapter", dtype="float32")
    assert_same(model, export_sentence_transformers(model, tmp_path / "export"))


@pytest.mark.parametrize("pooling", ["mean", "weightedmean", "cls", "lasttoken"])
def test_export_keeps_pooling_and_leaves_prompts_out(tmp_path, pooling):
    prompts = {"query": "Find the answer.\n"}
    model = tiny_ullme(tmp_path, pooling=pooling, prompts=prompts)
    exported = assert_same(model, export_sentence_transformers(model, tmp_path / "export"), prompt=prompts["query"])
    np.testing.assert_allclose(exported.encode_query(SENTENCES), model.encode_query(SENTENCES), atol=1e-5)


def test_prompt_that_merges_with_the_text_is_refused(tmp_path):
    model = tiny_ullme(tmp_path, prompts={"query": "Find: "})
    with pytest.raises(ValueError, match="end the prompt with a line break"):
        export_sentence_transformers(model, tmp_path / "export")
    assert not (tmp_path / "export").exists()
    export_sentence_transformers(model, tmp_path / "export", prompts={})


def test_eos_is_appended_by_the_exported_tokenizer(tmp_path):
    model = tiny_ullme(tmp_path, append_eos=True, pooling="lasttoken", max_length=12)
    exported = assert_same(model, export_sentence_transformers(model, tmp_path / "export"))
    ids = exported.tokenize([LONG])["input_ids"][0].tolist()
    assert len(ids) == 12 and ids[-1] == model.tokenizer.eos_token_id


def test_chat_template_is_not_applied(tmp_path):
    model = tiny_ullme(tmp_path)
    model.tokenizer.chat_template = "{% for m in messages %}USER SAYS {{ m['content'] }} END{% endfor %}"
    exported = assert_same(model, export_sentence_transformers(model, tmp_path / "export"))
    assert list(exported[0].modality_config) == ["text"]


def test_normalised_export_gives_unit_length(tmp_path):
    model = tiny_ullme(tmp_path)
    exported = SentenceTransformer(str(export_sentence_transformers(model, tmp_path / "export", normalize=True)))
    np.testing.assert_allclose(np.linalg.norm(exported.encode(SENTENCES), axis=1), 1, atol=1e-5)


def test_model_is_not_changed(tmp_path):
    model = tiny_ullme(tmp_path, lora_name="adapter")
    weights, config, side = weights_digest(model), model.config.to_dict(), model.tokenizer.padding_side
    chat, length = model.tokenizer.chat_template, model.tokenizer.model_max_length
    export_sentence_transformers(model, tmp_path / "export")
    assert weights_digest(model) == weights and model.config.to_dict() == config
    assert (model.tokenizer.padding_side, model.tokenizer.chat_template) == (side, chat)
    assert model.tokenizer.model_max_length == length


def test_config_states_the_attention(tmp_path):
    for attention, stated in (("bidirectional", False), ("causal", None)):
        model = tiny_ullme(tmp_path, attention=attention)
        path = export_sentence_transformers(model, tmp_path / attention)
        assert json.loads((path / "config.json").read_text()).get("is_causal") is stated


@pytest.mark.parametrize(
    ("setting", "reason"),
    [({"pooling": "latent"}, "pooling"), ({"echo": True}, "echo"), ({"chat_template": True}, "chat_template")],
)
def test_what_sentence_transformers_cannot_say_is_refused(tmp_path, setting, reason):
    with pytest.raises(ValueError, match=f"^export: {reason}"):
        export_sentence_transformers(tiny_ullme(tmp_path, **setting), tmp_path / "export")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["llama"]


def test_export_that_embeds_otherwise_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("ullme.export._backbone", lambda model: tiny_ullme(tmp_path, "qwen3").causal_lm.model)
    with pytest.raises(ValueError, match="does not reproduce this model"):
        export_sentence_transformers(tiny_ullme(tmp_path), tmp_path / "export")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["llama", "qwen3"]


def test_existing_folder_is_not_overwritten(tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        export_sentence_transformers(tiny_ullme(tmp_path), tmp_path / "export")


def test_bfloat16_model_is_exported_in_its_dtype(tmp_path):
    model = tiny_ullme(tmp_path, lora_name="adapter", dtype="bfloat16")
    exported = SentenceTransformer(str(export_sentence_transformers(model, tmp_path / "export")))
    assert exported.dtype == torch.bfloat16


@pytest.mark.real_model
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_real_model_is_exported_exactly(tmp_path, real_model, attention):
    from ullme.models import WrappedULLME

    model = WrappedULLME(real_model, attention=attention, max_length=64)
    exported = SentenceTransformer(str(export_sentence_transformers(model, tmp_path / "export")), device="cpu")
    for texts in ([SENTENCES[0]], [*SENTENCES, LONG]):
        ours, theirs = model.encode(texts), exported.encode(texts)
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(ours).max()


def test_tiny_tokenizer_appends_nothing_by_itself():
    assert tiny_tokenizer()(SENTENCES[0])["input_ids"][-1] != tiny_tokenizer().eos_token_id


def test_attention_that_sentence_transformers_cannot_switch_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(_SIZES, "stablelm", {"num_key_value_heads": 4})
    with pytest.raises(ValueError, match="does not reproduce this model .stablelm, bidirectional attention"):
        export_sentence_transformers(tiny_ullme(tmp_path, "stablelm"), tmp_path / "export")
    causal = tiny_ullme(tmp_path, "stablelm", attention="causal")
    assert_same(causal, export_sentence_transformers(causal, tmp_path / "export"))


def any_ullme(folder, architecture, **settings):
    """A ULLME on a tiny model of any architecture, with room for the ids of the tiny tokenizer."""
    causal_lm = check_tiny.tiny_model(architecture)
    causal_lm.resize_token_embeddings(384)
    causal_lm.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    return ULLME(str(folder / "model"), max_length=32, **settings)


@pytest.mark.parametrize("architecture", ["opt", "bloom", "gemma3", "falcon"])
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_decoder_inside_another_model_or_told_by_its_config_is_exported(tmp_path, architecture, attention):
    model = any_ullme(tmp_path, architecture, attention=attention)
    assert_same(model, export_sentence_transformers(model, tmp_path / "export"))


def test_model_that_sentence_transformers_cannot_run_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="does not reproduce this model .mpt") as error:
        export_sentence_transformers(any_ullme(tmp_path, "mpt"), tmp_path / "export")
    assert "\n" not in str(error.value)
