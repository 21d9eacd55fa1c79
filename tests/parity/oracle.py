"""Whole-batch autograd, written independently of the step it judges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from ullme.gradcache import gradcache_step
from ullme.models.modes import eval_mode
from ullme.objectives import PRESETS, Objective, measures_of, named, needs_of
from ullme.types import Batch, ObjectiveInputs

Forward = Callable[[Batch], ObjectiveInputs]
Preset = str | tuple[Objective, ...]  # the name of one, or objectives


def forward_of(model: nn.Module, objectives: tuple[Objective, ...]) -> Forward:
    return lambda batch: model(batch=batch, needs=needs_of(objectives))


def embed_of(model: nn.Module) -> Forward:
    return lambda batch: model(batch=batch, needs=("embedding",))


def measure_of(model: nn.Module, objectives: tuple[Objective, ...]) -> Forward | None:
    def measure(batch: Batch) -> ObjectiveInputs:
        with eval_mode(model):
            return model(batch=batch, needs=measures_of(objectives))

    return measure if measures_of(objectives) else None


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.detach().clone() for n, p in model.named_parameters() if p.grad is not None}


def relative_error(found: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Norm of the difference over the norm, all parameters together; missing gradients count as zero."""
    assert set(found) | set(right), "no gradient at all"
    names = set(found) | set(right)
    zero = torch.zeros(())
    difference = sum(float((found.get(n, zero) - right.get(n, zero)).double().square().sum()) for n in names)
    return (difference / sum(float(g.double().square().sum()) for g in right.values())) ** 0.5


def step_gradient(
    model: nn.Module,
    batch: Batch,
    preset: Preset,
    chunk_tokens: int | None,
    forward: Forward | None = None,
) -> tuple[dict[str, Tensor], float, int]:
    """Gradient, total loss and number of chunks of a GradCache step."""
    objectives = PRESETS[preset] if isinstance(preset, str) else preset
    model.zero_grad()
    result = gradcache_step(
        batch,
        forward=forward or forward_of(model, objectives),
        embed=embed_of(model),
        measure=measure_of(model, objectives),
        objectives=named(objectives),
        chunk_tokens=chunk_tokens,
    )
    return gradients(model), float(result.total), result.chunks


def totals(model: nn.Module, batch: Batch, objective: Objective) -> Tensor | None:
    """The sums over the batch that enter an objective, from one pass over all of it."""
    measure = measure_of(model, (objective,))
    if measure is None:
        return None
    with torch.no_grad():
        return objective.sums_BS(measure(batch)).double().sum(0)


def whole_gradient(
    model: nn.Module, batch: Batch, preset: Preset, parts: list[tuple[Batch, Tensor]] | None = None
) -> tuple[dict[str, Tensor], float]:
    """Gradient and loss of one autograd graph over the batch, in one piece or in parts with their own RNG states."""
    objectives = PRESETS[preset] if isinstance(preset, str) else preset
    forward = forward_of(model, objectives)
    model.zero_grad()
    pieces = []
    for part, state in parts or [(batch, torch.get_rng_state())]:
        torch.set_rng_state(state)
        pieces.append(forward(part))
    tensors = ("query_BD", "passage_BPD", "logp_BP", "ref_logp_BP", "tokens_BP", "masked_logp_B", "masked_tokens_B")
    joined = {
        name: torch.cat([getattr(piece, name) for piece in pieces])
        for name in tensors
        if getattr(pieces[0], name) is not None
    }
    inputs = ObjectiveInputs.of(batch, **joined)
    total = sum(o.weight * o(replace(inputs, totals_S=totals(model, batch, o))).mean() for o in objectives)
    total.backward()
    return gradients(model), float(total.detach())
