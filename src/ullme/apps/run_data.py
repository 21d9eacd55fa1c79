"""A run's data: its rows, its batches, and the original LLM's likelihoods of them."""

from __future__ import annotations

import torch

from ullme import distributed
from ullme.apps.stages import original_model, require_dropout, token_masking
from ullme.config import RunConfig
from ullme.data import PairCollator, PairDataset, PairLoader, PairStream, load_pairs, stream_pairs, train_loader
from ullme.models import ULLME
from ullme.objectives import needs_of
from ullme.prompts import TextTokenizer
from ullme.trainer import ReferenceTable, compute_reference

REFERENCE_FOLDER = "reference"


def load_training_pairs(config: RunConfig) -> PairDataset | PairStream:
    """The run's training data; of a stream the first rows of each source are checked now, the others when they come.

    Raises:
        ValueError: a source cannot be read, no row has the negatives that an objective needs, or nothing tells a text
            from itself where it is its own positive.
    """
    dataset = stream_pairs(config.data.train) if config.data.streaming else load_pairs(config.data.train)
    known = dataset.head() if isinstance(dataset, PairStream) else dataset
    if config.needs_negatives:
        known.require_negatives(f"the objective {config.needs_negatives[0]!r} needs them")
    require_own_negatives(config, known)
    require_scores(config, known)
    require_dropout(config, known)
    return dataset


def require_own_negatives(config: RunConfig, dataset: PairDataset) -> None:
    """Raise if a contrast finds no negatives in a source, neither those of its rows nor those of its batches.

    Raises:
        ValueError: names the source and what leaves it without.
    """
    contrasts = [o for o in config.objectives if o.couples_batch and o.weight]
    negatives_N = dataset.negatives_N()
    for source, name, rows in zip(config.data.train, dataset.sources, dataset.source_rows(), strict=True):
        none = "its rows bring no negatives" if not negatives_N[rows.start : rows.stop].any() else ""
        none = "data.negatives_per_query is 0" if config.data.negatives_per_query == 0 else none
        for contrast in contrasts:
            lacking = none if getattr(contrast, "hard_negatives", True) else "hard_negatives is false"
            if lacking and not (source.in_batch_negatives and getattr(contrast, "in_batch_negatives", True)):
                raise ValueError(
                    f"{name}: in_batch_negatives: is false, and {lacking}, so {contrast.type} has nothing to tell a "
                    "positive from; let it have one or the other"
                )


def require_scores(config: RunConfig, dataset: PairDataset) -> None:
    """Raise if an objective learns from a teacher's scores and a row has none.

    Raises:
        ValueError: names the first such row.
    """
    learning = [objective.type for objective in config.objectives if "teacher" in objective.needs]
    if learning:
        dataset.require_scores(f"the objective {learning[0]!r} learns from them")


def build_collator(config: RunConfig, tokenizer: TextTokenizer) -> PairCollator:
    """How the run's rows become batches."""
    data = config.data
    return PairCollator(
        tokenizer,
        data.negatives_per_query,
        data.positives_per_query,
        generation="logp" in needs_of(config.objectives),
        query_prompt=config.model.prompts.get("query", ""),
        passage_prompt=data.passage_prompt,
        choice=data.choice,
        seed=config.trainer.seed,
        masking=token_masking(config, tokenizer.tokenizer),
    )


def evaluation_collator(config: RunConfig, tokenizer: TextTokenizer) -> PairCollator:
    """How held-out rows become batches: as in training, with what is diagnosed besides."""
    collator = build_collator(config, tokenizer)
    collator.generation = collator.generation or bool(config.trainer.rank_agreement)
    return collator


def build_loader(config: RunConfig, dataset: PairDataset | PairStream, tokenizer: TextTokenizer) -> PairLoader:
    """The batches that the run sees, this process's rows of each."""
    data, trainer = config.data, config.trainer
    return train_loader(
        dataset,
        build_collator(config, tokenizer),
        trainer.per_device_train_batch_size * distributed.world_size(),
        seed=trainer.seed,
        drop_last=data.drop_last,
        one_source=data.one_source,
        unique_texts=data.unique_texts,
        shuffle_rows=data.shuffle_rows,
        num_workers=trainer.dataloader_num_workers,
    )


def precomputed_reference(
    config: RunConfig,
    model: ULLME,
    dataset: PairDataset | PairStream,
    held_out: PairDataset | None,
    device: torch.device,
) -> ReferenceTable | None:
    """The original LLM's likelihoods of all that the run reads, if it wants them computed before training.

    The model must be as it was built: a resumed run takes its weights from the checkpoint later.

    Raises:
        ValueError: what an earlier call left in the run's folder was computed for something else.
    """
    if config.reference != "precomputed":
        return None
    assert isinstance(dataset, PairDataset), "a stream's reference is live: RunConfig refuses the other"
    data, trainer = config.data, config.trainer
    first_only = data.choice == "first"
    return compute_reference(
        original_model(config, model),
        {"train": dataset} if held_out is None else {"train": dataset, "eval": held_out},
        trainer.output_dir / REFERENCE_FOLDER,
        positives_per_query=data.positives_per_query if first_only else None,
        negatives_per_query=data.negatives_per_query if first_only else None,
        autocast=torch.bfloat16 if trainer.bf16 else torch.float16 if trainer.fp16 else None,
        device=None if config.model.device_map else device,
    )
