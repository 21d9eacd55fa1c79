"""A run file carried out: data, model and objectives to a trained model in a folder, resumed where it stopped."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.trainer_utils import set_seed

from ullme import distributed
from ullme.apps.run_data import (
    build_loader,
    evaluation_collator,
    load_training_pairs,
    precomputed_reference,
    require_scores,
)
from ullme.apps.run_folder import MODEL_FOLDER, folder_to_oneself, require_own_folder
from ullme.apps.run_record import recorded
from ullme.config import RunConfig
from ullme.config.training_choices import require_installed
from ullme.data import PairDataset, PairLoader, PairStream, load_pairs
from ullme.models import ULLME
from ullme.trainer import EmbeddingTrainer, EmbeddingTrainingArguments, plot_curves
from ullme.trainer.signals import StopOnSignal

logger = logging.getLogger(__name__)

SCORES_FILE = "scores.md"
CURVES_FILE = "curves.png"

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
    """Carry out a run, from its last whole checkpoint if it was interrupted.

    Its folder gets ``run.yaml`` (the resolved run file), ``calls.json`` (rows, machine, versions), checkpoints, logs,
    their picture in ``curves.png``, the trained model in ``model/``, if the run asks for an evaluation ``scores.md``,
    and if it needs them the likelihoods under the original LLM in ``reference/``. All that can be wrong is found before
    the folder is touched.

    A process that is killed, at any moment, loses what came after the last checkpoint and nothing else. SIGTERM and
    SIGINT save one after the step that they come in; a second one ends the process at once.

    Raises:
        ValueError: the folder holds something else or another run, another command trains in it, every checkpoint in it
            is damaged, the disk is full, a package that the run needs is not installed, or data, model or objectives do
            not fit.
        TrainingStopped: a signal ended the training; uncaught, it ends the process with 143 (SIGTERM) or 130 (SIGINT).
    """
    require_own_folder(config)
    require_installed(config.trainer.optim, config.trainer.report_to)
    require_known_tasks(config)
    dataset = load_training_pairs(config)
    held_out = load_pairs(config.data.eval) if config.data.eval else None
    if held_out is not None:
        require_scores(config, held_out)
    warn_of_rounding(config)
    set_seed(config.trainer.seed)  # a new adapter starts from random numbers
    model = ULLME(**config.model.settings().to_dict())
    arguments = training_arguments(config)  # joins the other processes, among which the loader shares its rows
    loader = build_loader(config, dataset, model.text_tokenizer)
    with folder_to_oneself(config):
        return _trained(config, model, arguments, loader, dataset, held_out)


def _trained(
    config: RunConfig,
    model: ULLME,
    arguments: EmbeddingTrainingArguments,
    loader: PairLoader,
    dataset: PairDataset | PairStream,
    held_out: PairDataset | None,
) -> TrainedRun:
    """The model that training from the last whole checkpoint leads to, saved, scored and drawn in the run's folder."""
    folder = config.trainer.output_dir
    stop = StopOnSignal()
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
        callbacks=[stop],
    )
    with recorded(config, dataset, held_out, arguments.device), stop.listening():
        trainer.train(resume_from_checkpoint=True)
    stop.raise_if_stopped(trainer.state, folder)
    model.eval()
    if distributed.rank() == 0:
        model.save_pretrained(folder / MODEL_FOLDER)
        draw(trainer.state.log_history, folder / CURVES_FILE)
        score(config, model)
    return TrainedRun(model, folder / MODEL_FOLDER, trainer.state.log_history)


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


def warn_of_rounding(config: RunConfig) -> None:
    """Say so where the weights that are trained are held in half precision, in which most small changes are lost."""
    model = config.model
    if model.dtype in ("bfloat16", "float16") and not model.settings().has_adapter:
        logger.warning(
            "model.dtype: all weights are trained and held in %s, in which an update far smaller than its weight is "
            "lost; set model.dtype to float32 with trainer.bf16: true, or add model.lora",
            model.dtype,
        )


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
