"""Attributes that hold for the length of a call, and again when activation checkpointing repeats one of its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn


@contextmanager
def attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """The attribute has this value inside, and its old one (or none) afterwards."""
    existed, old = hasattr(owner, name), getattr(owner, name, None)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if existed:
            setattr(owner, name, old)
        else:
            delattr(owner, name)


@contextmanager
def held_in_recomputation(
    decoder: nn.Module,
    context: Callable[[], AbstractContextManager],
    again: Callable[[], AbstractContextManager] | None = None,
) -> Iterator[None]:
    """The context holds inside, and whenever a layer that was checkpointed inside runs once more in backward.

    There it is entered as ``again`` says, which by default is the same.
    """
    with ExitStack() as stack:
        for layer in decoder.modules():
            recompute = vars(layer).get("_gradient_checkpointing_func")
            if recompute is not None:
                stack.enter_context(
                    attribute(
                        layer, "_gradient_checkpointing_func", partial(_checkpointed, recompute, again or context)
                    )
                )
        stack.enter_context(context())
        yield


def _checkpointed(
    recompute: Callable, context: Callable[[], AbstractContextManager], layer: Callable, *args: Any
) -> Any:
    def layer_in_context(*args: Any) -> Any:
        with context():
            return layer(*args)

    return recompute(layer_in_context, *args)
