"""Masked next-token prediction: what teaches a causal LLM to use attention to both sides."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from ullme.objectives.base import Objective
from ullme.types import Need, ObjectiveInputs


class MNTP(Objective):
    """L_MNTP: mean negative log-likelihood of a text's hidden tokens, each predicted from the state before it.

    The first stage of LLM2Vec (BehnamGhader et al. 2024, section 2.2), under the embedding's attention. Every text
    counts the same, however many of its tokens are hidden; one without a hidden token has loss 0. The defaults are
    those of LLM2Vec's run files for Llama; its Mistral hides more and always: 0.8 and ``all``.

    Attributes:
        mask_probability: how likely each token is to be hidden.
        mask_token: what stands in a hidden token's place, ``_`` as in LLM2Vec; null is the tokenizer's own mask token.
        replacement: ``all``: every hidden token is replaced by the mask token; ``bert``: 80 % are, 10 % are replaced by
            a random token and 10 % left as they are (Devlin et al. 2019, section 3.1).
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"masked"})

    type: Literal["mntp"] = "mntp"
    mask_probability: float = Field(default=0.2, gt=0, le=1)
    mask_token: str | None = Field(default="_", min_length=1)
    replacement: Literal["all", "bert"] = "bert"

    def loss_B(self, inputs: ObjectiveInputs) -> Tensor:
        """The loss of each query's text, (B,), in nats per hidden token."""
        assert inputs.masked_logp_B is not None and inputs.masked_tokens_B is not None
        return -inputs.masked_logp_B / inputs.masked_tokens_B.clamp(min=1)
