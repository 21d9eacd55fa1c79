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
from accelerate.utils.constants import OPTIMIZER_NAME
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers.trainer import SCHEDULER_NAME

from ullme.models import ULLME
from ullme.trainer.checkpoints import CheckpointTrainer
from ullme.trainer.lockstep import Lockstep
from ullme.trainer.resume_ranks import together
from ullme.trainer.sharding import USE_FSDP, activate, configure, give_back, release, require_sharded, twin_of, whole


class ShardingTrainer(CheckpointTrainer):
    """A Trainer that shards where ``fsdp`` asks for it, never less than asked, and writes whole checkpoints."""

    _original: ULLME | None = None

    def create_accelerator_and_postprocess(self) -> None:
        """Accelerate as the Trainer makes it, which shards on CPUs too if it is to shard."""
        launched = os.environ.get(USE_FSDP)
        super().create_accelerator_and_postprocess()
        activate(self.accelerator, self.args.fsdp_plugin_args)
        if launched is None:  # accelerate sets it, and the next trainer of this process would shard unasked
            os.environ.pop(USE_FSDP, None)
        self.is_fsdp_enabled = getattr(self.accelerator.state, "fsdp_plugin", None) is not None

    def require_shardable(self, model: ULLME) -> None:
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
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        model, optimizer, scheduler = self.model, self.optimizer, self.lr_scheduler
        assert model is not None and optimizer is not None and scheduler is not None
        state = get_optimizer_state_dict(model, optimizer, options=options)
        folder = Path(output_dir)

        def write() -> None:
            if self.args.should_save:
                torch.save(state, folder / f"{OPTIMIZER_NAME}.bin")  # where accelerate looks for it
                torch.save(scheduler.state_dict(), folder / SCHEDULER_NAME)

        together(write)
