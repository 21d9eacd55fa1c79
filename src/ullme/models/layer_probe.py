"""Which layers of a decoder mix tokens without seeing the future, looked at one layer at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def smallest_effect(dtype: torch.dtype) -> float:
    """An effect on the future below this share of the effect on the past is rounding."""
    return max(1e-3, 5 * torch.finfo(dtype).eps)


def look_at_layers(
    decoder: nn.Module, run: Callable[[], Any], length: int, dtype: torch.dtype
) -> tuple[list[str], list[str]]:
    """The layers that see the future, and those whose output follows a change of earlier tokens only.

    A hybrid passes a test of the whole model, because its attention layers carry the future around the others. So
    every layer is run three times on the states that reach it: as they are, with the first half of the tokens
    changed, and with the second half changed. A layer that mixes no tokens (an MLP) is in neither list.

    Args:
        decoder: a text model; the entries of its lists of modules are the layers.
        run: calls the decoder on one unpadded text.
        length: tokens of that text.
        dtype: of the decoder's states; changes that its rounding could make do not count.
    """
    seeing: list[str] = []
    blind: list[str] = []
    hooks = [
        layer.register_forward_hook(partial(_compare, seeing, blind, name, length, dtype), with_kwargs=True)
        for name, layer in _layers(decoder)
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return seeing, blind


def _layers(decoder: nn.Module) -> list[tuple[str, nn.Module]]:
    """The entries of every list of modules that lies in no other list (as a layer's list of experts does), by path."""
    lists = {path: module for path, module in decoder.named_modules() if isinstance(module, nn.ModuleList)}
    outermost = [path for path in lists if not any(path.startswith(f"{other}.") for other in lists)]
    return [(f"{path}.{i}", layer) for path in outermost for i, layer in enumerate(lists[path])]


def _compare(
    seeing: list[str],
    blind: list[str],
    name: str,
    length: int,
    dtype: torch.dtype,
    layer: nn.Module,
    args: tuple,
    kwargs: dict,
    output: Any,
) -> None:
    hidden = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(hidden, Tensor) or length not in hidden.shape[1:-1]:
        return
    axis = hidden.shape.index(length, 1)  # some layers carry several streams per token, before or behind this axis
    before_TX = _by_token(output, axis)
    first, second = range(length // 2), range(length // 2, length)

    def effect(changed: range, seen: range) -> float:
        """Largest relative change of a state in ``seen`` when the states in ``changed`` are others."""
        at = torch.tensor(changed, device=hidden.device)
        other = hidden.index_copy(axis, at, hidden.index_select(axis, at).flip(-1) * 1.5)
        again = (
            layer.forward(other, *args[1:], **kwargs) if args else layer.forward(**kwargs | {"hidden_states": other})
        )
        change_T = (_by_token(again, axis) - before_TX)[list(seen)].norm(dim=-1)
        return float((change_T / before_TX[list(seen)].norm(dim=-1).clamp(min=1e-30)).max())

    past, future = effect(first, second), effect(second, first)
    if future > smallest_effect(dtype) * past:
        seeing.append(name)
    elif past > min(20 * torch.finfo(dtype).eps, 1e-2):
        blind.append(f"{name} ({type(layer).__name__})")


def _by_token(output: Any, axis: int) -> Tensor:
    """A layer's states as one row of numbers per token."""
    states = output if isinstance(output, Tensor) else output[0]
    return states.movedim(axis, 0).flatten(1).float()
