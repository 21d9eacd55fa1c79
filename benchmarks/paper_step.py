"""A GRL step organised as the paper's public code is, with the same losses as ours: what ours is measured against.

The organisation: every text is padded to the longest of the whole batch, queries among passages; an embedding comes out
of the whole causal LM, its head included; likelihoods come from the logits of every position; chunks are a fixed number
of queries. The known errors of that code (see the design) are not copied: the gradient is the same as ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor

from ullme.models import ULLME
from ullme.models.fused_lora import FusedLoraLinear
from ullme.models.lora import reference_mode
from ullme.objectives import Objective
from ullme.types import Batch, ObjectiveInputs, Texts


@dataclass(frozen=True)
class Padded:
    """All texts of a batch, padded once; (B, 1 + P, T) with the query first, and (B, P, T) for generation."""

    batch: Batch
    ids_BNT: Tensor
    mask_BNT: Tensor
    pooled_BNT: Tensor
    generation_ids_BPT: Tensor
    generation_mask_BPT: Tensor
    scored_BPT: Tensor

    @classmethod
    def of(cls, batch: Batch, pad_token_id: int) -> Padded:
        """Both kinds of text, each padded to its longest of the whole batch."""
        assert batch.generation is not None
        queries, width = batch.passage_mask_BP.shape
        both = _joined(batch.query, batch.passage)
        ids_NT, mask_NT = both.pad(pad_token_id)
        generation_ids_NT, generation_mask_NT = batch.generation.pad(pad_token_id)
        scored_NT = batch.generation.scored_NT(generation_mask_NT)
        embedded = [
            torch.cat([x_NT[:queries, None], x_NT[queries:].unflatten(0, (queries, width))], dim=1)
            for x_NT in (ids_NT, mask_NT, both.scored_NT(mask_NT))
        ]
        shape = (queries, width)
        generated = [x.unflatten(0, shape) for x in (generation_ids_NT, generation_mask_NT, scored_NT)]
        return cls(batch, *embedded, *generated)

    def chunks(self, queries: int) -> list[Padded]:
        """A fixed number of queries each."""
        tensors = [getattr(self, name).split(queries) for name in list(self.__dataclass_fields__)[1:]]
        starts = range(0, len(self.batch), queries)
        rows = [list(range(i, min(i + queries, len(self.batch)))) for i in starts]
        return [Padded(self.batch.rows(r), *parts) for r, *parts in zip(rows, *tensors, strict=True)]


def _joined(a: Texts, b: Texts) -> Texts:
    return Texts(*(torch.cat([getattr(a, name), getattr(b, name)]) for name in ("ids_X", "lengths_N", "skip_N")))


def embed(model: ULLME, chunk: Padded) -> ObjectiveInputs:
    """Mean-pooled embeddings of a chunk, out of a causal LM whose logits are computed and not used."""
    mask_NT = chunk.mask_BNT.flatten(0, 1)
    output = model.causal_lm(
        input_ids=chunk.ids_BNT.flatten(0, 1),
        attention_mask=mask_NT,
        is_causal=False,
        use_cache=False,
        output_hidden_states=True,
    )
    pooled_NT = chunk.pooled_BNT.flatten(0, 1).float()
    weight_NT = pooled_NT / pooled_NT.sum(1, keepdim=True)
    rep_ND = (output.hidden_states[-1].float() * weight_NT[..., None]).sum(1)
    rep_BND = rep_ND.unflatten(0, chunk.ids_BNT.shape[:2])
    return ObjectiveInputs.of(chunk.batch, query_BD=rep_BND[:, 0], passage_BPD=rep_BND[:, 1:])


def likelihoods(model: ULLME, chunk: Padded) -> tuple[Tensor, Tensor]:
    """Log-likelihoods and tokens of a chunk's passages, (B, P), from full logits over the padded texts."""
    ids_NT, scored_NT = chunk.generation_ids_BPT.flatten(0, 1), chunk.scored_BPT.flatten(0, 1)
    mask_NT = chunk.generation_mask_BPT.flatten(0, 1)
    logits_NTV = model.causal_lm(input_ids=ids_NT, attention_mask=mask_NT, use_cache=False).logits
    logp_NTV = torch.log_softmax(logits_NTV[:, :-1].float(), dim=-1)
    logp_NT = logp_NTV.gather(2, ids_NT[:, 1:, None]).squeeze(2) * scored_NT[:, 1:]
    shape = chunk.generation_ids_BPT.shape[:2]
    return logp_NT.sum(1).unflatten(0, shape), scored_NT[:, 1:].sum(1).unflatten(0, shape)


def paper_step(
    model: ULLME, batch: Batch, objectives: Mapping[str, Objective], chunk_queries: int, autocast: torch.autocast
) -> Tensor:
    """Accumulate the gradient of the batch's weighted mean loss; the loss. LoRA layers are peft's own from here on."""
    for module in model.modules():
        if isinstance(module, FusedLoraLinear):
            module.__class__ = LoraLinear
    assert model.peft_model is not None
    chunks = Padded.of(batch, model.tokenizer.pad_token_id).chunks(chunk_queries)
    with torch.no_grad(), autocast:
        found = [embed(model, chunk) for chunk in chunks]
    leaves = [torch.cat([getattr(x, name) for x in found]).requires_grad_() for name in ("query_BD", "passage_BPD")]
    whole = ObjectiveInputs.of(batch, query_BD=leaves[0], passage_BPD=leaves[1])
    coupled = torch.stack([o.weight * o(whole).mean() for o in objectives.values() if o.couples_batch]).sum()
    cache = [g.split(chunk_queries) for g in torch.autograd.grad(coupled, leaves)]
    total = coupled.detach()
    for chunk, query_BD, passage_BPD in zip(chunks, *cache, strict=True):
        with autocast:
            inputs = embed(model, chunk)
            logp_BP, tokens_BP = likelihoods(model, chunk)
            with torch.no_grad(), reference_mode(model, model.peft_model):
                ref_logp_BP, _ = likelihoods(model, chunk)
        surrogate = (inputs.query_BD * query_BD).sum() + (inputs.passage_BPD * passage_BPD).sum()
        inputs = replace(inputs, logp_BP=logp_BP, tokens_BP=tokens_BP, ref_logp_BP=ref_logp_BP)
        own = [o.weight * o(inputs).sum() / len(batch) for o in objectives.values() if not o.couples_batch]
        loss = torch.stack(own).sum()
        (surrogate + loss).backward()
        total = total + loss.detach()
    return total
