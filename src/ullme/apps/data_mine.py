"""Hard negatives for a file of pairs, with embeddings that are kept: a killed run goes on, another margin is cheap."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ullme.data import DataSource, PairDataset, load_pairs, mine_negatives
from ullme.data.convert import write_rows
from ullme.data.writers import require_target
from ullme.encode import EmbeddedCorpus, EncodeOptions, Progress, TextSource, encode_corpus
from ullme.templates import instruction_prompt
from ullme.types import PairExample


class Miner(NamedTuple):
    """The model that finds the negatives.

    Attributes:
        name: what it is called.
        load: gives it, on the device that is asked for.
        fingerprint: a hash of all that decides its embeddings.
        prompt: before every passage; None takes the model's own for passages, if any.
        query_prompt: before every query; None takes the row's instruction, else the model's own for queries, if any.
        device: where it computes.
        batch_size: memory of a batch, in texts of 128 tokens.
    """

    name: str
    load: Callable[[str | None], Any]
    fingerprint: Callable[[Any], str | None]
    prompt: str | None = None
    query_prompt: str | None = None
    device: str | None = None
    batch_size: int = 32


class Mined(NamedTuple):
    """What came of it: rows, those without any negative, and negatives in all."""

    rows: int
    without: int
    negatives: int


def mine_data(
    source: DataSource,
    output: Path,
    miner: Miner,
    *,
    corpus: Path | None = None,
    kept: Path | None = None,
    to: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Mined:
    """Write a source's pairs with mined negatives in place of their own.

    Args:
        source: the pairs.
        output: the file or folder to write.
        miner: the model.
        corpus: passages to mine from beside the positives: any source of texts that ``ullme encode`` reads.
        kept: folder for the embeddings; default beside the output. What is there is not computed again.
        to: the output's format.
        progress: is told how far embedding is.
        options: of ``mine_negatives``.

    Raises:
        ValueError: bad rows, an output that cannot be written, or embeddings of another model in the folder.
    """
    require_target(output, to)
    rows = load_pairs(source)
    texts = None if corpus is None else [row.text for row in TextSource(corpus).rows()]
    folder = kept or output.with_name(f"{output.name.split('.')[0]}-embeddings")
    miner = miner._replace(load=cache(miner.load))
    passages = _Stored(miner, folder, progress)
    mined = mine_negatives(
        (rows[i] for i in range(len(rows))),
        lambda passage_texts: passages(passage_texts, "passages", "corpus", miner.prompt),
        lambda queries: _queries(passages, queries, _prompts(rows, miner)),
        corpus=texts,
        **options,
    )
    write_rows(map(_row, mined, range(1, len(mined) + 1)), [source.path], output, to)
    counts = [len(row.negatives) for row in mined]
    return Mined(len(mined), counts.count(0), sum(counts))


class _Stored:
    """Embeddings in folders of ``encode_corpus``, one for each list of texts."""

    def __init__(self, miner: Miner, folder: Path, progress: Progress | None) -> None:
        self._miner, self._folder, self._progress = miner, folder, progress

    def __call__(self, texts: Sequence[str], name: str, part: str, prompt: str | None) -> np.ndarray:
        """Embeddings (N, D) of the texts in their order."""
        self._folder.mkdir(parents=True, exist_ok=True)
        listed, place = self._folder / f"{name}.jsonl", self._folder / name
        unfinished = listed.with_suffix(".unfinished")
        with unfinished.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        os.replace(unfinished, listed)
        encode_corpus(
            self._miner.load,
            TextSource(listed, part=part),
            place,
            EncodeOptions(prompt, keep_text=False),
            model=self._miner.name,
            fingerprint=self._miner.fingerprint,
            batch_size=self._miner.batch_size,
            device=self._miner.device,
            progress=self._progress,
        )
        corpus = EmbeddedCorpus(place)
        return np.concatenate([corpus.restored(block) for _, block in corpus.stored_blocks()])


def _prompts(rows: PairDataset, miner: Miner) -> dict[str, str | None]:
    """The prompt of every query: the one that was asked for, else its instruction's, else the model's own (None)."""
    if miner.query_prompt is not None:
        return {row.query: miner.query_prompt for row in (rows[i] for i in range(len(rows)))}
    found: dict[str, str | None] = {}
    for row in (rows[i] for i in range(len(rows))):
        found.setdefault(row.query, instruction_prompt(row.instruction) or None)
    return found


def _queries(encode: _Stored, queries: Sequence[str], prompts: dict[str, str | None]) -> np.ndarray:
    """Embeddings of the queries; those of one prompt are embedded together."""
    groups: dict[str | None, list[int]] = {}
    for i, query in enumerate(queries):
        groups.setdefault(prompts[query], []).append(i)
    parts = [
        encode([queries[i] for i in group], f"queries-{number}", "queries", prompt)
        for number, (prompt, group) in enumerate(groups.items())
    ]
    query_BD = np.empty((len(queries), parts[0].shape[1]), dtype=np.float32)
    for group, part in zip(groups.values(), parts, strict=True):
        query_BD[group] = part
    return query_BD


def _row(example: PairExample, number: int) -> dict[str, Any]:
    return {
        "query": example.query,
        "positives": list(example.positives),
        "negatives": list(example.negatives),
        "instruction": example.instruction,
        "scores": None if example.scores is None else list(example.scores),
        "file": 0,
        "row": number,
    }
