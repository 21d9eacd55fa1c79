"""A run file carried out: data, model and objectives to a trained model in a folder, resumed where it stopped."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import get_last_checkpoint, set_seed

from ullme import distributed
from ullme.apps.stages import original_model, require_dropout, token_masking
from ullme.config import RunConfig, read_run_file
from ullme.data import PairCollator, PairDataset, PairLoader, load_pairs, train_loader
from ullme.models import ULLME
from ullme.objectives import needs_of
from ullme.prompts import TextTokenizer
from ullme.trainer import EmbeddingTrainer, EmbeddingTrainingArguments, ReferenceTable, compute_reference, plot_curves

RUN_FILE = "run.yaml"
MODEL_FOLDER = "model"
SCORES_FILE = "scores.md"
CURVES_FILE = "curves.png"
REFERENCE_FOLDER = "reference"

#: What may differ when a run is resumed: how long, how often and how fast, but not what is learned from what.
FREE_ON_RESUME = frozenset(
    f"trainer.{name}"
    for name in (
        "num_train_epochs max_steps chunk_tokens per_device_eval_batch_size gradient_checkpointing logging_steps "
        "save_steps save_total_limit eval_steps report_to run_name use_cpu dataloader_num_workers resume output_dir "
        "rank_agreement"
    ).split()
)

#: Keys of the trainer section that are ours and no training arguments.
_OWN_KEYS = {"chunk_tokens", "rank_agreement", "reference", "resume", "eval_steps", "gradient_checkpointing"}


@dataclass(frozen=True)
class TrainedRun:
    """What a run left.

    Attributes:
        model: the trained model, in eval mode.
        folder: where it is saved.
        history: the trainer's log: a mapping per logged step.
    """

    model: ULLME
    folder: Path
    history: list[dict[str, Any]]


def train(config: RunConfig) -> TrainedRun:
    """Carry out a run, from its last checkpoint if it was interrupted.

    Its folder gets ``run.yaml`` (the resolved run file), checkpoints, logs, their picture in ``curves.png``, the
    trained model in ``model/``, if the run asks for an evaluation ``scores.md``, and if it needs them the likelihoods
    under the original LLM in ``reference/``. All that can be wrong is found before the folder is touched.

    Raises:
        ValueError: the folder holds something else or another run, or data, model or objectives do not fit.
    """
    folder = config.trainer.output_dir
    last = resume_point(config)
    require_known_tasks(config)
    dataset = load_training_pairs(config)
    held_out = load_pairs(config.data.eval) if config.data.eval else None
    if held_out is not None:
        require_scores(config, held_out)
    set_seed(config.trainer.seed)  # a new adapter starts from random numbers
    model = ULLME(**config.model.settings().to_dict())
    arguments = training_arguments(config)  # joins the other processes, among which the loader shares its rows
    loader = build_loader(config, dataset, model.text_tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    if distributed.rank() == 0:
        config.save(folder / RUN_FILE)
    trainer = EmbeddingTrainer(
        model,
        config.objectives,
        arguments,
        train_loader=loader,
        eval_dataset=held_out,
        data_collator=evaluation_collator(config, model.text_tokenizer) if held_out is not None else None,
        reference=precomputed_reference(config, model, dataset, held_out, arguments.device),
        rank_agreement=config.trainer.rank_agreement,
        chunk_tokens=config.trainer.chunk_tokens,
    )
    trainer.train(resume_from_checkpoint=last)
    model.eval()
    if distributed.rank() == 0:
        model.save_pretrained(folder / MODEL_FOLDER)
        draw(trainer.state.log_history, folder / CURVES_FILE)
        score(config, model)
    return TrainedRun(model, folder / MODEL_FOLDER, trainer.state.log_history)


def load_training_pairs(config: RunConfig) -> PairDataset:
    """The run's training data.

    Raises:
        ValueError: a source cannot be read, no row has the negatives that an objective needs, or nothing tells a text
            from itself where it is its own positive.
    """
    dataset = load_pairs(config.data.train)
    if config.needs_negatives:
        dataset.require_negatives(f"the objective {config.needs_negatives[0]!r} needs them")
    require_scores(config, dataset)
    require_dropout(config, dataset)
    return dataset


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


def build_loader(config: RunConfig, dataset: PairDataset, tokenizer: TextTokenizer) -> PairLoader:
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
        num_workers=trainer.dataloader_num_workers,
    )


def precomputed_reference(
    config: RunConfig, model: ULLME, dataset: PairDataset, held_out: PairDataset | None, device: torch.device
) -> ReferenceTable | None:
    """The original LLM's likelihoods of all that the run reads, if it wants them computed before training.

    The model must be as it was built: a resumed run takes its weights from the checkpoint later.

    Raises:
        ValueError: what an earlier call left in the run's folder was computed for something else.
    """
    if config.reference != "precomputed":
        return None
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


def training_arguments(config: RunConfig) -> EmbeddingTrainingArguments:
    """The trainer section as Transformers' arguments."""
    trainer = config.trainer
    same = {name: value for name, value in trainer if name not in _OWN_KEYS}
    return EmbeddingTrainingArguments(
        **{**same, "output_dir": str(trainer.output_dir)},
        activation_checkpointing=trainer.gradient_checkpointing,
        eval_strategy="steps" if config.data.eval else "no",
        eval_steps=trainer.eval_steps or trainer.save_steps,
    )


def resume_point(config: RunConfig) -> str | None:
    """The last checkpoint of the run in its folder; None where it starts.

    Raises:
        ValueError: the folder cannot be one, is in use by something else, or by a run that learns something else.
    """
    folder = config.trainer.output_dir
    _require_writable(folder)
    if not folder.exists() or not any(folder.iterdir()):
        return None
    kept = folder / RUN_FILE
    name = f"trainer.output_dir: {str(folder)!r}"
    if not kept.is_file():
        raise ValueError(f"{name} is not empty and holds no run; name a new folder or empty this one")
    if not config.trainer.resume:
        raise ValueError(f"{name} holds a run and trainer.resume is false; name a new folder, or set it to true")
    for key, before, now in _differences(read_run_file(kept), config):
        raise ValueError(
            f"{name} holds a run with {key}={before!r}, and this one has {now!r}; name a new folder, or set {key} back"
        )
    return get_last_checkpoint(str(folder))


def require_known_tasks(config: RunConfig) -> None:
    """Raise if the run asks for an evaluation that does not exist, before it trains for it.

    Raises:
        ValueError: an unknown task, benchmark or language.
    """
    asked = config.eval
    if asked.asked:
        from ullme.eval import select_tasks

        select_tasks(
            asked.tasks,
            asked.benchmarks,
            task_types=asked.task_types,
            languages=asked.languages,
            hf_subsets=asked.hf_subsets,
            eval_splits=asked.eval_splits,
        )


def draw(history: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Draw what a run logged; a run shorter than ``logging_steps`` logged no loss and gets no picture."""
    history = list(history)
    if any("loss" in entry for entry in history):
        plot_curves(history, path)


def score(config: RunConfig, model: ULLME) -> None:
    """Score the trained model on the tasks that the run names, and write the table beside it."""
    if not config.eval.asked:
        return
    from ullme.eval import evaluate

    results = evaluate(model, **dict(config.eval))
    (config.trainer.output_dir / SCORES_FILE).write_text(results.to_markdown(), encoding="utf-8")


def _require_writable(folder: Path) -> None:
    """Raise unless the folder is there, or can be made, and files can be put into it."""
    place = folder
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise ValueError(f"trainer.output_dir: {str(folder)!r} cannot be made, {str(place)!r} is a file; name another")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"trainer.output_dir: {str(folder)!r} cannot be written; name another or change its owner")


def _differences(before: RunConfig, now: RunConfig) -> Iterator[tuple[str, Any, Any]]:
    """The dotted keys, with both values, in which two runs learn something else."""
    old, new = _flat(before.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    for key in sorted(old.keys() | new.keys()):
        watched = key not in FREE_ON_RESUME and not key.startswith(("eval.", "data.eval"))
        if watched and old.get(key) != new.get(key):
            yield key, old.get(key), new.get(key)


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one mapping with dotted keys."""
    if not isinstance(value, dict | list):
        return {key: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {k: v for name, inner in items for k, v in _flat(inner, f"{key}.{name}".lstrip(".")).items()}
