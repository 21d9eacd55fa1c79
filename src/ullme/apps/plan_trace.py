"""The memory of one chunk, found by running it: forward and backward on fake tensors, whose lifetimes are counted."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ullme.models import ULLME, logprob
from ullme.models.half import HalfWeights
from ullme.models.inputs import objective_inputs
from ullme.models.recompute import attribute
from ullme.models.text_groups import Block, TextGroups
from ullme.types import IGNORED, Batch, MaskedTexts, Need, ObjectiveInputs, Texts


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of fake tensors that come into being inside and are still held by something.

    Attributes:
        now: bytes that are held now.
        peak: the most that were held at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._held: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it made."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, FakeTensor):
                self._count(tensor.untyped_storage())
        return made

    def ignore(self, tensors: Collection[Tensor]) -> None:
        """Leave these out, which were there before: views of them, and operations in place, hand them out again."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._held.setdefault(id(storage), weakref.ref(storage))

    def _count(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._held:
            return

        def freed(_: object) -> None:
            self.now -= size
            del self._held[key]

        self._held[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


@dataclass(frozen=True)
class ChunkMemory:
    """What a chunk takes beside weights, gradients and optimizer.

    Attributes:
        kept: bytes that backward needs, when forward is done.
        peak: the most that is in use at once, forward or backward.
    """

    kept: int
    peak: int


def chunk_memory(
    model: ULLME, chunk: Batch, needs: Collection[Need], autocast: torch.dtype | None, half: bool, alone: bool
) -> ChunkMemory:
    """The memory of a chunk's forward and backward.

    The model's own code runs. Of each layer's packed attention only the block with the largest weights is computed:
    blocks leave nothing behind.

    Args:
        model: on fake tensors (``plan_model.planned_model``); what no objective reaches is frozen.
        chunk: the texts.
        needs: what objectives need of them.
        autocast: dtype of mixed precision; None without.
        half: whether half-precision copies of frozen weights stand in for them.
        alone: whether the chunk is the whole batch; the gradients of other chunks are there otherwise.

    Raises:
        RuntimeError: and whatever else model code raises that looks at values, which fake tensors do not have.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = None if alone else torch.zeros_like(parameter)
    copies = HalfWeights(model, autocast) if half and autocast is not None else None
    live = LiveBytes()
    with live, _one_block_of_attention(), nullcontext() if copies is None else copies.used():
        live.ignore([*model.parameters(), *model.buffers(), *(p.grad for p in trained if p.grad is not None)])
        with _autocast(autocast):
            inputs = objective_inputs(model, chunk, frozenset(needs) - {"mismatched", "teacher"})
        kept = live.now
        loss = _any_loss(inputs)
        del inputs
        loss.backward()
    gradients = sum(p.grad.nbytes for p in trained if p.grad is not None) if alone else 0
    return ChunkMemory(kept, max(0, live.peak - gradients))


def merged(chunk: Batch) -> Batch:
    """As many tokens of each kind, in texts as long as the longest of the kind: nearly all memory goes by tokens.

    A model that does not pack would take many forward passes for texts of many lengths, and here needs one or two.
    Each kind's texts are one per query; where a kind has fewer, the rest are absent.
    """
    kinds = {
        "query": chunk.query,
        "passage": chunk.passage,
        "generation": chunk.generation,
        "masked": None if chunk.masked is None else chunk.masked.texts,
    }
    long = {name: _long(texts) for name, texts in kinds.items() if texts is not None}
    rows = max(len(texts) for texts in long.values())
    texts = {name: _with_absent(found, rows) for name, found in long.items()}
    exists_BP = torch.ones(rows, 1, dtype=torch.bool)
    key_B = torch.arange(rows)
    return Batch(
        query=texts["query"],
        passage=texts["passage"],
        generation=texts.get("generation"),
        passage_mask_BP=exists_BP,
        positive_mask_BP=exists_BP,
        query_key_B=key_B,
        passage_key_BP=key_B[:, None],
        row_ids=("",) * rows,
        masked=None if chunk.masked is None else _hidden(texts["masked"], chunk.masked),
        ref_logp_BP=None if chunk.ref_logp_BP is None else torch.zeros(rows, 1),
    )


def _long(texts: Texts) -> Texts:
    """The tokens of all these texts in few, with the same share of context; at least one text of one token."""
    tokens, longest = max(1, int(texts.lengths_N.sum())), max(1, int(texts.lengths_N.max()))
    lengths = [longest] * (tokens // longest) + ([tokens % longest] if tokens % longest else [])
    share = float(texts.skip_N.clamp(max=texts.lengths_N).sum()) / tokens
    return Texts.from_lists([[0] * n for n in lengths], [min(n - 1, round(n * share)) for n in lengths])


def _with_absent(texts: Texts, rows: int) -> Texts:
    missing = rows - len(texts)
    return Texts.joined(texts, Texts.from_lists([[]] * missing)) if missing else texts


def _hidden(texts: Texts, masked: MaskedTexts) -> MaskedTexts:
    """As large a share of hidden tokens."""
    share = float((masked.target_X != IGNORED).float().mean())
    target_X = torch.full_like(texts.ids_X, IGNORED)
    target_X[: round(share * len(target_X))] = 0
    return MaskedTexts(texts, target_X)


def _any_loss(inputs: ObjectiveInputs) -> Tensor:
    """A number to which everything that was computed with gradient contributes."""
    found = [value for value in vars(inputs).values() if isinstance(value, Tensor) and value.requires_grad]
    return torch.stack([value.sum() for value in found]).sum()


@contextmanager
def _one_block_of_attention() -> Iterator[None]:
    blocks_of = TextGroups.blocks

    def largest(groups: TextGroups, *others: Any) -> list[Block]:
        return [max(blocks_of(groups, *others), key=lambda block: block.cells)]

    with ExitStack() as stack:
        stack.enter_context(attribute(TextGroups, "blocks", largest))
        if torch.cuda.is_available():  # fake tensors are on the CPU, where blocks of logits are smaller
            for name in ("BLOCK_BYTES", "TILE_BYTES"):
                stack.enter_context(attribute(logprob, name, {"cpu": logprob.BLOCK_BYTES["cuda"]}))
        yield


def _autocast(dtype: torch.dtype | None) -> AbstractContextManager:
    return nullcontext() if dtype is None else torch.autocast("cpu", dtype)
