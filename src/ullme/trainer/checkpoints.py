"""Checkpoints of a run: ULLME's own files, written beside their place, sealed, and renamed into it."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import RandomSampler
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, set_seed

from ullme import distributed
from ullme.models import ULLME, io
from ullme.trainer import resume
from ullme.trainer.resume_disk import readable, stored
from ullme.trainer.resume_ranks import on_main, together
from ullme.types import Batch

#: What a checkpoint holds beside Transformers' own: the losses since the last log, and who shared the batch.
PROGRESS_FILE = "progress.pt"


class CheckpointTrainer(Trainer):
    """A Trainer whose model is a ULLME: adapter-only checkpoints that appear whole or not at all, and exact resuming.

    A run that is resumed logs the same losses and reaches the same weights as one that was never interrupted.
    """

    train_loader: Iterable[Batch] | None
    _loss_sums: dict[str, Tensor]
    _steps_summed: int

    # ---- Resuming ----

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train; ``resume_from_checkpoint`` is a checkpoint's folder, or True for the last whole one, if there is one.

        Raises:
            ValueError: the checkpoint is damaged (with True: every one is), or a step had another number of rows.
        """
        place: Path | None = None
        if resume_from_checkpoint is True:
            place = on_main(lambda: resume.last_whole(Path(self.args.output_dir or ".")))
        elif resume_from_checkpoint:
            place = on_main(partial(resume.require_whole, Path(resume_from_checkpoint)))
        if place is not None:
            together(partial(readable, self._require_same_batch, place))
            self._tell_of_another_order()
        return super().train(str(place) if place is not None else None, *args, **kwargs)

    def _init_training_state(self, max_steps: int, per_epoch: int, epochs: int, resumed: Any, trial: Any) -> Any:
        found = super()._init_training_state(max_steps, per_epoch, epochs, resumed, trial)
        self.state.compute_steps(self.args, max_steps)  # the base class keeps the checkpoint's, whatever is asked for
        if resumed is not None and self.state.global_step >= max_steps:
            return epochs, 0  # the base class would take one more step, inside an epoch
        return found

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Put a checkpoint's weights into the model at hand."""
        together(partial(readable, partial(load_in_place, self._bare_model()), Path(resume_from_checkpoint)))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load = super()._load_optimizer_and_scheduler
            together(partial(readable, lambda place: load(str(place)), Path(checkpoint)))

    def _load_best_model(self) -> None:
        """Put the best checkpoint's weights into the model at hand."""
        assert self.state.best_model_checkpoint is not None
        best = Path(self.state.best_model_checkpoint)
        together(partial(readable, partial(load_in_place, self._bare_model()), best))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Random numbers and the losses since the last log as they were; the base class calls it before the first step.

        On another number of processes no process's random numbers are those of one before: they start anew.
        """
        if checkpoint is None:
            return
        progress, load = _progress(Path(checkpoint)), super()._load_rng_state
        if progress["processes"] == self.args.world_size:
            together(partial(readable, lambda place: load(str(place)), Path(checkpoint)))
        else:
            set_seed(self.args.seed + self.state.global_step)
        self._tr_loss += progress["loss"].to(self._tr_loss.device)
        self._total_loss_scalar = -float(progress["loss"])  # the base class reports the mean loss of this call's steps
        self._globalstep_last_logged = progress["logged_step"]
        self._loss_sums = {name: value.to(self.args.device) for name, value in progress["loss_sums"].items()}
        self._steps_summed = progress["steps_summed"]

    def _require_same_batch(self, place: Path) -> None:
        """Raise unless a step has as many rows as when the checkpoint was written, over however many processes.

        Raises:
            ValueError: it has not, so that the data would come in another order.
        """
        before, now, processes = _progress(place)["batch_rows"], self._batch_rows(), distributed.world_size()
        if before == now or None in (before, now):
            return
        cure = f"set per_device_train_batch_size to {before // processes}"
        if before % processes:
            cure = f"take a number of processes that divides {before}"
        raise ValueError(
            f"per_device_train_batch_size: a step has {now} rows on {processes} process(es), and had {before} when "
            f"{str(place)!r} was written; {cure}"
        )

    def _tell_of_another_order(self) -> None:
        loader = self.train_loader
        if isinstance(getattr(loader, "sampler", None), RandomSampler) and not hasattr(loader, "set_epoch"):
            warnings.warn(
                "train_loader: draws its order anew in every process, so the resumed run meets other batches than the "
                "interrupted one would have; use ullme.data.train_loader for the same",
                stacklevel=3,
            )

    def _batch_rows(self) -> int | None:
        """Rows of a step, on all processes together; None where a loader of the user's does not tell."""
        if self.train_loader is None:
            return self.args.train_batch_size * distributed.world_size()
        return getattr(getattr(self.train_loader, "batch_sampler", None), "batch_size", None)

    # ---- Saving ----

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write the model's files and the training arguments (as JSON, nothing pickled) into a folder."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        io.write_files(self._bare_model(), folder)
        (folder / "training_args.json").write_text(self.args.to_json_string() + "\n")

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write model, optimizer, schedule, random states and trainer state, then rename the folder into place.

        Raises:
            ValueError: it cannot be written, in whichever process; what was written of it is removed, and the
                checkpoints before are as they were.
        """
        place = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self.store_flos()
        self._use_averaged_weights()
        try:
            for act in (self._begin, self._write, self._finish):
                together(partial(stored, act, place))
        finally:
            if self.args.should_save:
                shutil.rmtree(resume.unfinished(place), ignore_errors=True)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(place))

    def _begin(self, place: Path) -> None:
        if self.args.should_save:
            resume.remove_unfinished(place.parent)
            resume.unfinished(place).mkdir(parents=True)

    def _write(self, place: Path) -> None:
        folder = resume.unfinished(place)
        if not folder.is_dir():
            raise ValueError(
                f"output_dir: {str(place.parent)!r} is not the same folder for every process; name one on a file "
                "system that all of them share"
            )
        self.save_model(str(folder), _internal_call=True)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
        self._record_best(place.parent)

    def _finish(self, place: Path) -> None:
        if not self.args.should_save:
            return
        folder = resume.unfinished(place)
        self._write_state(folder)
        resume.seal(folder)
        resume.put(folder, place)
        resume.rotate(place.parent, self.args.save_total_limit, place, self.state.best_model_checkpoint)

    def _use_averaged_weights(self) -> None:
        """Put the weights in place that are for use, where a schedule-free optimizer holds others to train with."""
        optimizer: Any = self.optimizer
        if callable(getattr(optimizer, "eval", None)):
            optimizer.eval()

    def _bare_model(self) -> ULLME:
        model = self.accelerator.unwrap_model(self.model)
        assert isinstance(model, ULLME)
        return model

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
        progress = {
            "processes": self.args.world_size,
            "batch_rows": self._batch_rows(),
            "loss": self._tr_loss.cpu(),
            "logged_step": self._globalstep_last_logged,
            "loss_sums": {name: value.cpu() for name, value in self._loss_sums.items()},
            "steps_summed": self._steps_summed,
        }
        torch.save(progress, folder / PROGRESS_FILE)


def load_in_place(model: ULLME, folder: Path) -> None:
    """Give a model the weights of a checkpoint made from it.

    Raises:
        ValueError: the folder is no complete checkpoint of this model.
    """
    io.load_weights(model, folder)
    if model.peft_model is None:
        saved = type(model).from_pretrained(folder)
        model.load_state_dict(saved.state_dict())


def _progress(place: Path) -> dict[str, Any]:
    return torch.load(place / PROGRESS_FILE, map_location="cpu", weights_only=True)
