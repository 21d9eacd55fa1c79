"""The gradient invariant of ``ullme check``: both attentions in one step, with and without activation checkpointing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ullme.models.attention import AttentionSwitch, text_decoder
from ullme.models.probe import distinct_ids
from ullme.types import Attention, Texts

LENGTH = 10
PADDING = 3
MOST_WEIGHTS = 20_000_000  # beyond it, the gradient of the token embeddings stands for all: every layer is on its way


def gradient_failure(causal_lm: PreTrainedModel, switch: AttentionSwitch, tolerance: float) -> tuple[str, bool]:
    """What is wrong with the gradients of a step that uses both attentions, and whether activations are recomputed.

    The reference is each attention's gradient computed alone, nothing recomputed. Compared with it: both calls
    pending in one backward, without and with activation checkpointing, padded, and packed where the switch packs. One
    text is padded on the left.

    Returns:
        A sentence, empty when all agree; and False where the class offers no checkpointing, or ignores it.
    """
    step = _Step(causal_lm, switch)
    with _training(causal_lm), torch.random.fork_rng(devices=[]):
        reference = [b + c for b, c in zip(step.gradient("bidirectional"), step.gradient("causal"), strict=True)]
        if not all(bool(g.isfinite().all()) for g in reference):
            return "a gradient is not finite", False
        plain_calls, gradient = step.counted("bidirectional", "causal")
        if _error(gradient, reference) > tolerance:
            return "gradients change when both attentions share a step", False
        if switch.packs and step.packing_error() > tolerance:
            return "gradients change when texts are packed", False
        packed = step.gradient("bidirectional", "causal", packed=True) if switch.packs else gradient
        if not causal_lm.supports_gradient_checkpointing:
            return "", False
        causal_lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        try:
            calls, gradient = step.counted("bidirectional", "causal")
            packed_again = step.gradient("bidirectional", "causal", packed=True) if switch.packs else packed
        finally:
            causal_lm.gradient_checkpointing_disable()
        if max(_error(gradient, reference), _error(packed_again, packed)) > tolerance:
            return "gradients change under activation checkpointing", True
        return "", calls > plain_calls


class _Step:
    """Two texts, the parameters whose gradient is taken, and fixed directions into which hidden states are summed."""

    def __init__(self, causal_lm: PreTrainedModel, switch: AttentionSwitch) -> None:
        self.causal_lm, self.switch = causal_lm, switch
        self.ids_NT = torch.cat([distinct_ids(causal_lm, LENGTH), distinct_ids(causal_lm, LENGTH, shift=5)])
        self.mask_NT = torch.ones_like(self.ids_NT)
        self.mask_NT[1, :PADDING] = 0
        decoder = text_decoder(causal_lm)
        parameters: list[Tensor] = [p for p in decoder.parameters() if p.is_floating_point()]
        if sum(p.numel() for p in parameters) > MOST_WEIGHTS:
            parameters = [p for p in causal_lm.get_input_embeddings().parameters() if p.is_floating_point()]
        self.parameters = parameters

    def gradient(self, *attentions: Attention, packed: bool = False) -> list[Tensor]:
        """Gradient of the summed states of these attentions, computed in one backward."""
        total = torch.zeros((), device=self.ids_NT.device, dtype=torch.float64)
        for attention in attentions:
            torch.manual_seed(len(attention))  # the same dropout in every computation of this attention
            hidden_XD = self._states(attention, packed)
            direction_D = torch.linspace(-1, 1 + len(attention), hidden_XD.shape[-1], device=hidden_XD.device).cos()
            total = total + (hidden_XD * direction_D).tanh().sum(dtype=torch.float64)
        found = torch.autograd.grad(total, self.parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, found, strict=True)]

    def packing_error(self) -> float:
        """What packing changes of the gradient, dropout off: packed, each token draws another mask."""
        self.causal_lm.eval()
        padded, packed = (self.gradient("bidirectional", "causal", packed=packed) for packed in (False, True))
        self.causal_lm.train()
        return _error(packed, padded)

    def _states(self, attention: Attention, packed: bool) -> Tensor:
        """The states of both texts' tokens, (X, D)."""
        real_NT = self.mask_NT.bool()
        if not packed:
            return self.switch.hidden(self.causal_lm, self.ids_NT, self.mask_NT, attention)[real_NT]
        lengths_N = real_NT.sum(1)
        texts = Texts(self.ids_NT[real_NT], lengths_N, torch.zeros_like(lengths_N))
        return self.switch.packed(self.causal_lm, texts, attention)

    def counted(self, *attentions: Attention) -> tuple[int, list[Tensor]]:
        """The gradient, and how often the innermost modules ran for it."""
        calls = 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        leaves = [m for m in text_decoder(self.causal_lm).modules() if next(m.children(), None) is None]
        hooks = [leaf.register_forward_hook(count) for leaf in leaves]
        try:
            gradient = self.gradient(*attentions)
        finally:
            for hook in hooks:
                hook.remove()
        return calls, gradient


def _error(gradient: list[Tensor], reference: list[Tensor]) -> float:
    """Norm of the difference over the norm of the reference, all parameters together; NaN counts as infinite."""
    difference = sum(float((a.double() - b.double()).pow(2).sum()) for a, b in zip(gradient, reference, strict=True))
    size = sum(float(b.double().pow(2).sum()) for b in reference)
    error = (difference / max(size, 1e-60)) ** 0.5
    return error if error == error else float("inf")


@contextmanager
def _training(model: PreTrainedModel) -> Iterator[None]:
    """Training mode and trainable parameters inside, since activations are recomputed for nothing else."""
    modes = [(module, module.training) for module in model.modules()]
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    model.train()
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module, mode in modes:
            module.training = mode
