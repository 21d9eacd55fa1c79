"""Evaluation on MTEB: any model, local or hub data, results in mteb's own format."""

from __future__ import annotations

from ullme.eval.adapter import PromptedEncoder, as_encoder
from ullme.eval.models import load_model
from ullme.eval.prompting import PromptPolicy, task_instruction
from ullme.eval.results import EvaluationResults, Score
from ullme.eval.runner import eval_mteb_dataset, evaluate
from ullme.eval.tasks import select_tasks

__all__ = [
    "EvaluationResults",
    "PromptPolicy",
    "PromptedEncoder",
    "Score",
    "as_encoder",
    "eval_mteb_dataset",
    "evaluate",
    "load_model",
    "select_tasks",
    "task_instruction",
]
