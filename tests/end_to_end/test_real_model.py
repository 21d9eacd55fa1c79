"""A real LLM under the contract that tiny models prove elsewhere."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from ullme.models import ULLME
from ullme.models.packaged import converted, packaged_gguf

TEXTS = [
    "How do I parse a date?",
    "The capital of France is Paris, which lies on the Seine and has about two million inhabitants.",
    "Rain.",
]


@pytest.fixture(scope="module")
def model(real_model):
    return ULLME(real_model, "llama", lora_name="real", max_length=64).eval()


@pytest.fixture(scope="module")
def plain(real_model):
    return AutoModelForCausalLM.from_pretrained(converted(packaged_gguf(real_model)), dtype=torch.float32).eval()


def test_generation_equals_the_plain_model_bit_for_bit_with_cache_and_padding(model, plain):
    inputs = model.tokenizer(TEXTS, return_tensors="pt", padding=True, padding_side="left")
    model(**inputs)
    with torch.no_grad(), model.peft_model.disable_adapter():
        assert torch.equal(model(**inputs, is_generate=True).logits, plain(**inputs).logits)
    greedy = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(**inputs, **greedy), plain.generate(**inputs, **greedy))


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_embedding_is_the_same_alone_and_in_any_batch(model, attention):
    alone = np.stack([model.encode(text, attention=attention) for text in TEXTS])
    scale = np.abs(alone).max()
    for batch_size in (1, 32):
        together = model.encode(TEXTS, attention=attention, batch_size=batch_size)
        assert np.abs(together - alone).max() <= 1e-5 * scale


def test_likelihood_equals_that_of_the_plain_logits(model, plain):
    texts = model.text_tokenizer.generation(["What is the capital of France?"], ["Paris is the capital."])
    logp_N, tokens_N = model.score_texts(texts)
    ids = texts.ids_X[None]
    with torch.no_grad():
        logp = plain(ids).logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None]).squeeze()
    assert torch.allclose(logp_N[0], logp[-int(tokens_N[0]) :].sum(), rtol=1e-4)


def test_a_query_prefers_its_answer(model):
    passages = ["Paris is the capital of France.", "Photosynthesis turns light into sugar."]
    logp_N, tokens_N = model.score_texts(
        model.text_tokenizer.generation(["What is the capital of France?"] * 2, passages)
    )
    assert (logp_N / tokens_N).argmax() == 0
