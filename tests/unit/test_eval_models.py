"""What can be evaluated: every kind of model, found by name or folder and told from another by its weights."""

from __future__ import annotations

import mteb
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import BertConfig, BertForMaskedLM

from tests.evaluation import scored_folder
from tests.tiny import tiny_folder, tiny_tokenizer
from ullme.eval import eval_mteb_dataset, evaluate, load_model
from ullme.eval.models import kind_of


def sentence_transformer(folder, seed=0):
    transformer = Transformer(
        str(tiny_folder(folder, seed=seed)),
        modality_config={"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        module_output_name="token_embeddings",
    )
    return SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu")


def test_sentence_transformers_are_told_apart_by_their_weights(tmp_path, options):
    a, same, b = (sentence_transformer(tmp_path / name, seed) for name, seed in (("a", 0), ("same", 0), ("b", 1)))
    folders = [scored_folder(model, options) for model in (a, same, b)]
    assert folders[0].name == folders[1].name != folders[2].name
    a.encode(["a text of another length", "short"])
    assert scored_folder(a, options) == folders[0]
    a.max_seq_length = 5
    assert scored_folder(a, options) != folders[0]


def test_sentence_transformer_scores_equal_mtebs_own(tmp_path, options, data):
    model = sentence_transformer(tmp_path / "m")
    task = mteb.get_task("BIOSSES")
    task.metadata = task.metadata.model_copy(
        update={"dataset": {"path": str(data / "mteb/biosses-sts"), "revision": "main"}}
    )
    expected = mteb.evaluate(model, task, cache=None, show_progress_bar=False).task_results[0].get_score()
    assert eval_mteb_dataset(model, "BIOSSES", **options) == {"eng": pytest.approx(100 * expected)}


def test_any_mteb_model_is_taken_as_it_is(options):
    model = mteb.get_model("mteb/baseline-random-encoder")
    assert 0 <= eval_mteb_dataset(model, "MSMARCO", **options)["eng"] <= 100
    with pytest.raises(ValueError, match="brings its own prompts"):
        eval_mteb_dataset(model, "MSMARCO", prompts="task", **options)


def test_model_is_found_by_name_or_folder(tmp_path):
    folder = tiny_folder(tmp_path / "base")
    model = load_model(folder, attention="causal")
    assert model.attention == "causal"
    model.save_pretrained(tmp_path / "checkpoint")
    assert load_model(tmp_path / "checkpoint").attention == "causal"
    sentence_transformer(tmp_path / "st").save_pretrained(str(tmp_path / "st-saved"))
    assert isinstance(load_model(tmp_path / "st-saved"), SentenceTransformer)
    assert type(load_model("mteb/baseline-random-encoder")).__name__ == "RandomEncoderBaseline"
    with pytest.raises(ValueError, match="brings its own"):
        load_model(tmp_path / "st-saved", pooling="cls")


def test_plain_encoder_is_loaded_by_sentence_transformers(tmp_path):
    config = BertConfig(
        vocab_size=384, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    tiny_tokenizer().save_pretrained(tmp_path / "bert")
    assert kind_of(str(tmp_path / "bert")) == "sentence-transformers"
    assert isinstance(load_model(tmp_path / "bert"), SentenceTransformer)
    with pytest.raises(ValueError, match="kind: 'bert' is unknown"):
        load_model(tmp_path / "bert", kind="bert")


def test_object_that_cannot_encode_is_refused(options):
    with pytest.raises(ValueError, match=r"no encode\(list of str\)"):
        evaluate(object(), "MSMARCO", **options)


def test_damaged_sentence_transformer_is_refused_in_one_line(tmp_path):
    sentence_transformer(tmp_path / "st").save_pretrained(str(tmp_path / "saved"))
    weights = tmp_path / "saved" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="sentence-transformers cannot load it") as error:
        load_model(tmp_path / "saved")
    assert "\n" not in str(error.value)


def test_name_that_is_nowhere_is_refused_in_one_line():
    with pytest.raises(ValueError, match="model 'smollm3-135m' cannot be loaded: did you mean") as error:
        load_model("smollm3-135m")
    assert "\n" not in str(error.value)
