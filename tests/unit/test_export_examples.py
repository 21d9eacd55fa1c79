"""The examples search an exported model through LangChain and LlamaIndex, with the embeddings of the model itself."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import tiny_ullme
from ullme.export import export_sentence_transformers

EXAMPLES = Path(__file__).parents[2] / "examples"
QUERY = "Which function parses JSON?"


def example(name: str, package: str, extra: str):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install 'ullme[{extra}]'")
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def model(tmp_path):
    return tiny_ullme(tmp_path, lora_name="a", prompts={"query": "Find.\n"})


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("langchain_search", "langchain_huggingface", "langchain"),
        ("llamaindex_search", "llama_index.embeddings.huggingface", "llamaindex"),
    ],
)
def test_example_embeds_and_ranks_as_the_model(model, tmp_path, monkeypatch, name, package, extra):
    monkeypatch.setenv("LLAMA_INDEX_CACHE_DIR", str(tmp_path / "cache"))
    module = example(name, package, extra)
    path = str(export_sentence_transformers(model, tmp_path / "exported"))
    embed = module.embeddings(path)
    query = embed.embed_query(QUERY) if extra == "langchain" else embed.get_query_embedding(QUERY)
    ours = model.encode_query(QUERY)
    theirs = np.array(query) * (np.linalg.norm(ours) if extra == "llamaindex" else 1)  # LlamaIndex normalises
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
    scores = model.similarity(ours, model.encode_document(module.PASSAGES))[0]
    assert module.search(path, QUERY, k=3) == [module.PASSAGES[i] for i in scores.argsort(descending=True)]
