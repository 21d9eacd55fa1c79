"""What an objective is: a weighted term of the training loss whose configuration is the object itself."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from ullme.types import Need, ObjectiveInputs

#: The fields of ObjectiveInputs that stand behind each need.
FIELDS_OF_NEED: dict[Need, tuple[str, ...]] = {
    "embedding": ("query_BD", "passage_BPD"),
    "logp": ("logp_BP", "tokens_BP"),
    "reference": ("ref_logp_BP",),
    "mismatched": ("mismatched_logp_BP", "mismatched_ref_logp_BP", "mismatched_tokens_BP"),
    "masked": ("masked_logp_B", "masked_tokens_B"),
    "teacher": ("teacher_BP",),
}


class Objective(BaseModel):
    """One term of the loss: maps the inputs of B queries to one loss per query.

    A subclass states its options as fields and computes :meth:`loss_B`; ullme's own ones state besides
    ``type: Literal["its_name"]``, by which run files know them. It knows no model, chunk, rank or device; the training
    step applies ``weight`` and averages over the global batch.

    Attributes:
        type: what logs and messages call it; a class that states none is called by its own name.
        weight: the term's lambda.
        couples_batch: whether a query's loss depends on other queries' embeddings; such a term receives the inputs of
            the global batch, any other one those of the queries of one chunk.
        needs: what the model must compute, or the data bring, for it.
        needs_negatives: whether it is zero for a query without negatives, so that data without any cannot train it.
        measures: what :meth:`sums_BS` reads; it is computed for that alone, without gradient and in eval mode. Empty
            where no sums over the batch enter the loss.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    couples_batch: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = frozenset()
    needs_negatives: ClassVar[bool] = False
    measures: ClassVar[frozenset[Need]] = frozenset()

    type: str = ""
    weight: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a class that asks for what does not exist, as soon as it is written."""
        super().__pydantic_init_subclass__(**kwargs)
        unknown = {*cls.needs, *cls.measures} - FIELDS_OF_NEED.keys()
        if unknown:
            raise ValueError(
                f"{cls.__name__}: needs {sorted(unknown)}, which no model computes; choose from "
                f"{', '.join(FIELDS_OF_NEED)}"
            )
        if cls.couples_batch and set(cls.needs) != {"embedding"}:
            raise ValueError(
                f"{cls.__name__}: needs {sorted(cls.needs)}, and an objective that couples the batch sees embeddings "
                "alone; set needs to frozenset({'embedding'})"
            )
        if cls.measures and cls.sums_BS is Objective.sums_BS:
            raise ValueError(f"{cls.__name__}: measures {sorted(cls.measures)} and sums nothing; give it sums_BS")

    @model_validator(mode="before")
    @classmethod
    def _named_by_its_class(cls, values: Any) -> Any:
        stated = not isinstance(values, dict) or "type" in values or cls.model_fields["type"].default
        return values if stated else {**values, "type": cls.__name__}

    def loss_B(self, inputs: ObjectiveInputs) -> Tensor:  # noqa: N802 - the suffix is the shape
        """The loss of each query, (B,); inputs are float32 or float64 and autocast is off."""
        raise NotImplementedError

    def sums_BS(self, inputs: ObjectiveInputs) -> Tensor:  # noqa: N802 - the suffix is the shape
        """What each query adds to S sums over the global batch, (B, S); the loss finds the sums in ``totals_S``.

        Called where ``measures`` names something, once per chunk and before any loss, with those fields alone.
        """
        raise NotImplementedError

    def measured_BS(self, inputs: ObjectiveInputs) -> Tensor:  # noqa: N802 - the suffix is the shape
        """:meth:`sums_BS` of these inputs, (B, S), computed in float32 at least, whatever autocast says."""
        with torch.autocast(inputs.passage_mask_BP.device.type, enabled=False):
            return self.sums_BS(_at_least_float32(inputs))

    def __call__(self, inputs: ObjectiveInputs) -> Tensor:
        """The loss of each query, (B,), computed in float32 (float64 where the inputs are), whatever autocast says."""
        for need in self.needs:
            for field in FIELDS_OF_NEED[need]:
                assert getattr(inputs, field) is not None, f"{self.type}: the inputs lack {field}"
        assert inputs.totals_S is not None or not self.measures, f"{self.type}: the inputs lack totals_S"
        with torch.autocast(inputs.passage_mask_BP.device.type, enabled=False):
            loss_B = self.loss_B(_at_least_float32(inputs))
        if loss_B.shape != inputs.passage_mask_BP.shape[:1]:
            raise ValueError(
                f"{self.type}: loss_B gives shape {tuple(loss_B.shape)} for {len(inputs.passage_mask_BP)} queries; "
                "return one loss per query, the step takes their mean"
            )
        return loss_B


def _at_least_float32(inputs: ObjectiveInputs) -> ObjectiveInputs:
    """The same inputs with half-precision tensors widened: a softmax over bf16 scores loses the ranking."""
    wide: dict[str, Any] = {}
    for field in fields(inputs):
        name, value = field.name, getattr(inputs, field.name)
        if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
            wide[name] = value.float()
    return replace(inputs, **wide) if wide else inputs
