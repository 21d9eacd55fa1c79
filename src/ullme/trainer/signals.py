"""A training that is told to end saves first: SIGTERM and SIGINT."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ullme import distributed
from ullme.trainer.resume import checkpoints

_LOG = logging.getLogger(__name__)

#: What a scheduler, a launcher and a user send to end a process.
SIGNALS = (signal.SIGTERM, signal.SIGINT)

#: Seconds in which two signals are one: of several processes, each hears a Ctrl-C from the terminal and the launcher.
_ECHO_SECONDS = 1.0


class TrainingStopped(SystemExit):
    """A training was told to end and has saved a checkpoint; ends the process with 128 + the signal's number.

    That is 143 for SIGTERM and 130 for SIGINT, as a shell reports a process that these signals ended.

    Attributes:
        signum: the signal.
        step: the last step that was done.
    """

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(128 + signum)
        self.signum, self.step = signum, step


class StopOnSignal(TrainerCallback):
    """Ends a training after the step in which a signal comes, with a checkpoint; a second signal ends it at once.

    Processes may hear of it in different steps, or only one of them at all, so they agree after every step. An
    evaluation that is due in that last step is left out: who sends a signal waits only so long before it kills.

    Transformers' ``enable_jit_checkpoint`` does not serve: it waits three seconds, knows SIGTERM only, and saves in the
    processes that heard of it, while the others wait for gradients.
    """

    def __init__(self) -> None:
        self._heard: int = 0
        self._heard_at = 0.0
        self._agreed: int = 0
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, signals are heard, but for those that whoever started the process has it ignore (``nohup``, ``&``).

        Only the main thread can hear them; elsewhere they do what they did.
        """
        if threading.current_thread() is threading.main_thread():
            heard = [signum for signum in SIGNALS if signal.getsignal(signum) is not signal.SIG_IGN]
            self._before = {signum: signal.signal(signum, self._hear) for signum in heard}
        try:
            yield
        finally:
            self._restore()

    def raise_if_stopped(self, state: TrainerState, output_dir: Path) -> None:
        """End the process if a signal ended the training, and say where it goes on.

        Raises:
            TrainingStopped: a signal ended it.
        """
        if not self._agreed:
            return
        if distributed.rank() == 0:
            _LOG.warning(
                "%s: stopped after step %d of %d, saved in %r; the same command resumes from there",
                *(signal.Signals(self._agreed).name, state.global_step, state.max_steps),
                str(checkpoints(output_dir)[-1]),
            )
        raise TrainingStopped(self._agreed, state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Save and stop if a process has heard a signal."""
        if self._all_stop(args):
            control.should_evaluate = False
            control.should_save = control.should_training_stop = True
        return control

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Stop here if a signal came while a checkpoint was being written."""
        if self._all_stop(args):
            control.should_training_stop = True
        return control

    def _all_stop(self, args: TrainingArguments) -> bool:
        self._agreed = self._agreed or distributed.global_max(self._heard, args.device)
        return bool(self._agreed)

    def _hear(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker that loads data ends when this process does
            return
        now = time.monotonic()
        if self._heard:
            if not (distributed.is_distributed() and now - self._heard_at < _ECHO_SECONDS):
                self._restore()
                signal.raise_signal(signum)
            return
        self._heard, self._heard_at = signum, now
        if distributed.rank() == 0:  # written as bytes: a print that the signal interrupts cannot be entered again
            name = signal.Signals(signum).name
            os.write(2, f"{name}: saving a checkpoint after this step; once more to stop at once\n".encode())

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
