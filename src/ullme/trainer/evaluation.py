"""Evaluation during training: the objectives' losses on held-out pairs, diagnostics, and an evaluator's metrics."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.trainer_utils import speed_metrics

from ullme import distributed
from ullme.data import PairDataset, with_mismatched
from ullme.gradcache import StepResult, batch_losses
from ullme.models import ULLME
from ullme.models.modes import eval_mode
from ullme.objectives import Objective
from ullme.trainer.diagnostics import BOTH_SPACES, diagnostics_of, sums
from ullme.trainer.reference_table import ReferenceTable
from ullme.trainer.sharded import ShardingTrainer
from ullme.types import Batch, Need, ObjectiveInputs, PairExample

Evaluator = Callable[[ULLME], Mapping[str, float]]
EvalData = Sequence[PairExample] | PairDataset

#: Row ids that an error names.
SHOWN_ROWS = 10


class EvaluatingTrainer(ShardingTrainer):
    """A Trainer whose evaluation reports each objective, and diagnostics and an evaluator's metrics beside them."""

    objectives: dict[str, Objective]
    needs: frozenset[Need]
    measures: frozenset[Need]
    evaluator: Evaluator | None
    reference: ReferenceTable | None
    rank_agreement: bool | None
    chunk_tokens: int

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The losses on the evaluation set(s) and the evaluator's metrics; training's random numbers stay untouched.

        What a collator samples or hides of a row is that of epoch 0, whatever epoch training is in.

        Returns:
            ``eval_loss`` (weighted), ``eval_<objective>_loss``, with several sets ``eval_<set>_loss`` and so on, and
            ``eval_<metric>``. Beside them ``eval_rank_agreement`` between the two spaces, where likelihoods are
            computed ``eval_logp_gap`` and ``eval_mean_logp_gap`` between positive and negatives, and where a reference
            is ``eval_reward_margin`` and ``eval_reward_accuracy``; ``ullme.trainer.diagnostics`` defines each.

        Raises:
            ValueError: a loss, or what it is made of, is NaN or infinite; the message names the rows.
        """
        start = time.time()
        own: Any = self.eval_dataset
        chosen = own if eval_dataset is None else eval_dataset
        chosen = own[chosen] if isinstance(chosen, str) else chosen
        sets: Mapping[str, EvalData] = chosen if isinstance(chosen, Mapping) else {"": chosen or []}
        devices = [torch.cuda.current_device()] if self.args.device.type == "cuda" else []
        metrics: dict[str, float] = {}
        model: Any = self.model
        model.eval()
        self._use_averaged_weights()
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            for name, rows in sets.items():
                prefix = f"{metric_key_prefix}_{name}" if name else metric_key_prefix
                metrics |= {f"{prefix}_{key}": value for key, value in self._means(model, rows).items()}
            metrics |= {f"{metric_key_prefix}_{key}": value for key, value in self._evaluator_metrics().items()}
        metrics |= speed_metrics(metric_key_prefix, start)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The weighted mean loss of one batch by itself, without gradient; training goes through training_step."""
        result = self._losses(model, inputs)
        if not result.finite:
            raise not_finite("in evaluation", result.losses, result.rows_not_finite(inputs.row_ids))
        return (result.total, result.losses) if return_outputs else result.total

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The loss of one batch; there are no logits."""
        return self.compute_loss(model, inputs), None, None

    def _losses(self, model: nn.Module, batch: Batch) -> StepResult:
        batch = self._checked(batch)
        if "mismatched" in self.measures:
            batch = with_mismatched(batch, alone=True)
        batch = batch.to(self.args.device)
        with self.accelerator.autocast():
            return batch_losses(
                batch,
                forward=lambda chunk: model(batch=chunk, needs=self._watched),
                measure=partial(self._measure, model) if self.measures else None,
                objectives=self.objectives,
                # sharded weights: one forward on every rank, which itself bounds the tokens of a pass
                chunk_tokens=None if self.is_fsdp_enabled else self.chunk_tokens,
            )

    def _means(self, model: nn.Module, rows: EvalData) -> dict[str, float]:
        """Means over the set's queries, each batch by itself; batches are dealt over the ranks."""
        batches = self._dealt_batches(len(rows))
        if not batches:
            return {}
        self.callback_handler.eval_dataloader = batches
        figures = diagnostics_of(self._watched, self.rank_agreement)
        loss_N = torch.zeros(len(self.objectives), dtype=torch.float64, device=self.args.device)
        figure_N2 = loss_N.new_zeros(len(figures), 2)
        broken: list[str] = []
        collate = _held(self.data_collator)
        for chosen in batches:
            batch = collate([rows[i] for i in chosen or [0]])
            found = self._losses(model, batch)
            if not chosen:
                continue
            if not found.finite:  # the other batches still run: ranks stay in step, and every such row is named
                broken += found.rows_not_finite(batch.row_ids)
            loss_N += torch.stack([found.loss_B[name].double().sum() for name in self.objectives])
            assert found.inputs is not None
            figure_N2 += sums(figures, found.inputs)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        local_N = torch.cat([loss_N, figure_N2.flatten(), loss_N.new_tensor([len(broken)])])
        all_N = distributed.global_sum(local_N, self.args.device).tolist()
        losses = {name: value / len(rows) for name, value in zip(self.objectives, all_N, strict=False)}
        if all_N[-1]:
            raise not_finite(f"in evaluation after step {self.state.global_step}", losses, broken)
        pairs = zip(figures, all_N[len(losses) : -1 : 2], all_N[len(losses) + 1 : -1 : 2], strict=True)
        means = {name: value / count for name, value, count in pairs if count}
        total = sum(self.objectives[name].weight * value for name, value in losses.items())
        return {"loss": total} | {f"{name}_loss": value for name, value in losses.items()} | means

    def _dealt_batches(self, rows: int) -> list[range]:
        """This rank's batches of evaluation rows, by position.

        Where weights are sharded no rank can compute alone: as many on every rank, the last one of some empty. These
        compute any row and count none.
        """
        size, ranks = self.args.eval_batch_size, distributed.world_size()
        batches = [range(start, min(start + size, rows)) for start in range(0, rows, size)]
        missing = -len(batches) % ranks if self.is_fsdp_enabled else 0
        return [*batches, *[range(0)] * missing][distributed.rank() :: ranks]

    def _evaluator_metrics(self) -> dict[str, float]:
        """The evaluator's metrics, computed on the main process and known to all."""
        if self.evaluator is None:
            return {}
        found = [dict(self.evaluator(self._bare_model())) if distributed.rank() == 0 else {}]
        if distributed.is_distributed():
            dist.broadcast_object_list(found, src=0)
        return {name: float(value) for name, value in found[0].items()}

    def _checked(self, batch: Any) -> Batch:
        if not isinstance(batch, Batch):
            raise ValueError(
                f"train_loader: yields {type(batch).__name__}, not Batch; give it "
                "collate_fn=ullme.data.PairCollator(model.text_tokenizer)"
            )
        if "logp" in self.needs and batch.generation is None:
            wanting = [name for name, term in self.objectives.items() if "logp" in term.needs]
            raise ValueError(
                f"train_loader: its batches have no generation texts, which {', '.join(wanting)} need(s); "
                "build them with PairCollator(model.text_tokenizer, generation=True)"
            )
        if "teacher" in self.needs and batch.teacher_BP is None:
            wanting = [name for name, term in self.objectives.items() if "teacher" in term.needs]
            raise ValueError(
                f"train_loader: a row of {', '.join(batch.row_ids[:3])}, ... has no scores of a teacher, which "
                f"{', '.join(wanting)} need(s); give every PairExample scores"
            )
        if self.reference is None or batch.ref_logp_BP is not None:
            return batch
        return self.reference.filled(batch)

    @property
    def _watched(self) -> frozenset[Need]:
        """What evaluation computes: what the objectives need, and what is to be diagnosed besides."""
        return self.needs | BOTH_SPACES if self.rank_agreement else self.needs

    def _forward(self, model: nn.Module, batch: Batch) -> ObjectiveInputs:
        """All that the objectives need of a chunk, in one forward of the module."""
        with self.accelerator.autocast():  # accelerate puts it around the forward itself, but not with FSDP2
            return model(batch=batch, needs=self.needs)

    def _embed(self, model: nn.Module, batch: Batch) -> ObjectiveInputs:
        """The embeddings of a chunk alone."""
        with self.accelerator.autocast():
            return model(batch=batch, needs=("embedding",))

    def _measure(self, model: nn.Module, batch: Batch) -> ObjectiveInputs:
        """What sums over the batch need of a chunk; in eval mode, so that dropout does not enter them."""
        with eval_mode(model), self.accelerator.autocast():
            return model(batch=batch, needs=self.measures)


def _held(collator: Any) -> Any:
    """The collator at epoch 0: one that training also uses brings other texts of a row in every epoch."""
    if not callable(getattr(collator, "set_epoch", None)):
        return collator
    held = copy.copy(collator)
    held.set_epoch(0)
    return held


def not_finite(when: str, losses: Mapping[str, Any], rows: Sequence[str]) -> ValueError:
    """The error that names the rows of which something was NaN or infinite."""
    more = f" and {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else ""
    means = ", ".join(f"{name} {float(value):.4g}" for name, value in losses.items())
    return ValueError(
        f"loss: it, or what it is made of, is not finite {when} ({means}), rows "
        f"{', '.join(rows[:SHOWN_ROWS]) or 'of another process'}{more}; look at these rows, lower learning_rate, or "
        "train in bf16 or float32 instead of fp16"
    )
