"""A folder in which the documents' blocks can run: tiny models under real names, and the data that pages name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.documents.pages import ROOT
from tests.mteb_folders import WORDS, write_retrieval, write_sts
from tests.tiny import tiny_folder
from ullme.cli import main

#: A local folder comes before a model of the hub, so a tiny one of the same name takes its place.
MODELS = {
    "smollm2-135m-instruct": "llama",
    "HuggingFaceTB/SmolLM2-135M": "llama",
    "mistralai/Mistral-7B-v0.1": "mistral",
    "Qwen/Qwen3-0.6B": "qwen3",
}

#: Overrides that make a documented run one of seconds on a CPU.
SHORTER = [
    *("trainer.max_steps=2", "trainer.per_device_train_batch_size=4", "trainer.chunk_tokens=4096"),
    *("trainer.use_cpu=true", "trainer.report_to=none"),
]

ROWS = [
    {
        "query": f"what is the {word} of number {number}?",
        "positive": f"the {word} of number {number} is a thing that people keep at home",
        "negatives": [f"nobody has seen {other} number {number} for a long time" for other in WORDS if other != word][
            :3
        ],
    }
    for number in range(4)
    for word in WORDS
]


def furnish(folder: Path) -> Path:
    """Write all that the pages name: models, pairs, corpora, tests, run files, and a trained run in ``runs/grl``."""
    for name, kind in MODELS.items():
        tiny_folder(folder / name, kind)
    shutil.copytree(ROOT / "configs", folder / "configs")
    _pairs(folder)
    _corpora(folder)
    _tests(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "configs/grl.yaml", *SHORTER]) == 0
    return folder


def _pairs(folder: Path) -> None:
    for path in ("pairs.jsonl", "data/pairs.jsonl", "pairs/first.jsonl"):
        jsonl(folder / path, ROWS)
    triples = [{"anchor": r["query"], "positive": r["positive"], "negative": r["negatives"][0]} for r in ROWS]
    jsonl(folder / "triplets.jsonl", triples)
    jsonl(folder / "questions.jsonl", [{"question": r["query"], "answers": [r["positive"]]} for r in ROWS])
    jsonl(folder / "topics.jsonl", ROWS)
    (folder / "pairs.tsv").write_text("".join(f"{r['query']}\t{r['positive']}\tno idea\n" for r in ROWS))
    (folder / "shards").mkdir()
    for part in range(2):
        pq.write_table(pa.Table.from_pylist(ROWS[part::2]), folder / f"shards/part-{part:03}.parquet")


def _corpora(folder: Path) -> None:
    texts = [f"Number {i} is about the {word} and where to find it." for i, word in enumerate(WORDS * 3)]
    (folder / "passages.txt").write_text("".join(f"{text}\n" for text in texts))
    for name in ("corpus.jsonl", "texts.jsonl"):
        jsonl(folder / name, [{"id": f"d{i}", "text": text} for i, text in enumerate(texts)])


def _tests(folder: Path) -> None:
    for name in ("handbook", "our-test", "our-tests/first", "fiqa"):
        beir(folder / name, "train" if name == "fiqa" else "test")
    faq = [{"query": f"where is our {word}?", "positive": f"our {word} is upstairs"} for word in WORDS]
    for path in ("faq.jsonl", "our-tests/second.jsonl"):
        jsonl(folder / path, faq)
    write_sts(folder / "mteb-data", "mteb/stsbenchmark-sts")
    write_retrieval(folder / "mteb-data", "mteb/scifact", "test")


def beir(folder: Path, split: str) -> None:
    """A BEIR folder of ten passages and five judged queries."""
    jsonl(folder / "corpus.jsonl", [{"_id": f"p{i}", "title": w, "text": f"All on {w}."} for i, w in enumerate(WORDS)])
    jsonl(folder / "queries.jsonl", [{"_id": f"q{i}", "text": f"who has a {w}?"} for i, w in enumerate(WORDS[:5])])
    (folder / "qrels").mkdir()
    judged = "".join(f"q{i}\tp{i}\t1\n" for i in range(5))
    (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)


def jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
