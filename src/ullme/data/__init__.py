"""Training pairs: sources to rows, rows to batches, hard negatives."""

from __future__ import annotations

from ullme.data.collator import PairCollator
from ullme.data.masking import TokenMasking
from ullme.data.mining import mine_negatives
from ullme.data.mismatched import with_mismatched
from ullme.data.sampler import PairBatchSampler, PairLoader, train_loader
from ullme.data.schema import PairDataset, check_pairs, load_pairs
from ullme.data.source import DataSource

__all__ = [
    "DataSource",
    "PairBatchSampler",
    "PairCollator",
    "PairDataset",
    "PairLoader",
    "TokenMasking",
    "check_pairs",
    "load_pairs",
    "mine_negatives",
    "train_loader",
    "with_mismatched",
]
