"""Random batches of token ids, for tests that need no text."""

from __future__ import annotations

from dataclasses import replace

import torch

from ullme.types import IGNORED, Batch, MaskedTexts, Texts


def random_texts(generator: torch.Generator, lengths: list[int], skip: list[int] | None = None) -> Texts:
    """Texts of these lengths over the tiny vocabulary, special tokens left out."""
    return Texts.from_lists(
        [torch.randint(3, 384, (length,), generator=generator).tolist() for length in lengths], skip
    )


def random_masked(generator: torch.Generator, lengths: list[int]) -> MaskedTexts:
    """Texts of which every third token, but no first one, is hidden behind token 5."""
    texts = random_texts(generator, lengths)
    hidden_X = torch.cat([torch.arange(n) % 3 == 1 for n in lengths])
    target_X = texts.ids_X.masked_fill(~hidden_X, IGNORED)
    return MaskedTexts(replace(texts, ids_X=texts.ids_X.masked_fill(hidden_X, 5)), target_X)


def after_their_query(texts: Texts, passages: int) -> Texts:
    """Each text with the context of the first one of its query."""
    ids, skip = [part.tolist() for part in texts.ids_X.split(texts.lengths_N.tolist())], texts.skip_N.tolist()
    for i, text in enumerate(ids):
        text[: skip[i]] = ids[i - i % passages][: skip[i]]
    return Texts.from_lists(ids, skip)


def random_batch(queries: int, passages: int, seed: int, generation: bool = False, ragged: bool = False) -> Batch:
    """A batch of unequal texts; ``ragged`` takes the last passages of every second query away.

    ``generation`` adds all that any objective may need: generation texts, masked texts, a teacher's scores.
    """
    g = torch.Generator().manual_seed(seed)
    count = queries * passages
    mask_BP = torch.ones(queries, passages, dtype=torch.bool)
    if ragged:
        mask_BP[1::2, max(1, passages - 1) :] = False
    present = mask_BP.flatten().tolist()
    sizes = torch.randint(3, 12, (count,), generator=g).tolist()
    lengths = [n if here else 0 for n, here in zip(sizes, present, strict=True)]
    heads = torch.randint(2, 6, (queries,), generator=g).repeat_interleave(passages).tolist()
    full = [head + n if n else 0 for head, n in zip(heads, lengths, strict=True)]
    skip = [head if n else 0 for head, n in zip(heads, lengths, strict=True)]
    positive_BP = torch.zeros(queries, passages, dtype=torch.bool)
    positive_BP[:, 0] = True
    return Batch(
        query=random_texts(g, torch.randint(2, 9, (queries,), generator=g).tolist()),
        passage=random_texts(g, lengths),
        generation=after_their_query(random_texts(g, full, skip), passages) if generation else None,
        passage_mask_BP=mask_BP,
        positive_mask_BP=positive_BP,
        query_key_B=torch.arange(queries) + 1_000,
        passage_key_BP=torch.arange(count).view(queries, passages),
        row_ids=tuple(f"row:{b}" for b in range(queries)),
        masked=random_masked(g, torch.randint(3, 9, (queries,), generator=g).tolist()) if generation else None,
        teacher_BP=torch.randn(queries, passages, generator=g).masked_fill(~mask_BP, 0.0) if generation else None,
    )
