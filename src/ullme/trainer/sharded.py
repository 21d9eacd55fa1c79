"""A Trainer that shards a ULLME with accelerate's FSDP2, on any device, and gives it back whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from ullme.models import ULLME
from ullme.trainer.checkpoints import CheckpointTrainer
from ullme.trainer.lockstep import Lockstep
from ullme.trainer.resume_disk import readable
from ullme.trainer.resume_ranks import together
from ullme.trainer.sharding import (
    USE_FSDP,
    activate,
    configure,
    give_back,
    optimizer_state,
    release,
    require_sharded,
    require_version,
    set_optimizer_state,
    twin_of,
    whole,
)


class ShardingTrainer(CheckpointTrainer):
    """A Trainer that shards where ``fsdp`` asks for it, never less than asked, and writes whole checkpoints."""

    _original: ULLME | None = None

    def create_accelerator_and_postprocess(self) -> None:
        """Accelerate as the Trainer makes it, which shards on CPUs too if it is to shard."""
        require_version(self.args.fsdp_plugin_args)
        launched = os.environ.get(USE_FSDP)
        super().create_accelerator_and_postprocess()
        activate(self.accelerator, self.args.fsdp_plugin_args)
        if launched is None:  # accelerate sets it, and the next trainer of this process would shard unasked
            os.environ.pop(USE_FSDP, None)
        self.is_fsdp_enabled = getattr(self.accelerator.state, "fsdp_plugin", None) is not None

    def require_shardable(self, model: ULLME, evaluator: object | None) -> None:
        """Configure FSDP2 for this model, if it is asked for.

        Raises:
            ValueError: a setting cannot work together with it.
        """
        if not self.is_fsdp_enabled:
            return
        if self.args.load_best_model_at_end:
            raise ValueError(
                "load_best_model_at_end: cannot put a checkpoint into sharded weights; set it to false, "
                "trainer_state.json of the last checkpoint names the best one"
            )
        if evaluator is not None:
            raise ValueError(
                "evaluator: needs the whole model, which no process has under fsdp; evaluate the checkpoints instead "
                "(ullme eval)"
            )
        configure(self.accelerator.state.fsdp_plugin, model)

    @contextmanager
    def _sharding(self) -> Iterator[None]:
        """Inside, a twin of the model is what is trained, and sharded; after success the model has its weights."""
        if not self.is_fsdp_enabled:
            yield
            return
        model = self._bare_model()
        twin = twin_of(model)
        self.model = self.model_wrapped = twin
        self._original = model
        # control messages are small and cross on the CPU, so that no GPU has to be waited for
        group: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=self.args.ddp_timeout))
        try:
            with Lockstep(twin, group).attached():
                yield
            give_back(twin, model)
        finally:
            self.model = self.model_wrapped = model
            self.optimizer = self.lr_scheduler = self._original = None
            self.accelerator.free_memory()

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        """Wrap the model; one that is to be sharded reads its checkpoint's weights before."""
        if self.is_fsdp_enabled and resume_from_checkpoint is not None:
            self._load_from_checkpoint(resume_from_checkpoint)
        model, loader = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if self.is_fsdp_enabled:
            require_sharded(model)
            assert self._original is not None
            release(self._original)
        return model, loader

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Put a checkpoint's weights into the model at hand, unless they are there and sharded."""
        if not isinstance(self.model, FSDPModule):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write the model's files; ``state_dict`` holds its whole weights where it is sharded."""
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        with whole(self._bare_model(), (state_dict or {}) if sharded else {}):
            if self.is_fsdp_enabled:  # what goes wrong on one process must not leave the others in a collective
                together(partial(super()._save, output_dir))
            else:
                super()._save(output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Write optimizer and schedule; the base class would write the sharded model once more, whole."""
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        model, optimizer, scheduler = self._prepared()
        state, folder = optimizer_state(model, optimizer), Path(output_dir)

        def write() -> None:
            if self.args.should_save:
                torch.save(state, folder / OPTIMIZER_NAME)
                torch.save(scheduler.state_dict(), folder / SCHEDULER_NAME)

        together(write)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Read optimizer and schedule, of a run that was sharded or not."""
        if not self.is_fsdp_enabled or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        model, optimizer, scheduler = self._prepared()

        def read(place: Path) -> list[Any]:
            names = (OPTIMIZER_NAME, SCHEDULER_NAME)
            return [torch.load(place / name, map_location="cpu", weights_only=True) for name in names]

        state, schedule = together(partial(readable, read, Path(checkpoint)))
        set_optimizer_state(model, optimizer, state)
        scheduler.load_state_dict(schedule)

    def _prepared(self) -> tuple[nn.Module, Any, Any]:
        model, optimizer, scheduler = self.model, self.optimizer, self.lr_scheduler
        assert model is not None and optimizer is not None and scheduler is not None
        return model, optimizer, scheduler
