"""Checkpoints of a run: ULLME's own files, written beside their place and renamed into it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from ullme.distributed import is_distributed
from ullme.models import ULLME, io

#: An unfinished checkpoint's name does not match the pattern by which the Trainer finds the last one.
UNFINISHED = ".unfinished-"


class CheckpointTrainer(Trainer):
    """A Trainer whose model is a ULLME: adapter-only checkpoints that appear whole or not at all."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write the model's files and the training arguments (as JSON, nothing pickled) into a folder."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        io.write_files(self._bare_model(), folder)
        (folder / "training_args.json").write_text(self.args.to_json_string() + "\n")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Put a checkpoint's weights into the model at hand."""
        load_in_place(self._bare_model(), Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        """Put the best checkpoint's weights into the model at hand."""
        assert self.state.best_model_checkpoint is not None
        load_in_place(self._bare_model(), Path(self.state.best_model_checkpoint))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write model, optimizer, schedule, random states and trainer state, then rename the folder into place."""
        run_dir = Path(self._get_output_dir(trial=trial))
        place = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        unfinished = run_dir / f"{UNFINISHED}{place.name}"
        if self.args.should_save:
            self._remove_unfinished(run_dir)
            unfinished.mkdir(parents=True)
        _barrier()
        self.store_flos()
        self.save_model(str(unfinished), _internal_call=True)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(unfinished))
            self._save_scaler(str(unfinished))
            self._save_rng_state(str(unfinished))
        self._record_best(run_dir)
        _barrier()
        if self.args.should_save:
            self._write_state(unfinished)
            _put(unfinished, place)
            rotate_checkpoints(
                output_dir=str(run_dir),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        _barrier()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(place))

    def _bare_model(self) -> ULLME:
        model = self.accelerator.unwrap_model(self.model)
        assert isinstance(model, ULLME)
        return model

    def _remove_unfinished(self, run_dir: Path) -> None:
        """Remove what an interrupted run left behind."""
        for leftover in run_dir.glob(f"{UNFINISHED}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _record_best(self, run_dir: Path) -> None:
        """Point the state at the best checkpoint, which may be the one being written."""
        if self.state.best_global_step:
            best = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
            if best.exists() or self.state.best_global_step == self.state.global_step:
                self.state.best_model_checkpoint = str(best)

    def _write_state(self, folder: Path) -> None:
        saved: Any = self.state.stateful_callbacks  # a dictionary by now, whatever it is declared to be
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                name, value = type(callback).__name__, callback.state()
                saved[name] = [*saved[name], value] if isinstance(saved.get(name), list) else value
        self.state.save_to_json(str(folder / TRAINER_STATE_NAME))


def load_in_place(model: ULLME, folder: Path) -> None:
    """Give a model the weights of a checkpoint made from it.

    Raises:
        ValueError: the folder is no complete checkpoint of this model.
    """
    io.load_weights(model, folder)
    if model.peft_model is None:
        saved = type(model).from_pretrained(folder)
        model.load_state_dict(saved.state_dict())


def _put(new: Path, place: Path) -> None:
    """Rename a folder into its place; one that is already there (a step done twice) makes room first."""
    old = place.with_name(f"{UNFINISHED}old-{place.name}")
    if place.exists():
        place.replace(old)
    new.replace(place)
    shutil.rmtree(old, ignore_errors=True)


def _barrier() -> None:
    if is_distributed():
        dist.barrier()
