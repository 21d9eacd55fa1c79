"""Training: transformers' Trainer with ullme's step, and the paper's facade over it."""

from __future__ import annotations

from ullme.trainer.arguments import EmbeddingTrainingArguments, training_arguments
from ullme.trainer.embedding import EmbeddingTrainer
from ullme.trainer.facade import GradCacheTrainer
from ullme.trainer.plots import plot_curves, plot_losses
from ullme.trainer.reference import compute_reference
from ullme.trainer.reference_table import ReferenceTable

__all__ = [
    "EmbeddingTrainer",
    "EmbeddingTrainingArguments",
    "GradCacheTrainer",
    "ReferenceTable",
    "compute_reference",
    "plot_curves",
    "plot_losses",
    "training_arguments",
]
