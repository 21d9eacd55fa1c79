"""A run file as a whole: its sections, and what they demand of one another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import OmegaConf
from pydantic import BeforeValidator, Field, model_validator

from ullme.config.sections import DataConfig, EvalConfig, ModelConfig, Section, TrainerConfig
from ullme.models.settings import require_choice
from ullme.objectives import PRESETS, AnyObjective, as_mapping, needs_of


def preset_expanded(objectives: Any) -> Any:
    """The objectives that a preset's name stands for, as mappings; anything else as it is.

    Raises:
        ValueError: no preset has this name.
    """
    if not isinstance(objectives, str):
        return objectives
    require_choice("objectives", objectives, PRESETS)
    return [as_mapping(objective) for objective in PRESETS[objectives]]


#: Why the model without its adapter is not the original LLM, and the cure; by whether adapters are merged into it.
_NO_ORIGINAL = {
    False: ("model.lora: is missing", "add model.lora"),
    True: (
        "model.merged_adapters: is set, so the original LLM is gone from memory",
        "train the earlier adapter further with model.adapter_path instead",
    ),
}


class RunConfig(Section):
    """All of a run. ``objectives`` is a list, or the name of a preset.

    ``model.prompts`` are trained with as they are embedded with: ``query`` before queries without an instruction,
    ``document`` (or ``data.passage_prompt``, which is the same) before passages.
    """

    model: ModelConfig
    data: DataConfig
    objectives: Annotated[list[AnyObjective], Field(min_length=1), BeforeValidator(preset_expanded)] = Field(
        default="contrastive", validate_default=True
    )
    trainer: TrainerConfig
    eval: EvalConfig = Field(default_factory=EvalConfig)

    @model_validator(mode="after")
    def _fits_together(self) -> RunConfig:
        self._align_prompts()
        self._require_reference()
        self._require_watched_loss()
        wanting = [o.type for o in self.objectives if o.needs_negatives]
        if wanting and self.data.negatives_per_query == 0:
            raise ValueError(
                f"data.negatives_per_query: is 0, and the objective {wanting[0]!r} needs negatives; "
                "raise it or leave it out"
            )
        if self.data.streaming and self.reference == "precomputed":
            raise ValueError(
                "data.streaming: is true, and the original LLM's likelihoods are to be computed before training, for "
                "which every row is read; set data.streaming to false, or trainer.reference to live"
            )
        if self.trainer.eval_steps and not self.data.eval:
            raise ValueError(
                f"trainer.eval_steps: is {self.trainer.eval_steps}, and there is nothing to evaluate on; "
                "name held-out pairs in data.eval or leave it out"
            )
        if self.trainer.rank_agreement and not self.data.eval:
            raise ValueError(
                "trainer.rank_agreement: is true, and there is nothing to evaluate on; name held-out pairs in "
                "data.eval or leave it out"
            )
        if not any(o.weight for o in self.objectives):
            raise ValueError("objectives: every weight is 0, so nothing would be learned; raise one")
        return self

    def _align_prompts(self) -> None:
        """Let passages be trained with the prompt that the model puts before documents, whichever place names it."""
        trained, served = self.data.passage_prompt, self.model.prompts.get("document", "")
        if trained and served and trained != served:
            raise ValueError(
                f"data.passage_prompt: {trained!r} would be trained with and model.prompts.document, {served!r}, "
                "embedded with; leave one of them out"
            )
        if trained and not served:
            prompts = {**self.model.prompts, "document": trained}
            object.__setattr__(self, "model", self.model.model_copy(update={"prompts": prompts}))
        elif served and not trained:
            object.__setattr__(self, "data", self.data.model_copy(update={"passage_prompt": served}))

    @property
    def reference(self) -> Literal["live", "precomputed"] | None:
        """Whence the original LLM's likelihoods come; None where no objective compares with it."""
        if "reference" not in needs_of(self.objectives):
            return None
        return self.trainer.reference or ("live" if self.model.settings().keeps_original else "precomputed")

    def _require_reference(self) -> None:
        chosen = self.trainer.reference
        if chosen and self.reference is None:
            raise ValueError(
                f"trainer.reference: is {chosen!r}, and no objective compares with the original LLM; leave it out"
            )
        settings = self.model.settings()
        if settings.keeps_original:
            return
        state, cure = _NO_ORIGINAL[bool(settings.merged_adapters)]
        pairing = [o.type for o in self.objectives if "mismatched" in o.measures | o.needs]
        if pairing:
            raise ValueError(
                f"{state}, and the objective {pairing[0]!r} compares passages of other queries, paired anew in every "
                f"batch, with the original LLM, which is the model without its adapter; {cure} or choose another "
                "objective"
            )
        if chosen == "live":
            raise ValueError(
                f"trainer.reference: 'live' is the model without its adapter, and {state.replace(':', '')}; set "
                f"trainer.reference to precomputed, or {cure}"
            )

    def _require_watched_loss(self) -> None:
        schedule = self.trainer.lr_scheduler_type
        if schedule in ("reduce_lr_on_plateau", "greedy") and not self.data.eval:
            raise ValueError(
                f"trainer.lr_scheduler_type: {schedule!r} follows the loss on held-out pairs, and there are none; name "
                "some in data.eval or choose another schedule"
            )

    @property
    def needs_negatives(self) -> list[str]:
        """The objectives that need a negative in some row."""
        return [o.type for o in self.objectives if o.needs_negatives and o.weight]

    def save(self, path: Path) -> Path:
        """Write the run as a run file in which every default is spelt out."""
        path.write_text(OmegaConf.to_yaml(OmegaConf.create(self.model_dump(mode="json"))), encoding="utf-8")
        return path
