"""From a batch to what objectives need of it: one function per need, each a forward pass over some of its texts."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ullme.models.lora import reference_mode
from ullme.types import Batch, Need, ObjectiveInputs, Texts

if TYPE_CHECKING:
    from ullme.models.ullme import ULLME

Filled = dict[str, Tensor]


def objective_inputs(model: ULLME, batch: Batch, needs: Collection[Need]) -> ObjectiveInputs:
    """What objectives need of a chunk; embeddings first, so that a replay draws the same dropout."""
    filled: Filled = {}
    for need, fill in FILLERS.items():
        if need in needs:
            filled |= fill(model, batch)
    return ObjectiveInputs.of(batch, **filled)


def _embedding(model: ULLME, batch: Batch) -> Filled:
    rep_ND = model.embed_texts(Texts.joined(batch.query, batch.passage))  # in as few forwards as they fit
    query_BD, passage_ND = rep_ND.split((len(batch.query), len(batch.passage)))
    return {"query_BD": query_BD, "passage_BPD": passage_ND.unflatten(0, batch.passage_mask_BP.shape)}


def _logp(model: ULLME, batch: Batch) -> Filled:
    logp_N, tokens_N = model.score_texts(_generation(batch))
    shape_BP = batch.passage_mask_BP.shape
    return {"logp_BP": logp_N.unflatten(0, shape_BP), "tokens_BP": tokens_N.unflatten(0, shape_BP)}


def _reference(model: ULLME, batch: Batch) -> Filled:
    if batch.ref_logp_BP is not None:  # computed before training
        return {}
    logp_N = reference_logp(model, _generation(batch))[0]
    return {"ref_logp_BP": logp_N.unflatten(0, batch.passage_mask_BP.shape)}


def _mismatched(model: ULLME, batch: Batch) -> Filled:
    assert batch.mismatched is not None, "the batch has no mismatched texts"
    with torch.no_grad():
        logp_N, tokens_N = model.score_texts(batch.mismatched)
    names = ("mismatched_logp_BP", "mismatched_ref_logp_BP", "mismatched_tokens_BP")
    values = (logp_N, reference_logp(model, batch.mismatched)[0], tokens_N)
    shape_BP = (len(batch), len(batch.mismatched) // len(batch))
    return {name: value_N.unflatten(0, shape_BP) for name, value_N in zip(names, values, strict=True)}


def _masked(model: ULLME, batch: Batch) -> Filled:
    if batch.masked is None:
        raise ValueError("batch.masked: is None but masked tokens are to be predicted; give PairCollator a masking")
    logp_B, tokens_B = model.score_masked(batch.masked)
    return {"masked_logp_B": logp_B, "masked_tokens_B": tokens_B}


#: How each need is met, in the order in which it is; a teacher's scores come with the batch.
FILLERS: dict[Need, Callable[[ULLME, Batch], Filled]] = {
    "embedding": _embedding,
    "logp": _logp,
    "reference": _reference,
    "mismatched": _mismatched,
    "masked": _masked,
}


@torch.no_grad()
def reference_logp(model: ULLME, texts: Texts) -> tuple[Tensor, Tensor]:
    """Log-likelihoods (N,) of the original LLM, which is the model with its adapter switched off, and tokens (N,).

    Raises:
        ValueError: the model has no adapter, or not it alone makes the difference.
    """
    if model.merged:
        raise ValueError(
            "reference: earlier adapters are merged into this model, so switching the last one off cannot give the "
            "original LLM; compute the reference before training (trainer.reference: precomputed)"
        )
    if model.peft_model is None:
        raise ValueError(
            "reference: this model has no adapter, so switching it off cannot give the original LLM; set lora_name"
        )
    with reference_mode(model, model.peft_model):
        return model.score_texts(texts)


def _generation(batch: Batch) -> Texts:
    if batch.generation is None:
        raise ValueError("batch.generation: is None but likelihoods are needed; use PairCollator(generation=True)")
    return batch.generation
