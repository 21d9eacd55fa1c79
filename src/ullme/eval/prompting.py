"""Which prompt stands before a text of a task: mteb's instruction for it, the model's own prompts, or none."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mteb.abstasks.abstask import get_abstask_prompt
from mteb.models.abs_encoder import get_prompt
from mteb.types import PromptType

from ullme.templates import INSTRUCTION_TEMPLATE, instruction_prompt

Mode = Literal["task", "none", "own", "custom"]


@dataclass(frozen=True)
class PromptPolicy:
    """The prompt of every text, by task and by side.

    An instruction stands before queries, and before both sides of a symmetric task (STS, classification, clustering,
    ...), which have no query and passage; never before the passages of a retrieval task.

    Attributes:
        mode: ``task`` (instructions of mteb's task metadata), ``custom`` (those of ``texts``, by task name or type),
            ``own`` (the model's prompts in ``texts``, chosen as mteb chooses them) or ``none``.
        texts: instructions or prompts by name.
        template: how an instruction stands before a text, with the field ``{instruction}``.
    """

    mode: Mode
    texts: Mapping[str, str] = field(default_factory=dict)
    template: str = INSTRUCTION_TEMPLATE

    def __post_init__(self) -> None:
        """Refuse a template that would drop the instruction."""
        if "{instruction}" not in self.template:
            raise ValueError(f"instruction_template: {self.template!r} lacks the field {{instruction}}; add it")

    @property
    def name(self) -> str:
        """The policy in a word, and a hash of what else decides it: part of the identity of a score."""
        if self.mode in ("none", "task") and self.template == INSTRUCTION_TEMPLATE:
            return self.mode
        content = json.dumps([self.mode, dict(self.texts), self.template], sort_keys=True)
        return f"{self.mode}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"

    def prompt(self, task_metadata: Any, prompt_type: PromptType | None) -> str:
        """The text before every text of this side of this task."""
        if self.mode == "none":
            return ""
        if self.mode == "own":
            return get_prompt(dict(self.texts), task_metadata, prompt_type) or ""
        if prompt_type == PromptType.document:
            return ""
        return instruction_prompt(self.instruction(task_metadata), self.template)

    def instruction(self, task_metadata: Any) -> str:
        """The instruction of a task; ValueError if custom instructions have none for it."""
        if self.mode == "task":
            return task_instruction(task_metadata)
        for key in (task_metadata.name, task_metadata.type):
            if key in self.texts:
                return self.texts[key]
        raise ValueError(
            f"prompts: no instruction for task {task_metadata.name!r}; add one under its name or its type "
            f"{task_metadata.type!r} (an empty string for none)"
        )


def task_instruction(task_metadata: Any) -> str:
    """The instruction of mteb for the queries of a task: of its metadata, else the default of its type."""
    stated = task_metadata.prompt
    if isinstance(stated, dict):
        stated = stated.get(PromptType.query.value)
    return stated or get_abstask_prompt(task_metadata.name)


def prompt_policy(
    prompts: str | Mapping[str, str] | None,
    own: Mapping[str, str] | None,
    default: Mode,
    template: str = INSTRUCTION_TEMPLATE,
) -> PromptPolicy:
    """The policy that ``prompts`` asks for.

    Args:
        prompts: ``"task"``, ``"none"``, ``"own"``, instructions by task name or type, or None for the model's own
            prompts if it has any that are not empty, else ``default``.
        own: the model's prompts by name.
        default: what a model without prompts of its own gets.
        template: how an instruction stands before a text.

    Raises:
        ValueError: an unknown word, or ``"own"`` for a model without prompts.
    """
    own = {name: text for name, text in (own or {}).items() if text}
    if isinstance(prompts, Mapping):
        return PromptPolicy("custom", dict(prompts), template)
    if prompts is None:
        return PromptPolicy("own", own) if own else PromptPolicy(default, template=template)
    if prompts == "own":
        if not own:
            raise ValueError("prompts: 'own' needs a model with prompts, and this one has none; use 'task' or 'none'")
        return PromptPolicy("own", own)
    if prompts in ("task", "none"):
        return PromptPolicy("task" if prompts == "task" else "none", template=template)
    near = difflib.get_close_matches(str(prompts), ["task", "none", "own"], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"prompts: {prompts!r} is unknown; {hint}use 'task', 'none', 'own' or a dict task -> instruction")
