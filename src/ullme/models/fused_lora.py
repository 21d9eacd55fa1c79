"""A LoRA layer as one step: its low-rank part is added inside the base layer's output. In training, and to embed.

peft computes base and low-rank output apart, scales one and adds the two, each a tensor of its own, forward and
backward. Here both are accumulated into one (benchmarks/LOG.md has what it saves). Shapes: ``X`` tokens, ``I`` inputs,
``O`` outputs, ``R`` rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

#: Types of a weight whose numbers are all here; a fake one stands for such a one (``ullme.apps.plan_model``).
_WHOLE = (nn.Parameter, FakeTensor)
_HALF = (torch.bfloat16, torch.float16)

_packed: ContextVar[bool] = ContextVar("packed", default=False)


@contextmanager
def packed_lora() -> Iterator[None]:
    """Inside, in this thread, texts are packed: they are embedded or scored, and nothing is generated."""
    before = _packed.set(True)
    try:
        yield
    finally:
        _packed.reset(before)


class FusedLoraLinear(LoraLinear):
    """peft's LoRA layer over ``nn.Linear``, computed as one step in training and in packed calls.

    Otherwise, and where something unusual is asked of it, it is peft's own, so that generation equals plain
    Transformers with the adapter bit for bit. In half precision the step rounds the adapter as autocast does in
    training; peft computes the low-rank part in float32 and rounds its output.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output plus the scaled low-rank one, as peft's."""
        asked = (self.training or _packed.get()) and not args and not kwargs
        adapter = self._only_adapter() if asked else None
        if adapter is None or not self._of_one_dtype(adapter, x):
            return super().forward(x, *args, **kwargs)
        dropout = self.lora_dropout[adapter]
        return _LoraLinear.apply(
            x.to(_compute_dtype(x)),
            self.base_layer.weight,
            self.base_layer.bias,
            self.lora_A[adapter].weight,
            self.lora_B[adapter].weight,
            self.scaling[adapter],
            dropout.p if self.training and isinstance(dropout, nn.Dropout) else 0.0,
        )

    def _only_adapter(self) -> str | None:
        """The adapter, if it alone is active, plain LoRA, and over a frozen weight that is whole on this device."""
        active = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(active) != 1 or active[0] in self.lora_variant:
            return None
        base, up = self.base_layer, self.lora_B[active[0]]
        plain = type(base) is nn.Linear and type(base.weight) in _WHOLE and not hasattr(base, "_hf_hook")
        frozen = plain and not any(p.requires_grad for p in base.parameters())
        dropout = isinstance(self.lora_dropout[active[0]], nn.Dropout | nn.Identity)
        return active[0] if frozen and dropout and up.bias is None else None

    def _of_one_dtype(self, adapter: str, x: Tensor) -> bool:
        """Whether all is computed in one dtype: autocast's, or the one that everything has, in eval mode the base."""
        if torch.is_autocast_enabled(x.device.type):
            return True
        rounded = not self.training and x.dtype in _HALF
        return self.base_layer.weight.dtype == x.dtype and (rounded or self.lora_A[adapter].weight.dtype == x.dtype)


def fuse(module: nn.Module) -> None:
    """Let a module be computed as one step, if it is peft's LoRA layer over a linear one."""
    if type(module) is LoraLinear and not module.fan_in_fan_out:
        module.__class__ = FusedLoraLinear  # the same state; peft, merging and saving see a LoraLinear


def _compute_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class _LoraLinear(torch.autograd.Function):
    """x W^T + bias + scale * drop(x) A^T B^T; what backward needs is x, the dropout mask and x A^T."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        a_RI: Tensor,
        b_OR: Tensor,
        scale: float,
        p: float,
    ) -> Tensor:
        x_XI, dtype = x.flatten(0, -2), x.dtype
        with torch.autocast(x.device.type, enabled=False):
            weight_OI, a_half_RI, b_half_OR = (w.to(dtype) for w in (weight_OI, a_RI, b_OR))
            dropped_XI, mask_XI = torch.native_dropout(x_XI, p, True) if p else (x_XI, None)
            down_XR = dropped_XI @ a_half_RI.T
            out_XO = nn.functional.linear(x_XI, weight_OI, None if bias_O is None else bias_O.to(dtype))
            out_XO.addmm_(down_XR, b_half_OR.T, alpha=scale)
        ctx.save_for_backward(x_XI, weight_OI, a_half_RI, b_half_OR, down_XR, mask_XI)
        ctx.scale, ctx.keep, ctx.adapter_dtype, ctx.shape = scale, 1 - p, a_RI.dtype, x.shape
        return out_XO.unflatten(0, x.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grad.device.type, enabled=False):  # backward may be called inside it
            return _gradients(ctx, grad)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x_XI, weight_OI, a_RI, b_OR, down_XR, mask_XI = ctx.saved_tensors
    grad_XO = grad.flatten(0, -2)
    grad_down_XR = (grad_XO @ b_OR).mul_(ctx.scale)
    grad_b_OR = (grad_XO.T @ down_XR).to(ctx.adapter_dtype).mul_(ctx.scale)
    dropped_XI = x_XI if mask_XI is None else x_XI * mask_XI / ctx.keep
    grad_a_RI = (grad_down_XR.T @ dropped_XI).to(ctx.adapter_dtype)
    grad_x = None
    if ctx.needs_input_grad[0]:
        grad_XI = grad_XO @ weight_OI
        if mask_XI is None:
            grad_XI.addmm_(grad_down_XR, a_RI)
        else:
            grad_XI.addcmul_(grad_down_XR @ a_RI, mask_XI.to(grad_XI.dtype), value=1 / ctx.keep)
        grad_x = grad_XI.view(ctx.shape)
    return grad_x, None, None, grad_a_RI, grad_b_OR, None, None
