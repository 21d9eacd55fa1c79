"""What the unit tests of evaluation share."""

from __future__ import annotations

import numpy as np

from tests.mteb_folders import WORDS
from ullme.eval import evaluate


class Recorder:
    """An embedder that remembers what it was given; texts that share a word are near each other."""

    def __init__(self, name: str = "recorder", keep: bool = True) -> None:
        self.name = name
        self.calls: list[tuple[list[str], str]] = []
        if keep:
            self.fingerprint = lambda: name

    def encode(self, texts: list[str], prompt: str = "") -> np.ndarray:
        self.calls.append((list(texts), prompt))
        seen = [[float(w in t.lower()) for w in WORDS] for t in texts]
        return np.array(seen, dtype=np.float32) + 1e-3


def scored_folder(model, options):
    """Where the results of a model on BIOSSES are kept."""
    return evaluate(model, "BIOSSES", **options).folder
