"""Ranks, and what crosses them."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from ullme.types import ObjectiveInputs, Texts


def is_distributed() -> bool:
    """Whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's number, from 0.

    Raises:
        ValueError: as for ``require_joined``: 0 would be wrong for all but one.
    """
    require_joined()
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """How many processes share the batch: 1 until they have joined."""
    return dist.get_world_size() if is_distributed() else 1


def require_joined() -> None:
    """Pass unless a launcher started this process as one of several and it has not joined them.

    Raises:
        ValueError: it has not, and would do the work of all by itself, beside the others.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    if launched > 1 and not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            f"WORLD_SIZE: this process was launched as one of {launched} and has not joined the others; make the "
            "training arguments first, training_arguments(...) or GradCacheTrainer(...), with use_cpu=True where there "
            "are no GPUs; or start one process"
        )


def global_sum(value: float | Tensor, device: torch.device | str = "cpu") -> Tensor:
    """The sum of a number over all ranks, a float64 scalar."""
    total = torch.as_tensor(value, dtype=torch.float64, device=device).clone()
    if is_distributed():
        dist.all_reduce(total)
    return total


def global_max(value: int, device: torch.device | str = "cpu") -> int:
    """The largest of a whole number over all ranks."""
    largest = torch.tensor(value, dtype=torch.long, device=device)
    if is_distributed():
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


def gather_rows(rows_BX: Tensor) -> tuple[Tensor, slice]:
    """The rows of all ranks one after another, and where this rank's stand among them; no gradient crosses.

    Ranks may hold different numbers of rows; the other dimensions must agree.
    """
    if not is_distributed():
        return rows_BX, slice(0, rows_BX.shape[0])
    counts = [torch.zeros((), dtype=torch.long, device=rows_BX.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor(rows_BX.shape[0], device=rows_BX.device))
    sizes = [int(c) for c in counts]
    padded = rows_BX.new_zeros((max(sizes), *rows_BX.shape[1:]))
    padded[: rows_BX.shape[0]] = rows_BX.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    start = sum(sizes[: rank()])
    return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)]), slice(start, start + sizes[rank()])


def gather_inputs(inputs: ObjectiveInputs) -> tuple[ObjectiveInputs, slice]:
    """The embeddings, masks and keys of all ranks' queries, and where this rank's stand; no gradient crosses.

    Ranks may hold different numbers of queries and of passages per query; row ids of other ranks are empty.
    """
    assert inputs.query_BD is not None and inputs.passage_BPD is not None, "these inputs were not embedded"
    passages = inputs.passage_mask_BP.shape[1]
    missing = global_max(passages, inputs.passage_mask_BP.device) - passages
    query_BD, own = gather_rows(inputs.query_BD)
    others = ("",) * (query_BD.shape[0] - len(inputs.row_ids) - own.start)
    whole = ObjectiveInputs(
        passage_mask_BP=gather_rows(pad(inputs.passage_mask_BP.byte(), (0, missing)))[0].bool(),
        positive_mask_BP=gather_rows(pad(inputs.positive_mask_BP.byte(), (0, missing)))[0].bool(),
        query_key_B=gather_rows(inputs.query_key_B)[0],
        passage_key_BP=gather_rows(pad(inputs.passage_key_BP, (0, missing)))[0],
        in_batch_B=None if inputs.in_batch_B is None else gather_rows(inputs.in_batch_B.byte())[0].bool(),
        row_ids=("",) * own.start + inputs.row_ids + others,
        query_BD=query_BD,
        passage_BPD=gather_rows(pad(inputs.passage_BPD, (0, 0, 0, missing)))[0],
    )
    return whole, own


def gather_texts(texts: Texts, query_key_B: Tensor, passage_key_BP: Tensor) -> tuple[Texts, Tensor, Tensor, slice]:
    """The B*P texts of all ranks' queries with their keys, and where this rank's queries stand among all.

    Ranks may hold different numbers of queries and of passages per query; a passage that a rank has no place for is
    absent (length 0, key 0).
    """
    queries, passages = passage_key_BP.shape
    missing = (0, global_max(passages, query_key_B.device) - passages)
    lengths_BP, skip_BP = (pad(value_N.view(queries, passages), missing) for value_N in (texts.lengths_N, texts.skip_N))
    whole_B, own = gather_rows(query_key_B)
    lengths_N, skip_N = (gather_rows(value_BP)[0].flatten() for value_BP in (lengths_BP, skip_BP))
    ids_X, _ = gather_rows(texts.ids_X)
    return Texts(ids_X, lengths_N, skip_N), whole_B, gather_rows(pad(passage_key_BP, missing))[0], own
