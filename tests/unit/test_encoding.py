"""``encode`` has the names, defaults and shapes that sentence-transformers users know."""

import inspect

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from tests.tiny import SENTENCES, tiny_ullme
from ullme.models import ULLME


@pytest.fixture(scope="module")
def model(tiny_models):
    return tiny_ullme(tiny_models, prompts={"query": "query: ", "document": "passage: ", "sts": "similar: "})


def test_names_and_defaults_are_those_of_sentence_transformers():
    theirs = inspect.signature(SentenceTransformer.encode).parameters
    for name, parameter in inspect.signature(ULLME.encode).parameters.items():
        if name not in ("model", "sentences", "attention"):
            assert parameter.default == theirs[name].default, name


def test_one_string_gives_a_vector_and_a_list_gives_rows_in_order(model):
    one, rows = model.encode(SENTENCES[2]), model.encode(SENTENCES)
    assert one.shape == (32,) and rows.shape == (len(SENTENCES), 32)
    assert rows.dtype == np.float32
    assert np.allclose(rows[2], one, atol=1e-5)
    assert model.encode([]).shape == (0, 32)


def test_return_types(model):
    assert isinstance(model.encode(SENTENCES, convert_to_tensor=True), torch.Tensor)
    assert isinstance(model.encode(SENTENCES, convert_to_numpy=False), list)
    assert not model.encode(SENTENCES, convert_to_tensor=True).requires_grad


def test_truncation_comes_before_normalisation(model):
    short = model.encode(SENTENCES, truncate_dim=8, normalize_embeddings=True)
    assert short.shape[1] == 8
    assert np.allclose(np.linalg.norm(short, axis=1), 1, atol=1e-6)


def test_prompt_by_name_equals_the_prompt_itself_and_changes_the_embedding(model):
    by_name = model.encode(SENTENCES, prompt_name="sts")
    assert np.array_equal(by_name, model.encode(SENTENCES, prompt="similar: "))
    assert not np.allclose(by_name, model.encode(SENTENCES), atol=1e-3)
    with pytest.raises(ValueError, match="prompt_name: 'nothing' is unknown; the model has"):
        model.encode(SENTENCES, prompt_name="nothing")


def test_queries_and_documents_have_their_prompts_unless_another_is_given(model):
    assert np.array_equal(model.encode_query("cat"), model.encode("cat", prompt="query: "))
    assert np.array_equal(model.encode_document("cat"), model.encode("cat", prompt="passage: "))
    assert np.array_equal(model.encode_query("cat", prompt=""), model.encode("cat"))


def test_encoding_leaves_the_mode_of_every_module(model):
    model.train()
    model.pooler.eval()
    model.encode("cat")
    assert model.training and not model.pooler.training
    model.pooler.train()


def test_attention_of_one_call_wins_over_the_models_own(tiny_models, model):
    causal = tiny_ullme(tiny_models, attention="causal")
    assert np.array_equal(model.encode(SENTENCES, attention="causal"), causal.encode(SENTENCES))
    assert np.array_equal(causal.encode(SENTENCES, attention="bidirectional"), model.encode(SENTENCES))


def test_first_token_pooling_is_not_asked_to_look_causally(tiny_models):
    first = tiny_ullme(tiny_models, pooling="cls")
    with pytest.raises(ValueError, match="pooling: 'cls' pools the first token, which under causal attention"):
        first.encode(SENTENCES, attention="causal")
    assert first.encode(SENTENCES).shape == first.encode(SENTENCES, attention="bidirectional").shape


def test_a_value_that_is_no_string_is_named(model):
    with pytest.raises(ValueError, match=r"sentences\[1\]: int is not a string"):
        model.encode(["a", 3])


def test_similarity_is_cosine(model):
    a = model.encode(SENTENCES)
    assert torch.allclose(model.similarity(a, a).diagonal(), torch.ones(len(SENTENCES)), atol=1e-5)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"attention": "bidirectonal"}, "did you mean 'bidirectional'"),
        ({"truncate_dim": 0}, "truncate_dim: 0 leaves no"),
    ],
)
def test_options_that_mean_nothing_are_refused(model, option, message):
    with pytest.raises(ValueError, match=message):
        model.encode(SENTENCES, **option)
