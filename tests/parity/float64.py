"""Models that compute in float64 throughout: Transformers' RMS norms pass through float32 whatever the dtype."""

from __future__ import annotations

from types import MethodType

import torch
from torch import Tensor, nn


def _forward(module: nn.Module, hidden_NTD: Tensor) -> Tensor:
    eps = getattr(module, "variance_epsilon", None) or module.eps
    scale_D = 1.0 + module.weight if type(module).__name__.startswith("Gemma") else module.weight
    return scale_D * hidden_NTD * torch.rsqrt(hidden_NTD.square().mean(-1, keepdim=True) + eps)


def in_float64(model: nn.Module) -> nn.Module:
    """The model in float64, its RMS norms too."""
    model.double()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = MethodType(_forward, module)
    return model
