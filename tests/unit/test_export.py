"""The sentence-transformers export embeds as the model does, or is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from tests.tiny import _SIZES, SENTENCES, tiny_tokenizer, tiny_ullme
from ullme.apps import check_tiny
from ullme.export import directory, export_sentence_transformers, parity
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


def test_a_prompt_that_merges_does_no_harm_where_the_last_token_is_pooled(tmp_path):
    model = tiny_ullme(tmp_path, prompts={"query": "Find: "}, pooling="lasttoken")
    assert_same(model, export_sentence_transformers(model, tmp_path / "export"), prompt="Find: ")


def test_eos_is_appended_by_the_exported_tokenizer(tmp_path):
    model = tiny_ullme(tmp_path, append_eos=True, pooling="lasttoken", max_length=12)
    exported = assert_same(model, export_sentence_transformers(model, tmp_path / "export"))
    ids = exported.tokenize([LONG])["input_ids"][0].tolist()
    assert len(ids) == 12 and ids[-1] == model.tokenizer.eos_token_id


def test_a_tokenizer_that_would_cut_a_texts_beginning_cuts_its_end_when_exported(tmp_path):
    model = tiny_ullme(tmp_path, max_length=12)
    model.tokenizer.truncation_side = "left"
    exported = assert_same(model, export_sentence_transformers(model, tmp_path / "export"))
    assert exported.tokenizer.truncation_side == "right"


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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_silently_causal_export_is_caught_and_leaves_nothing(tmp_path, monkeypatch, architecture):
    written = directory.write_directory

    def forgetful(model, folder, *args, **options):
        written(model, folder, *args, **options)
        config = json.loads((folder / "config.json").read_text())
        kept = {k: v for k, v in config.items() if k not in ("is_causal", "use_bidirectional_attention")}
        (folder / "config.json").write_text(json.dumps(kept))

    monkeypatch.setattr("ullme.export.run.write_directory", forgetful)
    with pytest.raises(ValueError, match="a token does not see the next one there, without padding"):
        export_sentence_transformers(tiny_ullme(tmp_path, architecture), tmp_path / "export")
    assert sorted(p.name for p in tmp_path.iterdir()) == [architecture]


def test_an_export_that_is_causal_only_with_padding_is_caught(tmp_path, monkeypatch):
    states = parity._states
    monkeypatch.setattr(
        parity, "_states", lambda exported, ids, padding: states(_causal(exported, padding), ids, padding)
    )
    with pytest.raises(ValueError, match="does not see the next one there, with padding"):
        export_sentence_transformers(tiny_ullme(tmp_path), tmp_path / "export")


def _causal(exported, padding):
    exported[0].model.config.is_causal = padding > 0
    return exported


def test_export_that_embeds_otherwise_leaves_nothing(tmp_path, monkeypatch):
    other = tiny_ullme(tmp_path, "qwen3").causal_lm.model
    other.config.is_causal = False
    monkeypatch.setattr(directory, "_backbone", lambda model, merge: other)
    with pytest.raises(ValueError, match="each text alone differs by"):
        export_sentence_transformers(tiny_ullme(tmp_path), tmp_path / "export")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["llama", "qwen3"]


def test_other_token_ids_are_caught(tmp_path, monkeypatch):
    monkeypatch.setattr(directory, "_append_eos", lambda tokenizer: None)
    with pytest.raises(ValueError, match="has the token ids .* there, and .* here"):
        export_sentence_transformers(tiny_ullme(tmp_path, append_eos=True), tmp_path / "export")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_adapter_kept_apart_embeds_the_same_and_moves_with_its_folder(tmp_path, architecture):
    model = tiny_ullme(tmp_path, architecture, lora_name="adapter")
    path = export_sentence_transformers(model, tmp_path / "export", keep_adapter=True)
    exported = assert_same(model, path.rename(tmp_path / "moved"))
    kept = load_file(tmp_path / "moved" / "model.safetensors")
    original = ULLME(str(tmp_path / architecture)).causal_lm.base_model.state_dict()
    assert kept.keys() <= original.keys() and all(torch.equal(kept[name], original[name]) for name in kept)
    assert any("lora_A" in name for name, _ in exported.named_parameters())


def test_keeping_an_adapter_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep_adapter: this model has no adapter"):
        export_sentence_transformers(tiny_ullme(tmp_path), tmp_path / "export", keep_adapter=True)


def test_a_window_that_the_model_ignores_is_refused_unless_no_text_is_longer(tmp_path):
    with pytest.raises(ValueError, match="^export: window: 'full'"):
        export_sentence_transformers(tiny_ullme(tmp_path, "gemma3_text", window="full"), tmp_path / "export")
    short = tiny_ullme(tmp_path, "gemma3_text", window="full", max_length=5)
    assert_same(short, export_sentence_transformers(short, tmp_path / "export"))


def test_the_longest_golden_text_fills_the_model(tmp_path):
    model = tiny_ullme(tmp_path, max_length=100)
    assert model.text_tokenizer.texts(parity.golden_texts(model)).lengths_N.max() == 100


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
