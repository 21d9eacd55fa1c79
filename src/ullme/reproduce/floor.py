"""The floor of the tables: a bag of hashed words, which knows nothing of any language."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WIDTH = 4096


class BagOfWords:
    """Embeds a text as its words, hashed into ``WIDTH`` places with a sign, the logarithm of their counts, length 1.

    A model that is trained and scores below it has learned less than nothing.
    """

    name = "bag-of-words"

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings (N, D), float32; a text without words has zeros."""
        from sklearn.feature_extraction.text import HashingVectorizer
        from sklearn.preprocessing import normalize

        counts_ND = HashingVectorizer(n_features=WIDTH, norm=None, token_pattern=r"(?u)\b\w+\b").transform(texts)
        counts_ND.data = np.sign(counts_ND.data) * np.log1p(np.abs(counts_ND.data))
        return normalize(counts_ND).toarray().astype(np.float32)

    def fingerprint(self) -> str:
        """What tells it from another model."""
        return f"{self.name}-{WIDTH}"
