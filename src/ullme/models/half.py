"""Frozen weights in half precision, for as long as autocast would cast them to it anyway."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


class HalfWeights:
    """Half-precision copies of a model's frozen float32 matrices, to stand in their place for the length of a block.

    Autocast casts a frozen matrix anew in every forward pass, and backward keeps each copy: with several passes in a
    chunk, several times the model. The copies made here hold the very numbers of those casts, once. A model whose
    layers are moved between devices by hooks keeps its own weights.

    Args:
        model: the model; what is trainable now is left alone.
        dtype: the dtype to which autocast casts.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        moved = any(hasattr(module, "_hf_hook") for module in model.modules())
        cast_anyway = [module for module in model.modules() if _is_cast(module) and not moved]
        self._halves = {module: _half(module, dtype) for module in cast_anyway}

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, under autocast, the copies are the weights; afterwards the weights are again what they were."""
        own = {module: module._parameters["weight"] for module in self._halves}
        try:
            for module, half in self._halves.items():
                module._parameters["weight"] = half
            yield
        finally:
            for module, weight in own.items():
                module._parameters["weight"] = weight


def _is_cast(module: nn.Module) -> bool:
    """Whether autocast casts this module's weight, and its gradient is not wanted."""
    if not isinstance(module, nn.Linear | Conv1D):
        return False
    return module.weight.dtype == torch.float32 and not module.weight.requires_grad


def _half(module: nn.Module, dtype: torch.dtype) -> nn.Parameter:
    weight = module._parameters["weight"]
    assert weight is not None
    return nn.Parameter(weight.detach().to(dtype), requires_grad=False)
