"""Small runs for tests of training."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tests.tiny import tiny_folder, tiny_ullme
from ullme.data import PairCollator, PairDataset
from ullme.models import ULLME
from ullme.trainer import EmbeddingTrainer, ReferenceTable, compute_reference, training_arguments
from ullme.types import PairExample

WORDS = "cat dog tree house river stone cloud bread night music road light".split()


def pairs(count: int = 24, negatives: int = 2) -> PairDataset:
    """Queries that share a word with their positive and none with their negatives."""
    examples = []
    for i in range(count):
        word, other, third = (WORDS[(i + k) % len(WORDS)] for k in (0, 3, 7))
        wrong = (f"a {other} of number {i}", f"some {third} under {i + 1}")[:negatives]
        examples.append(PairExample(f"{word} {i}?", (f"the {word} that is called {i}",), wrong))
    return PairDataset.from_examples(examples)


def tiny_model(folder: Path, **settings) -> ULLME:
    settings = {"lora_name": "test", "lora_r": 4, "lora_dropout": 0.1, **settings}
    if not (folder / "llama").exists():
        tiny_folder(folder / "llama")
    torch.manual_seed(7)  # the adapter's first values
    return tiny_ullme(folder, **settings)


def trainer(folder: Path, model: ULLME, objectives="grl", dataset: PairDataset | None = None, **options):
    """A trainer on the CPU that logs every step and saves nothing unless told to."""
    own = ("eval_dataset", "evaluator", "chunk_tokens", "train_loader", "callbacks", "reference", "optimizers")
    given = {name: options.pop(name) for name in own if name in options}
    values = {
        "output_dir": str(folder / "run"),
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "per_device_train_batch_size": 6,
        "learning_rate": 1e-2,
        "disable_tqdm": True,
        "max_steps": 6,
        **options,
    }
    return EmbeddingTrainer(
        model,
        objectives,
        training_arguments(**values),
        train_dataset=pairs() if dataset is None else dataset,
        data_collator=PairCollator(model.text_tokenizer, generation=True),
        **given,
    )


#: Settings of a model whose own weights are trained.
FULL = {"lora_name": None, "lora_r": 16, "lora_dropout": 0.0}


def computed_reference(model: ULLME, folder: Path, data, **options) -> ReferenceTable:
    """The reference's likelihoods in ``folder / "reference"``, in files of seven texts."""
    options = {"shard_texts": 7, "show_progress_bar": False, **options}
    return compute_reference(model, data, folder / "reference", **options)


def weights(model: ULLME) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
