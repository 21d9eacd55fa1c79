"""Training arguments with ullme's defaults."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields
from typing import Any

from transformers import TrainingArguments

#: Seconds without a sign of life after which a process is taken for lost.
RANK_TIMEOUT = 120.0


@dataclass
class EmbeddingTrainingArguments(TrainingArguments):
    """``transformers.TrainingArguments`` with defaults for adapters: logs go to TensorBoard, NaN is shown.

    Attributes:
        learning_rate: the paper's for LoRA.
        report_to: where logs go.
        logging_steps: steps between two logs.
        logging_nan_inf_filter: off, since the Trainer's own default replaces a NaN loss by an older one.
        rank_timeout: of several processes, seconds without a sign of life after which one is lost and all end; 0 waits
            for each for ever. ``ddp_timeout`` is how long a collective may take where all are alive.
        remove_unused_columns: off, since rows are pairs and not columns of a model's arguments.
    """

    learning_rate: float = field(default=2e-4)
    report_to: None | str | list[str] = field(default="tensorboard")
    logging_steps: float = field(default=10)
    logging_nan_inf_filter: bool = field(default=False)
    remove_unused_columns: bool = field(default=False)
    rank_timeout: float = field(default=RANK_TIMEOUT)


def training_arguments(**values: Any) -> EmbeddingTrainingArguments:
    """Arguments from keywords.

    Raises:
        ValueError: a name is unknown; the message offers the nearest.
    """
    known = [f.name for f in fields(EmbeddingTrainingArguments) if f.init]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"training argument {name!r} is unknown; {hint}see transformers.TrainingArguments")
    return EmbeddingTrainingArguments(**values)
