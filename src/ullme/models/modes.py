"""A model's mode and its precision, for the length of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode for every module, and afterwards each module's own mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Float32 in place of half precision, and afterwards the very tensors that were there."""
    tensors = (*model.parameters(), *model.buffers())
    halves = [(tensor, tensor.data) for tensor in tensors if tensor.dtype in (torch.float16, torch.bfloat16)]
    try:
        for tensor, half in halves:
            tensor.data = half.float()
        yield
    finally:
        for tensor, half in halves:
            tensor.data = half
