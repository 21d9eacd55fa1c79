"""Corpora on disk: texts to shards of embeddings, at flat memory, continued where a run was killed.

``encode_corpus`` writes one, ``EmbeddedCorpus`` reads it, ``nearest`` searches it; the command is ``ullme encode``.
"""

from __future__ import annotations

from ullme.encode.corpus import EmbeddedCorpus
from ullme.encode.job import EncodeOptions
from ullme.encode.nearest import nearest
from ullme.encode.run import Progress, encode_corpus
from ullme.encode.source import TextSource

__all__ = ["EmbeddedCorpus", "EncodeOptions", "Progress", "TextSource", "encode_corpus", "nearest"]
