"""SIGTERM and SIGINT end a training with a checkpoint; a second one ends it at once."""

from __future__ import annotations

import signal

import pytest
import torch
from transformers import TrainerCallback

from tests.unit.training import pairs, tiny_model, trainer, weights
from ullme.trainer import resume
from ullme.trainer.signals import SIGNALS, StopOnSignal, TrainingStopped

OPTIONS = {"max_steps": 6, "save_strategy": "steps", "save_steps": 4, "logging_steps": 2}
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


class Sending(TrainerCallback):
    """Sends signals to this process when an event of a step comes."""

    def __init__(self, event: str, step: int, *signals: int) -> None:
        self.step, self.signals, self.event = step, signals, event
        setattr(self, event, self._send)

    def _send(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            for signum in self.signals:
                signal.raise_signal(signum)


def stopped(folder, model, *sending: TrainerCallback, **options):
    """A run that is sent signals; it must end by raising."""
    stop = StopOnSignal()
    run = trainer(folder, model, callbacks=[stop, *sending], **{**OPTIONS, **options})
    with stop.listening():
        run.train(resume_from_checkpoint=True)
    stop.raise_if_stopped(run.state, folder / "run")


def saved(folder) -> list[str]:
    return [path.name for path in resume.checkpoints(folder / "run")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    run = trainer(folder, tiny_model(folder), **OPTIONS)
    run.train()
    return run


@pytest.mark.parametrize(("step", "signum"), [(0, signal.SIGTERM), (3, signal.SIGINT), (5, signal.SIGTERM)])
def test_a_signal_saves_after_its_step_and_the_run_resumes_as_if_nothing_had_been(
    tmp_path, signum, step, caplog, whole
):
    before = [signal.getsignal(s) for s in SIGNALS]
    with pytest.raises(TrainingStopped) as ended:
        stopped(tmp_path, tiny_model(tmp_path), Sending("on_step_begin", step, signum))
    assert ended.value.code == CODES[signum]
    assert [signal.getsignal(s) for s in SIGNALS] == before
    assert saved(tmp_path)[-1] == f"checkpoint-{step + 1}"
    assert f"{signal.Signals(signum).name}: stopped after step {step + 1} of 6" in caplog.text
    resumed = trainer(tmp_path, tiny_model(tmp_path), **OPTIONS)
    resumed.train(resume_from_checkpoint=True)
    losses = [[entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in (whole, resumed)]
    assert losses[0] == losses[1] and len(losses[0]) == 3
    assert all(torch.equal(p, weights(whole.model)[name]) for name, p in weights(resumed.model).items())


def test_a_second_signal_ends_at_once_and_saves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        stopped(tmp_path, tiny_model(tmp_path), Sending("on_step_begin", 2, signal.SIGTERM, signal.SIGINT))
    assert not saved(tmp_path)


def test_a_signal_while_a_checkpoint_is_written_ends_there(tmp_path, monkeypatch):
    seal = resume.seal
    monkeypatch.setattr(resume, "seal", lambda folder: (signal.raise_signal(signal.SIGTERM), seal(folder)))
    with pytest.raises(TrainingStopped) as ended:
        stopped(tmp_path, tiny_model(tmp_path))
    assert ended.value.step == 4 and saved(tmp_path) == ["checkpoint-4"]


def test_an_evaluation_that_is_due_is_left_out(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "evaluator": lambda model: seen.append(1) or {}}
    seen: list[int] = []
    with pytest.raises(TrainingStopped):
        stopped(
            tmp_path,
            tiny_model(tmp_path),
            Sending("on_step_begin", 2, signal.SIGTERM),
            eval_dataset=pairs(2),
            **options,
        )
    assert len(seen) == 2


def test_a_training_without_signals_ends_as_ever(tmp_path):
    stopped(tmp_path, tiny_model(tmp_path))
    assert saved(tmp_path) == ["checkpoint-4", "checkpoint-6"]


def test_a_signal_that_the_process_was_started_to_ignore_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stopped(tmp_path, tiny_model(tmp_path), Sending("on_step_begin", 2, signal.SIGINT))
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert saved(tmp_path) == ["checkpoint-4", "checkpoint-6"]
