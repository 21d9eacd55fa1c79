"""Search with LangChain in an exported model.

    python examples/langchain_search.py EXPORTED "your query"

LangChain's class loads the directory with sentence-transformers, so that attention, pooling and prompts come along.
Install: pip install 'ullme[langchain]'
"""

import sys

from langchain_core.vectorstores import InMemoryVectorStore
from langchain_huggingface import HuggingFaceEmbeddings

PASSAGES = [
    "open(path) returns a file object, from which you can read.",
    "json.loads(text) parses a JSON document.",
    "sorted(items) returns a new sorted list.",
]


def embeddings(exported: str) -> HuggingFaceEmbeddings:
    """The exported model; queries take its prompt named query, passages that named document."""
    return HuggingFaceEmbeddings(
        model_name=exported,
        encode_kwargs={"prompt_name": "document"},
        query_encode_kwargs={"prompt_name": "query"},
    )


def search(exported: str, query: str, k: int = 1) -> list[str]:
    """The passages nearest to a query."""
    store = InMemoryVectorStore.from_texts(PASSAGES, embeddings(exported))
    return [document.page_content for document in store.similarity_search(query, k=k)]


if __name__ == "__main__":
    print("\n".join(search(sys.argv[1], sys.argv[2], k=3)))
