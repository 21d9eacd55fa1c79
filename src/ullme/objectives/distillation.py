"""Distillation: the student is to score a query's passages as a teacher did, a cross-encoder for instance."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ullme.objectives import functional as F
from ullme.objectives.base import Objective
from ullme.types import Need, ObjectiveInputs


class _TeacherKL(Objective):
    """KL(P_teacher || P_student), both softmaxes over the query's own passages; zero for a query without negatives."""

    needs_negatives: ClassVar[bool] = True

    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    teacher_temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    def student_BP(self, inputs: ObjectiveInputs) -> Tensor:  # noqa: N802 - the suffix is the shape
        """The student's score of each passage, (B, P)."""
        raise NotImplementedError

    def loss_B(self, inputs: ObjectiveInputs) -> Tensor:
        """The loss of each query, (B,)."""
        student_BP, mask_BP = self.student_BP(inputs), inputs.passage_mask_BP
        assert inputs.teacher_BP is not None
        teacher_BP = inputs.teacher_BP.to(student_BP.dtype)
        given_BP = F.log_softmax_where(teacher_BP / self.teacher_temperature, mask_BP)
        found_BP = F.log_softmax_where(student_BP / self.temperature, mask_BP)
        has_negative_B = (mask_BP & ~inputs.positive_mask_BP).any(1)
        return torch.where(has_negative_B, F.kl_divergence(given_BP, found_BP, mask_BP), 0.0)


class Distillation(_TeacherKL):
    """The student's scores are cosine similarities s_rt (Lin et al. 2020, arXiv 2010.11386).

    sentence-transformers' DistillKLDivLoss is ``temperature ** 2`` times this; here ``weight`` alone scales the loss.

    Attributes:
        temperature: divides the cosine similarities, which differ by 2 at most.
        teacher_temperature: divides the teacher's scores; it belongs to their spread.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"embedding", "teacher"})

    type: Literal["distillation"] = "distillation"
    temperature: float = Field(default=0.05, gt=0, allow_inf_nan=False)

    def student_BP(self, inputs: ObjectiveInputs) -> Tensor:
        """s_rt(q, p), (B, P)."""
        return inputs.score_BP


class GenerationDistillation(_TeacherKL):
    """The same where the student's scores are mean token log-likelihoods s_gen: the generation space is taught.

    Attributes:
        temperature: divides the mean log-likelihoods.
        teacher_temperature: divides the teacher's scores; it belongs to their spread.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"logp", "teacher"})

    type: Literal["generation_distillation"] = "generation_distillation"

    def student_BP(self, inputs: ObjectiveInputs) -> Tensor:
        """s_gen(q, p), (B, P)."""
        return inputs.mean_logp_BP


class MarginMSE(Objective):
    """((s(q, p+) - s(q, p-)) - (t(q, p+) - t(q, p-)))^2 (Hofstaetter et al. 2020, arXiv 2010.02666).

    Averaged over every pair of a positive and a negative of the query; zero for a query without negatives.

    Attributes:
        similarity: the student's score s: ``cosine`` of the embeddings or their ``dot`` product, the paper's. Dot
            products of embeddings that are not normalised may be thousands.
        scale: multiplies the student's score. Its margin must reach the teacher's, and a cosine's is 2 at most: about
            the teacher's widest margin is right. None is 20 for ``cosine`` and 1 for ``dot``.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"embedding", "teacher"})
    needs_negatives: ClassVar[bool] = True

    type: Literal["margin_mse"] = "margin_mse"
    similarity: Literal["cosine", "dot"] = "cosine"
    scale: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    def loss_B(self, inputs: ObjectiveInputs) -> Tensor:
        """The loss of each query, (B,)."""
        student_BP = self._student_BP(inputs)
        assert inputs.teacher_BP is not None
        error_BP = student_BP - inputs.teacher_BP.to(student_BP.dtype)
        positive_BP = inputs.positive_mask_BP & inputs.passage_mask_BP
        negative_BP = inputs.passage_mask_BP & ~inputs.positive_mask_BP
        return F.mean_over_pairs(F.pairwise_margin(error_BP).square(), positive_BP, negative_BP)

    def _student_BP(self, inputs: ObjectiveInputs) -> Tensor:  # noqa: N802 - the suffix is the shape
        if self.similarity == "cosine":
            return inputs.score_BP * (20.0 if self.scale is None else self.scale)
        assert inputs.query_BD is not None and inputs.passage_BPD is not None
        dot_BP = torch.einsum("bd,bpd->bp", inputs.query_BD, inputs.passage_BPD)
        return dot_BP * (1.0 if self.scale is None else self.scale)
