"""Processes that hold shards of one model run its layers equally often, however many passes each one's texts take.

Every pass through a sharded layer gathers its weights from all processes, and every backward pass sums up gradients
over them. Processes with fewer passes in a forward of the model therefore run idle ones at its end: of one token, and
with no part in any result.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from ullme.models import ULLME
from ullme.models.attention import text_decoder
from ullme.types import ObjectiveInputs


class Lockstep:
    """Counts the passes of a model's decoder within a forward of the model, and evens them out over the processes.

    A process announces every pass before it runs, so that each step of the announcement is one pass on every process:
    a real one, or an idle one where the process has none left. Passes with gradient are evened out apart from those
    without: their number decides how often a layer's backward runs. They are back-propagated in the reverse of the
    order in which they ran, the same on every process.

    Args:
        model: the model that is, or will be, sharded.
        group: all processes, over CPU tensors.
    """

    def __init__(self, model: ULLME, group: dist.ProcessGroup | None = None) -> None:
        self._model, self._group = model, group
        self._decoder = text_decoder(model.causal_lm)
        self._counts = [0, 0]  # passes without gradient, with gradient
        self._states: list[Tensor] = []
        self._idling = False

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Inside, forwards of the model are kept in step; every process must then run equally many of them."""
        handles = [
            self._model.register_forward_pre_hook(lambda *_: self._begin()),
            self._decoder.register_forward_pre_hook(lambda *_: self._before_pass()),
            self._decoder.register_forward_hook(lambda _module, _args, output: self._after_pass(output)),
            # before the wrapper's own hook, which may take the weights outside the layers away
            self._model.register_forward_hook(lambda _module, _args, output: self._end(output), prepend=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self) -> None:
        self._counts, self._states = [0, 0], []

    def _before_pass(self) -> None:
        if not self._idling:
            self._counts[torch.is_grad_enabled()] += 1
            self._announce(running=True)

    def _after_pass(self, output: Any) -> None:
        state = output[0]
        if state.requires_grad:
            self._states.append(state)

    def _end(self, output: Any) -> Any:
        while True:
            running, most, least = self._announce(running=False)
            if not running and most == least:
                break
            self._idle(with_gradient=most[1] > self._counts[1])
        states, self._states = self._states, []
        return _tied(output, states) if isinstance(output, ObjectiveInputs) and states else output

    def _announce(self, running: bool) -> tuple[bool, list[int], list[int]]:
        """Whether any process has a pass of its own, and the most and the fewest passes of each kind so far."""
        told = torch.tensor([int(running), *self._counts, *(-count for count in self._counts)])
        dist.all_reduce(told, op=dist.ReduceOp.MAX, group=self._group)
        any_running, *counts = told.tolist()
        return bool(any_running), counts[:2], [-count for count in counts[2:]]

    def _idle(self, with_gradient: bool) -> None:
        one = torch.zeros(1, 1, dtype=torch.long, device=self._model.device)
        self._counts[with_gradient] += 1
        self._idling = True
        try:
            with torch.set_grad_enabled(with_gradient):
                self._decoder(input_ids=one, attention_mask=torch.ones_like(one), use_cache=False)
        finally:
            self._idling = False


def _tied(inputs: ObjectiveInputs, states: list[Tensor]) -> ObjectiveInputs:
    """The same inputs, such that whatever loss is made of them back-propagates through all of these states."""
    values = {f.name: getattr(inputs, f.name) for f in fields(inputs)}
    graph = {name: v for name, v in values.items() if isinstance(v, Tensor) and v.requires_grad}
    return replace(inputs, **dict(zip(graph, _Tied.apply(len(graph), *graph.values(), *states), strict=True)))


class _Tied(torch.autograd.Function):
    """The first tensors as they are; the others get a gradient of zeros."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.like = [(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors[count:]]
        return tuple(tensor.clone() for tensor in tensors[:count])  # small; of views FSDP warns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        zeros = (torch.zeros((), dtype=dtype, device=device).expand(shape) for shape, dtype, device in ctx.like)
        return None, *gradients, *zeros
