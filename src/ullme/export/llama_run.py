"""Embeds texts with llama.cpp, as a program of its own: it aborts its process where it cannot run a model.

``python llama_run.py FILE TOKENS`` reads a JSON list of texts and writes ``{"ids": [...], "embeddings": [...]}``.
"""

from __future__ import annotations

import json
import sys


def main(file: str, tokens: int) -> None:
    """Embed the texts of stdin, each by itself, with what the file says of attention and pooling."""
    from llama_cpp import Llama

    # Bidirectional attention needs a whole text in one physical batch.
    llama = Llama(file, embedding=True, n_ctx=tokens, n_batch=tokens, n_ubatch=tokens, verbose=False)
    texts = json.load(sys.stdin)
    ids = [llama.tokenize(text.encode(), add_bos=True, special=True) for text in texts]
    fitting = [text if len(i) <= tokens else "" for text, i in zip(texts, ids, strict=True)]
    embeddings = [llama.embed(text, normalize=True) if text else None for text in fitting]
    json.dump({"ids": ids, "embeddings": embeddings}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
