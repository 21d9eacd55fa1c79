"""Training: transformers' Trainer with ullme's step, and the paper's facade over it."""

from __future__ import annotations

from ullme.trainer.arguments import EmbeddingTrainingArguments, training_arguments
from ullme.trainer.embedding import EmbeddingTrainer
from ullme.trainer.facade import GradCacheTrainer
from ullme.trainer.plots import plot_losses

__all__ = [
    "EmbeddingTrainer",
    "EmbeddingTrainingArguments",
    "GradCacheTrainer",
    "plot_losses",
    "training_arguments",
]
