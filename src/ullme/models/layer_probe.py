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


def blind_layers(decoder: nn.Module, run: Callable[[], Any], dtype: torch.dtype) -> list[str]:
    """The layers whose output follows a change of earlier tokens, but not one of later tokens.

    A hybrid passes a test of the whole model, because its attention layers carry the future around the others. So
    every layer is run three times on the states that reach it: as they are, with the first half of the tokens
    changed, and with the second half changed. A layer that mixes no tokens (an MLP) is not blind.

    Args:
        decoder: a text model; its longest list of modules are the layers.
        run: calls the decoder on one unpadded text.
        dtype: of the decoder's states; changes that its rounding could make do not count.
    """
    stacks = [module for module in decoder.modules() if isinstance(module, nn.ModuleList)]
    layers: nn.ModuleList = max(stacks, key=len, default=nn.ModuleList())
    blind: list[str] = []
    hooks = [
        layer.register_forward_hook(partial(_compare, blind, f"layer {i}", dtype), with_kwargs=True)
        for i, layer in enumerate(layers)
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return blind


def _compare(
    blind: list[str], name: str, dtype: torch.dtype, layer: nn.Module, args: tuple, kwargs: dict, output: Any
) -> None:
    hidden_1TD = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(hidden_1TD, Tensor) or hidden_1TD.dim() != 3:
        return
    before_TD = _states(output)[0].float()
    half = hidden_1TD.shape[1] // 2
    first, second = slice(0, half), slice(half, None)

    def effect(changed: slice, seen: slice) -> float:
        """Largest relative change of a state in ``seen`` when the states in ``changed`` are others."""
        other_1TD = hidden_1TD.clone()
        other_1TD[:, changed] = other_1TD[:, changed].flip(-1) * 1.5
        again = (
            layer.forward(other_1TD, *args[1:], **kwargs)
            if args
            else layer.forward(**kwargs | {"hidden_states": other_1TD})
        )
        change_T = (_states(again)[0].float() - before_TD)[seen].norm(dim=-1)
        return float((change_T / before_TD[seen].norm(dim=-1).clamp(min=1e-30)).max())

    past, future = effect(first, second), effect(second, first)
    mixes = past > min(20 * torch.finfo(dtype).eps, 1e-2)
    if mixes and not future > smallest_effect(dtype) * past:
        blind.append(f"{name} ({type(layer).__name__})")


def _states(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]
