"""Causal triangles that a model class keeps in buffers, opened to both sides."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from ullme.models.recompute import attribute

Triangles = list[tuple[nn.Module, str, Tensor]]


def opened_triangles(decoder: nn.Module, full: bool) -> Triangles:
    """The modules that keep a causal triangle, the buffer's name, and what takes its place.

    A band, as a local layer has it, becomes a band to both sides, or with ``full`` no limit at all.
    """
    found: Triangles = []
    for path, value in decoder.named_buffers():
        if _is_triangle(value):
            both_sides = torch.ones_like(value) if full else (value.bool() | value.bool().mT).to(value.dtype)
            module, _, name = path.rpartition(".")
            found.append((decoder.get_submodule(module), name, both_sides))
    return found


@contextmanager
def replaced(triangles: Triangles) -> Iterator[None]:
    """Inside, the buffers are what takes their place."""
    with ExitStack() as stack:
        for module, name, both_sides in triangles:
            stack.enter_context(attribute(module, name, both_sides))
        yield


def _is_triangle(value: Tensor) -> bool:
    """Whether the corner of a square buffer has its diagonal and what is next below it, and nothing above."""
    if value.dim() < 2 or value.shape[-1] != value.shape[-2] or value.shape[-1] < 2:
        return False
    corner = value[..., :8, :8].bool()
    below = corner.diagonal(-1, -2, -1).all() & corner.diagonal(0, -2, -1).all()
    return bool(below) and not bool(corner.triu(1).any())
