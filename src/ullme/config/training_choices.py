"""Choices of the trainer section that Transformers carries out: whether it knows them, and has all they need here."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from ullme.models.settings import require_choice

#: Steps after warmup that a schedule is tried with where a run's number of steps is known only with its data.
_PLAUSIBLE_STEPS = 1000

#: Arguments of Transformers' schedules that the trainer gives, or that no run has.
_GIVEN = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch", "kwargs"}

#: Schedules that take no arguments of their own, and to which Transformers would not pass any on.
_FIXED = ("constant", "constant_with_warmup")

#: Optimizers, by the first word of their names, that a run file cannot be carried out with, and why.
_UNFIT = {
    "galore": "needs optim_target_modules, a key that run files do not have",
    "apollo": "needs optim_target_modules, a key that run files do not have",
    "lomo": "changes the weights during the backward pass, and a step has several of them",
    "adalomo": "changes the weights during the backward pass, and a step has several of them",
}


def require_known(optim: str, report_to: str | list[str]) -> None:
    """Pass if Transformers knows the optimizer and where logs are to go, installed or not.

    Raises:
        ValueError: it does not, or the optimizer cannot be had from a run file.
    """
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
    from transformers.training_args import OptimizerNames

    require_choice("optim", optim, [name.value for name in OptimizerNames])
    reason = _UNFIT.get(optim.split("_")[0])
    if reason is not None:
        raise ValueError(f"optim: {optim!r} {reason}; choose another, for instance adamw_torch")
    for name in _integrations(report_to):
        require_choice("report_to", name, [*INTEGRATION_TO_CALLBACK, "none", "all"])
        if name in ("none", "all"):
            raise ValueError(f"report_to: {name!r} excludes the others in {report_to!r}; leave it or them out")


def require_schedule(
    name: str, options: Mapping[str, Any], *, learning_rate: float, warmup_steps: float, max_steps: int
) -> None:
    """Pass if a learning rate can follow the schedule, with arguments of its own, from the first step to the last.

    Raises:
        ValueError: the schedule is unknown, or lacks an argument, or has one that is wrong.
    """
    from transformers.trainer_utils import SchedulerType

    require_choice("lr_scheduler_type", name, [kind.value for kind in SchedulerType])
    if options and name in _FIXED:
        raise ValueError(
            f"lr_scheduler_kwargs: {dict(options)!r} would change nothing of the schedule {name!r}; leave it out"
        )
    try:
        _follow(name, dict(options), learning_rate, warmup_steps, max_steps)
    except Exception as error:  # whatever it is: it would have ended the training
        raise ValueError(
            f"lr_scheduler_type: {name!r} does not work with trainer.lr_scheduler_kwargs {dict(options)!r} "
            f"({_said(error)}); {_cure(name)} or choose another schedule"
        ) from error


def require_installed(optim: str, report_to: str | list[str]) -> None:
    """Pass if the packages of the optimizer, and of where logs are to go, are here: the trainer's own checks.

    Raises:
        ValueError: one is missing or cannot be used; the message says what Transformers says of it.
    """
    from transformers import Trainer, TrainingArguments
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
    from transformers.training_args import OptimizerNames

    class Unchecked(TrainingArguments):
        """Values alone: other arguments would look for a device and join the other processes."""

        def __post_init__(self) -> None:
            pass

    try:
        Trainer.get_optimizer_cls_and_kwargs(Unchecked(optim=OptimizerNames(optim)))
    except (ImportError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"trainer.optim: {optim!r} cannot be used here ({_said(error)}); install what it needs or choose another, "
            "for instance adamw_torch"
        ) from error
    for name in _integrations(report_to):
        try:
            INTEGRATION_TO_CALLBACK[name]()
        except (ImportError, RuntimeError) as error:
            raise ValueError(
                f"trainer.report_to: {name!r} cannot be used here ({_said(error)}); install what it needs or choose "
                "another, for instance tensorboard or none"
            ) from error


def _follow(name: str, options: dict[str, Any], learning_rate: float, warmup_steps: float, max_steps: int) -> None:
    """Build a schedule as the trainer does, and compute its rate at the ends and in the middle of its parts."""
    from transformers.optimization import get_scheduler

    steps = max_steps if max_steps > 0 else _PLAUSIBLE_STEPS + int(warmup_steps)
    warmup = int(warmup_steps) if warmup_steps >= 1 else math.ceil(steps * warmup_steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the trainer says it again
        schedule = get_scheduler(
            name,
            torch.optim.SGD([torch.zeros(1)], lr=learning_rate),
            num_warmup_steps=warmup,
            num_training_steps=steps,
            scheduler_specific_kwargs=options,
        )
        for factor in getattr(schedule, "lr_lambdas", ()):
            for step in (0, warmup // 2, warmup, (warmup + steps) // 2, steps - 1, steps):
                float(factor(min(step, steps)))


def _cure(name: str) -> str:
    """What a schedule can be given, from the function that Transformers builds it with."""
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
    from transformers.trainer_utils import SchedulerType

    build: Any = TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)]
    parameters = inspect.signature(build).parameters
    own = [key for key in parameters if key not in _GIVEN]
    if own:
        return f"set there what it needs of {', '.join(own)},"
    return "correct it," if "kwargs" in parameters else "leave trainer.lr_scheduler_kwargs out"


def _integrations(report_to: str | list[str]) -> list[str]:
    """Where logs go, by name; none where the one name stands for none, or for all that are installed."""
    names = [report_to] if isinstance(report_to, str) else report_to
    return [] if names in (["none"], ["all"]) else names


def _said(error: Exception) -> str:
    """An error's first line, to be put in brackets."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
