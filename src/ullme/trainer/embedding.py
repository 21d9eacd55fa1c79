"""EmbeddingTrainer: transformers' Trainer with ullme's step, evaluation and checkpoints in it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager, nullcontext
from functools import partial
from operator import itemgetter
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import TrainOutput

from ullme import distributed
from ullme.data import PairCollator, PairDataset, train_loader, with_mismatched
from ullme.data.loader import require_share_of_running
from ullme.gradcache import gradcache_step
from ullme.models import ULLME
from ullme.models.half import HalfWeights
from ullme.objectives import Objective, measures_of, named, needs_of, objectives_from
from ullme.trainer.arguments import RANK_TIMEOUT, training_arguments
from ullme.trainer.evaluation import EvalData, EvaluatingTrainer, Evaluator, not_finite
from ullme.trainer.freezing import only_reached_trainable
from ullme.trainer.liveness import watched
from ullme.trainer.reference import require_reference
from ullme.trainer.reference_table import ReferenceTable
from ullme.types import Batch

#: What each of accelerate's mixed precisions casts to.
AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

#: Tokens of one forward pass, unless told otherwise.
CHUNK_TOKENS = 8192


class EmbeddingTrainer(EvaluatingTrainer):
    """Trains a ULLME with any combination of objectives; everything else is ``transformers.Trainer``.

    Training data is ``train_loader``, this process's share of every batch (``ullme.data.train_loader`` makes one), or
    ``train_dataset`` with ``data_collator``. Evaluation reports the losses on ``eval_dataset``, each batch of
    ``per_device_eval_batch_size`` rows by itself, so that they do not depend on the number of processes, and whatever
    ``evaluator`` returns.

    Args:
        model: the model; moved to the training device.
        objectives: a preset's name, objectives, or mappings of a run file.
        args: training arguments; ``EmbeddingTrainingArguments`` has ullme's defaults.
        train_loader: yields ``Batch``; one of ``ullme.data.train_loader`` may be made before the training arguments.
            A list of batches or a DataLoader of one's own will do; one that draws its order at random cannot be resumed
            exactly, which is said.
        train_dataset: pairs, if no loader is given.
        data_collator: pairs to ``Batch``.
        eval_dataset: pairs, or several sets of them by name.
        evaluator: metrics of the model, called on the main process with the model in eval mode.
        reference: likelihoods under the original LLM (``compute_reference``); None takes the model without its adapter.
        rank_agreement: evaluate how alike retrieval scores and likelihoods rank passages; None does where objectives
            need both, True computes what they do not need (the collator then needs ``generation=True``).
        chunk_tokens: tokens of one forward pass; the gradient does not depend on it.
        callbacks: callbacks of the Trainer.
        optimizers: optimizer and schedule, made from ``args`` where None.

    Raises:
        ValueError: the arguments do not fit together; the message names the cure.
    """

    def __init__(
        self,
        model: ULLME,
        objectives: str | Iterable[Any] = "contrastive",
        args: TrainingArguments | None = None,
        *,
        train_loader: Iterable[Batch] | None = None,
        train_dataset: PairDataset | None = None,
        data_collator: PairCollator | None = None,
        eval_dataset: EvalData | Mapping[str, EvalData] | None = None,
        evaluator: Evaluator | None = None,
        reference: ReferenceTable | None = None,
        rank_agreement: bool | None = None,
        chunk_tokens: int = CHUNK_TOKENS,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        self.objectives: dict[str, Objective] = named(objectives_from(objectives))
        self.needs = needs_of(self.objectives.values())
        self.measures = measures_of(self.objectives.values())
        self.evaluator, self.chunk_tokens, self.train_loader = evaluator, chunk_tokens, train_loader
        require_reference(model, self.objectives, reference)
        self.reference, self.rank_agreement = reference, rank_agreement
        if chunk_tokens < 1:
            raise ValueError(f"chunk_tokens: {chunk_tokens} is less than 1; give the tokens of one forward pass")
        if (train_dataset is not None or eval_dataset is not None) and data_collator is None:
            raise ValueError("data_collator: is missing; give ullme.data.PairCollator(model.text_tokenizer)")
        if rank_agreement and isinstance(data_collator, PairCollator) and not data_collator.generation:
            raise ValueError("rank_agreement: True scores passages; give PairCollator(..., generation=True), or None")
        args = _own_arguments(args)
        distributed.require_joined()
        require_share_of_running(train_loader)
        use_cache = model.config.use_cache
        super().__init__(
            model=model,
            args=args,
            data_collator=cast(Any, data_collator),
            train_dataset=train_dataset,
            # the Trainer demands a set where it is to evaluate, and an evaluator may need none
            eval_dataset=[] if eval_dataset is None and evaluator is not None else eval_dataset,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.require_shardable(model, evaluator)
        model.config.use_cache = use_cache  # the Trainer switches it off, which would slow down generation for good
        self._loss_sums: dict[str, Tensor] = {}
        self._steps_summed = 0
        self._schedule_steps: int | None = None
        self._continuing = False
        self._half_weights: HalfWeights | None = None

    # ---- Training ----

    def get_train_dataloader(self) -> Any:
        """The loader at hand, or one over the dataset; each process gets its own rows of every batch."""
        if self.train_loader is not None:
            require_share_of_running(self.train_loader)
            return _loader_of(self.train_loader)
        if not isinstance(self.train_dataset, PairDataset):
            raise ValueError(
                "train_dataset: is missing or no PairDataset; give ullme.data.load_pairs(path), or a train_loader"
            )
        return train_loader(
            self.train_dataset,
            cast(PairCollator, self.data_collator),
            self.args.train_batch_size * distributed.world_size(),
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            drop_last=self.args.dataloader_drop_last,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=False,
        )

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as ``transformers.Trainer.train`` does; what no objective reaches is frozen meanwhile."""
        bare = self._bare_model()
        if self.args.activation_checkpointing:
            bare.gradient_checkpointing_enable(cast(Any, self.args.activation_checkpointing_kwargs))
            # the Trainer would call the method by names that only PreTrainedModel knows
            self.args.activation_checkpointing = self.args.gradient_checkpointing = False
        with only_reached_trainable(bare, self.needs):
            self._half_weights = self._halved(bare)
            try:
                with watched(getattr(self.args, "rank_timeout", RANK_TIMEOUT)), self._sharding():
                    result = super().train(*args, **kwargs)
                    self._use_averaged_weights()
                    return result
            finally:
                self._half_weights = None
                self._unwrap()

    def fit_epoch(self, train_loader: Iterable[Batch], planned_epochs: int = 1) -> TrainOutput:
        """Train one more epoch; optimizer, schedule, step count and logs carry on from the last call.

        The schedule spans ``planned_epochs`` epochs as long as the first one.
        """
        if not isinstance(train_loader, Sized):
            raise ValueError("train_loader: has no length; give a DataLoader with a sampler, or a list of batches")
        if self.is_fsdp_enabled:
            raise ValueError("fsdp: is on, and the optimizer ends with the shards of a run; call train() once instead")
        steps = len(train_loader)
        self._schedule_steps = self._schedule_steps or steps * planned_epochs
        self._continuing, self._created_lr_scheduler = self.optimizer is not None, False
        self.train_loader = train_loader
        self.args.max_steps = (self.state.global_step if self._continuing else 0) + steps
        try:
            return self.train()
        finally:
            self._continuing = False

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The learning-rate schedule, over the epochs that are planned."""
        return super().create_scheduler(self._schedule_steps or num_training_steps, optimizer)

    def _init_training_state(self, max_steps: int, per_epoch: int, epochs: int, resume: Any, trial: Any) -> Any:
        earlier = self.state
        self._loss_sums, self._steps_summed = {}, 0  # the base class begins its total anew
        found = super()._init_training_state(max_steps, per_epoch, epochs, resume, trial)
        if not self._continuing:
            return found
        earlier.compute_steps(self.args, max_steps)
        earlier.init_training_references(self, max_steps, epochs, trial)
        self.state = earlier
        return min(round(earlier.epoch or 0), epochs - 1), 0

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One GradCache step over the global batch: gradients are accumulated, the mean loss is returned."""
        model.train()
        optimizer: Any = self.optimizer
        if callable(getattr(optimizer, "train", None)):  # schedule-free optimizers have modes
            optimizer.train()
        batch = self._checked(inputs).to(self.args.device)
        if "mismatched" in self.measures:
            batch = with_mismatched(batch)
        with self._half_weights.used() if self._half_weights is not None else nullcontext():
            result = gradcache_step(
                batch,
                forward=partial(self._forward, model),
                embed=partial(self._embed, model),
                measure=partial(self._measure, model) if self.measures else None,
                objectives=self.objectives,
                chunk_tokens=self.chunk_tokens,
                backward=self.accelerator.backward,
                no_sync=partial(self._without_sync, model),
                gradient_scale=distributed.world_size(),  # every wrapper averages gradients over the ranks
            )
        if not result.finite:
            step = self.state.global_step + 1
            raise not_finite(f"at step {step}", result.losses, result.rows_not_finite(batch.row_ids))
        for name, value in result.losses.items():
            self._loss_sums[name] = self._loss_sums.get(name, 0.0) + value
        self._steps_summed += 1
        return result.total.to(self.args.device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the mean of each objective since the last log beside the total."""
        if "loss" in logs and self._steps_summed:
            means = {f"{name}_loss": float(total) / self._steps_summed for name, total in self._loss_sums.items()}
            logs = {**logs, **means}
            self._loss_sums, self._steps_summed = {}, 0
        super().log(logs, start_time)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> None:
        """Nothing: the step counts queries itself."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: a Batch has no ``input_ids``."""
        return 0

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        """Move the model, unless a device map has placed its layers."""
        if not getattr(getattr(model, "causal_lm", None), "hf_device_map", None):
            super()._move_model_to_device(model, device)

    @contextmanager
    def _without_sync(self, model: nn.Module) -> Iterator[None]:
        """For all chunks but the last: ranks exchange no gradients, unless told to, and DeepSpeed does not step."""
        state = self.accelerator.gradient_state
        state._set_sync_gradients(False)
        try:
            with nullcontext() if state.plugin_kwargs.get("sync_each_batch") else self.accelerator.no_sync(model):
                yield
        finally:
            state._set_sync_gradients(True)

    def _halved(self, bare: ULLME) -> HalfWeights | None:
        """Frozen weights as autocast casts them; None without autocast, or where weights are sharded."""
        dtype = AUTOCAST_DTYPES.get(self.accelerator.mixed_precision)
        if dtype is None or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return None
        return HalfWeights(bare, dtype)

    def _unwrap(self) -> None:
        """Take accelerate's wrappers off the model, so that it is afterwards what it was, and can be trained again."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return
        bare = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        bare.__dict__.pop("_is_accelerate_prepared", None)
        bare.__dict__.pop("forward", None)
        self.model = self.model_wrapped = bare


def _loader_of(batches: Iterable[Batch]) -> Any:
    """A loader that a resumed run can skip in: a list of batches as a DataLoader, anything else as it is."""
    if isinstance(batches, Sequence):
        return DataLoader(cast(Any, batches), batch_size=1, collate_fn=itemgetter(0))
    return batches


#: Arguments of Transformers that would do nothing here or fail: what is allowed, and the cure.
_NOT_OURS = {
    "label_smoothing_factor": (0.0, 'give it to the objective: generation={"label_smoothing": ...}, or in a run file'),
    "neftune_noise_alpha": (None, "leave it out; noise on token embeddings is not supported"),
    "include_num_input_tokens_seen": ("no", "leave it out; texts are packed and not counted"),
}


def _own_arguments(args: TrainingArguments | None) -> TrainingArguments:
    """A copy of the arguments, checked, with what ullme's step demands."""
    args = copy.copy(args) if args is not None else training_arguments(output_dir="ullme_output")
    if args.gradient_accumulation_steps > 1:
        raise ValueError(
            f"gradient_accumulation_steps: {args.gradient_accumulation_steps} is not 1; raise "
            "per_device_train_batch_size instead, chunk_tokens already bounds the memory of a step"
        )
    for name, (allowed, cure) in _NOT_OURS.items():
        if getattr(args, name, allowed) != allowed:
            raise ValueError(f"{name}: {getattr(args, name)!r} has no effect here; {cure}")
    args.logging_nan_inf_filter = False
    if args.n_gpu > 1:  # torch's DataParallel cannot split a Batch; several GPUs take several processes
        args._n_gpu = 1
    return args
