"""Search with LlamaIndex in an exported model.

    python examples/llamaindex_search.py EXPORTED "your query"

LlamaIndex's class loads the directory with sentence-transformers, so that attention, pooling and prompts come along.
It always normalises. Install: pip install 'ullme[llamaindex]'
"""

import json
import sys
from pathlib import Path

from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.embeddings.huggingface import HuggingFaceEmbedding

PASSAGES = [
    "open(path) returns a file object, from which you can read.",
    "json.loads(text) parses a JSON document.",
    "sorted(items) returns a new sorted list.",
]


def embeddings(exported: str) -> HuggingFaceEmbedding:
    """The exported model, with its prompts; without them the class would write prompts of its own."""
    prompts = json.loads((Path(exported) / "config_sentence_transformers.json").read_text())["prompts"]
    return HuggingFaceEmbedding(
        model_name=exported, query_instruction=prompts["query"], text_instruction=prompts["document"]
    )


def search(exported: str, query: str, k: int = 1) -> list[str]:
    """The passages nearest to a query."""
    nodes = [TextNode(text=text) for text in PASSAGES]
    index = VectorStoreIndex(nodes, embed_model=embeddings(exported))
    return [found.node.get_content() for found in index.as_retriever(similarity_top_k=k).retrieve(query)]


if __name__ == "__main__":
    print("\n".join(search(sys.argv[1], sys.argv[2], k=3)))
