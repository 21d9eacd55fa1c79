"""What an architecture does differently from the plain Transformers conventions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def head_transform(config: Any) -> Callable[[Tensor], Tensor]:
    """What the causal LM does to the logits after its head."""
    cap = getattr(config, "final_logit_softcapping", None)
    return (lambda logits: torch.tanh(logits / cap) * cap) if cap else (lambda logits: logits)
