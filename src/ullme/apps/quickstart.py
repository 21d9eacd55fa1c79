"""The quickstart: a real LLM becomes an embedder of this machine's own documentation, scored before and after."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ullme.apps.doc_pairs import DocPairs, doc_pairs, write_jsonl
from ullme.apps.doc_sources import PACKAGES
from ullme.apps.retrieval import Encode, RetrievalTask, nearest_passages
from ullme.apps.run_folder import RUN_FILE, require_own_folder
from ullme.apps.search import hits_table
from ullme.apps.train import train
from ullme.config import RunConfig
from ullme.models import ULLME
from ullme.trainer.plots import plot_losses
from ullme.types import Attention, PairExample

PASSAGES_FILE = "passages.txt"
TEST_FILE = "test.jsonl"
MAX_LENGTH = 64  # tokens of a text: the longest passages of the documentation are about 60


@dataclass(frozen=True)
class QuickstartScores:
    """Retrieval scores, in 0..1, of the base model in both attention modes and of the fine-tuned one."""

    base_causal: dict[str, float]
    base_bidirectional: dict[str, float]
    fine_tuned: dict[str, float]

    @property
    def gain(self) -> float:
        """Fine-tuned nDCG@10 over that of the better base."""
        base = max(self.base_causal["ndcg@10"], self.base_bidirectional["ndcg@10"])
        return self.fine_tuned["ndcg@10"] / max(base, 1e-9)  # a base may find nothing at all


def quickstart(
    model: str = "smollm2-135m-instruct",
    output: Path = Path("runs/quickstart"),
    *,
    steps: int = 30,
    batch_size: int = 32,
    test_queries: int = 200,
    test_passages: int = 600,
    packages: Sequence[str] = PACKAGES,
    seed: int = 0,
    console: Console | None = None,
) -> QuickstartScores:
    """Make documentation pairs, score the base model, fine-tune it, score it again, search with it.

    The folder gets ``data/`` (the pairs, and passages to search), ``run/`` (run file, checkpoints, logs, ``model/``),
    ``loss.png`` and ``scores.json``. A second call with the same arguments resumes a training that was interrupted.

    Args:
        model: packaged model, hub name or folder.
        output: folder of the run.
        steps: optimiser steps.
        batch_size: queries per step, each with its positive and one hard negative.
        test_queries: queries about functions that training never saw.
        test_passages: passages among which they are searched.
        packages: installed packages whose documentation is used.
        seed: seed of data and training.
        console: where to print.

    Raises:
        ValueError: the model cannot be loaded or switched, or the folder holds another run.
    """
    console = console or Console()
    console.rule("[bold]1. Documentation pairs")
    pairs = doc_pairs(
        packages, max_train=steps * batch_size, max_queries=test_queries, max_corpus=test_passages, seed=seed
    )
    config = _run_config(model, output, steps, batch_size, seed)
    require_own_folder(config)  # a folder that cannot be the run's is refused before the base model is scored
    _describe(pairs, console)
    console.rule("[bold]2. The base model, in both attention modes")
    task = RetrievalTask(pairs.corpus, pairs.queries, pairs.qrels)
    causal, bidirectional = _base_scores(config, task)
    console.rule("[bold]3. Contrastive fine-tuning under bidirectional attention")
    _write_data(pairs, output / "data")
    run = train(config)
    plot = plot_losses(run.history, output / "loss.png")
    console.rule("[bold]4. Before and after")
    encode = _encoder(run.model, "bidirectional", config.trainer.bf16)
    scores = QuickstartScores(causal, bidirectional, task(encode))
    (output / "scores.json").write_text(json.dumps({**asdict(scores), "gain": scores.gain}, indent=2) + "\n")
    console.print(_table(scores, pairs))
    console.rule("[bold]5. Search")
    console.print(*_example_searches(pairs, encode))
    console.print(f"Model: {run.folder}\nLoss plot: {plot}\nRun file, to change: {run.folder.with_name(RUN_FILE)}")
    console.print(f"Search more: ullme search {run.folder} {output / 'data' / PASSAGES_FILE} 'your question'")
    return scores


def _base_scores(config: RunConfig, task: RetrievalTask) -> list[dict[str, float]]:
    base = ULLME(**{**config.model.settings().to_dict(), "lora_name": None})
    attentions: tuple[Attention, ...] = ("causal", "bidirectional")
    return [task(_encoder(base, attention, config.trainer.bf16)) for attention in attentions]


def _run_config(model: str, output: Path, steps: int, batch_size: int, seed: int) -> RunConfig:
    bf16 = torch.cuda.is_bf16_supported() if torch.cuda.is_available() else cpu_multiplies_bfloat16()
    return RunConfig.model_validate(
        {
            "model": {
                "name_or_path": model,
                "lora": {"name": "quickstart", "r": 16, "alpha": 32},
                "max_length": MAX_LENGTH,
            },
            "data": {"train": [{"path": str(output / "data" / "train.jsonl")}], "negatives_per_query": 1},
            "objectives": [{"type": "contrastive", "temperature": 0.05}],
            "trainer": {
                "output_dir": str(output / "run"),
                "max_steps": steps,
                "per_device_train_batch_size": batch_size,
                "learning_rate": 5e-4,
                "warmup_steps": 4,
                "logging_steps": 1,
                "save_steps": 10,
                "save_total_limit": 1,
                "bf16": bf16,
                "use_cpu": bf16 and not torch.cuda.is_available(),  # where Transformers wants to be told
                "seed": seed,
            },
        }
    )


def cpu_multiplies_bfloat16() -> bool:
    """Whether bfloat16 matrix products are faster than float32 ones here; elsewhere they are emulated, and slower."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _describe(pairs: DocPairs, console: Console) -> None:
    example = pairs.train[0]
    largest = sorted(pairs.packages, key=lambda name: -pairs.packages[name])[:6]
    console.print(
        f"{len(pairs.train)} training pairs, {len(pairs.queries)} test queries over {len(pairs.corpus)} passages, from "
        f"{len(pairs.packages)} packages ({', '.join(largest)}, ...); no subpackage is on both sides."
    )
    console.print(f"For instance {example.query!r} asks for {example.positives[0][:120]!r} ...", markup=False)


def _write_data(pairs: DocPairs, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(pairs.train, folder / "train.jsonl")
    (folder / PASSAGES_FILE).write_text("\n".join(pairs.corpus.values()) + "\n", encoding="utf-8")
    asked = [PairExample(query, tuple(pairs.corpus[p] for p in pairs.qrels[i])) for i, query in pairs.queries.items()]
    write_jsonl(asked, folder / TEST_FILE)


def _encoder(model: ULLME, attention: Attention, bf16: bool) -> Encode:
    """Texts to embeddings under this attention; the same texts are not embedded twice."""

    @cache
    def embed(texts: tuple[str, ...]) -> Any:
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bf16):
            return model.encode(texts, attention=attention, show_progress_bar=True)

    return lambda texts: embed(tuple(texts))


def _example_searches(pairs: DocPairs, encode: Encode, count: int = 3, top_k: int = 3) -> Iterator[Table]:
    """The best passages of a few test queries; a tick marks what the query was taken from."""
    ids, passages = list(pairs.corpus), list(pairs.corpus.values())
    chosen = list(pairs.queries)[:: max(1, len(pairs.queries) // count)][:count]
    hits = nearest_passages(encode, passages, [pairs.queries[i] for i in chosen], top_k=top_k)
    for query, found in zip(chosen, hits, strict=True):
        shown = [
            (score, f"{'✓ ' if ids[at] == query else ''}{ids[at]}: {shorten(passages[at], 150)}") for at, score in found
        ]
        yield hits_table(f"\n{pairs.queries[query]}", shown)


def _table(scores: QuickstartScores, pairs: DocPairs) -> Table:
    table = Table(title=f"{len(pairs.queries)} queries about unseen functions, {len(pairs.corpus)} passages")
    for name in ("", "nDCG@10", "recall@10", "recall@100"):
        table.add_column(name, justify="right" if name else "left")
    rows = {
        "base, causal": scores.base_causal,
        "base, bidirectional": scores.base_bidirectional,
        "fine-tuned, bidirectional": scores.fine_tuned,
    }
    for name, values in rows.items():
        table.add_row(name, *(f"{100 * values[key]:.1f}" for key in ("ndcg@10", "recall@10", "recall@100")))
    table.caption = f"fine-tuned nDCG@10 is {scores.gain:.2f} times that of the better base"
    return table
