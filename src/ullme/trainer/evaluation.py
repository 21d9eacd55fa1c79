"""Evaluation during training: the objectives' losses on held-out pairs, and an evaluator's metrics."""

from __future__ import annotations

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
from ullme.trainer.checkpoints import CheckpointTrainer
from ullme.trainer.reference_table import ReferenceTable
from ullme.types import Batch, Need, ObjectiveInputs, PairExample

Evaluator = Callable[[ULLME], Mapping[str, float]]
EvalData = Sequence[PairExample] | PairDataset


class EvaluatingTrainer(CheckpointTrainer):
    """A Trainer whose evaluation reports each objective, and an evaluator's metrics beside them."""

    objectives: dict[str, Objective]
    needs: frozenset[Need]
    measures: frozenset[Need]
    evaluator: Evaluator | None
    reference: ReferenceTable | None
    chunk_tokens: int

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The losses on the evaluation set(s) and the evaluator's metrics; training's random numbers stay untouched.

        Returns:
            ``eval_loss`` (weighted), ``eval_<objective>_loss``, with several sets ``eval_<set>_loss`` and so on, and
            ``eval_<metric>``.
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
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            for name, rows in sets.items():
                prefix = f"{metric_key_prefix}_{name}" if name else metric_key_prefix
                metrics |= {f"{prefix}_{key}": value for key, value in self._mean_losses(model, rows).items()}
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
                forward=partial(self._forward, model),
                measure=partial(self._measure, model) if self.measures else None,
                objectives=self.objectives,
                chunk_tokens=self.chunk_tokens,
            )

    def _mean_losses(self, model: nn.Module, rows: EvalData) -> dict[str, float]:
        """Means over the set's queries, each batch by itself; batches are dealt over the ranks."""
        size = self.args.eval_batch_size
        starts = list(range(0, len(rows), size))
        if not starts:
            return {}
        self.callback_handler.eval_dataloader = starts[distributed.rank() :: distributed.world_size()]
        sum_N = torch.zeros(len(self.objectives), dtype=torch.float64, device=self.args.device)
        for start in self.callback_handler.eval_dataloader:
            collate: Any = self.data_collator
            batch = collate([rows[i] for i in range(start, min(start + size, len(rows)))])
            found = self._losses(model, batch).loss_B
            sum_N += torch.stack([found[name].double().sum() for name in self.objectives])
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        mean_N = (distributed.global_sum(sum_N, self.args.device) / len(rows)).tolist()
        total = sum(term.weight * mean for term, mean in zip(self.objectives.values(), mean_N, strict=True))
        return {"loss": total} | {f"{name}_loss": mean for name, mean in zip(self.objectives, mean_N, strict=True)}

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

    def _forward(self, model: nn.Module, batch: Batch) -> ObjectiveInputs:
        """All that the objectives need of a chunk, in one forward of the module."""
        return model(batch=batch, needs=self.needs)

    def _measure(self, model: nn.Module, batch: Batch) -> ObjectiveInputs:
        """What sums over the batch need of a chunk; in eval mode, so that dropout does not enter them."""
        with eval_mode(model):
            return model(batch=batch, needs=self.measures)
