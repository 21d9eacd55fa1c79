"""A small sample of every format that pairs come in, shaped as the tools that write it shape it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

#: What each sample says, row by row: query, positives, negatives.
ROWS = [
    (
        "what is paula deen's brother",
        ("Bubba Deen Paula Deen and her brother Earl W. Bubba Deen are being sued by a former manager.",),
        ("Paula Deen is an American cook “y’all”.", "Deen Brothers Jamie and Bobby cook on television."),
    ),
    (
        "Androgen receptor define",
        ("The androgen receptor (AR) is activated by binding an androgenic hormone.",),
        ("A receptor is a protein molecule.", "Nuclear receptors bind DNA."),
    ),
]
INSTRUCTION = "Given a web search query, retrieve passages that answer it."
SCORES = ((9.5, 1.25, -3.0), (7.0, 0.5, 0.0))


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def jsonl(folder: Path) -> Path:
    rows = [{"query": q, "positive": p[0], "negatives": list(n)} for q, p, n in ROWS]
    return write_lines(folder / "pairs.jsonl", rows)


def parquet(folder: Path) -> Path:
    rows = [{"query": q, "positive": p[0], "negatives": list(n), "source": "web"} for q, p, n in ROWS]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet")
    return folder / "train-00000-of-00001.parquet"


def triplets(folder: Path) -> Path:
    """As sentence-transformers' ``mine_hard_negatives`` gives it in n-tuples, saved by ``to_parquet``."""
    rows = [{"anchor": q, "positive": p[0], "negative_1": n[0], "negative_2": n[1]} for q, p, n in ROWS]
    pq.write_table(pa.Table.from_pylist(rows), folder / "triplets.parquet")
    return folder / "triplets.parquet"


def tevatron(folder: Path) -> Path:
    rows = [
        {
            "query_id": f"{1185868 + i}",
            "query": q,
            "positive_passages": [{"docid": f"{i}", "title": "", "text": text} for text in p],
            # a title is read before its text
            "negative_passages": [
                {"docid": f"{i}_{k}", "title": text.split(" ", 1)[0], "text": text.split(" ", 1)[1]}
                for k, text in enumerate(n)
            ],
        }
        for i, (q, p, n) in enumerate(ROWS)
    ]
    path = folder / "train.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return path


def flagembedding(folder: Path) -> Path:
    rows = [
        {
            "query": q,
            "pos": list(p),
            "neg": list(n),
            "pos_scores": list(scores[:1]),
            "neg_scores": list(scores[1:]),
            "prompt": INSTRUCTION,
            "type": "normal",
        }
        for (q, p, n), scores in zip(ROWS, SCORES, strict=True)
    ]
    return write_lines(folder / "msmarco_hn_train.jsonl", rows)


def beir(folder: Path) -> Path:
    """One corpus and one file of queries for all splits; the test split is judged otherwise."""
    (folder / "fiqa" / "qrels").mkdir(parents=True)
    passages = [text for _, p, n in ROWS for text in (*p, *n)]
    corpus = [
        {"_id": f"{10 * i}", "title": text.split(" ", 1)[0], "text": text.split(" ", 1)[1], "metadata": {}}
        for i, text in enumerate(passages)
    ]
    write_lines(folder / "fiqa" / "corpus.jsonl", [*corpus, {"_id": "99", "title": "", "text": "nobody asks for it"}])
    queries = [{"_id": f"{i}", "text": q, "metadata": {"url": ""}} for i, (q, _, _) in enumerate(ROWS)]
    write_lines(folder / "fiqa" / "queries.jsonl", [*queries, {"_id": "7", "text": "of the test split"}])
    lines = [(i, 10 * (3 * i + k), 2 if k == 0 else 0) for i in range(len(ROWS)) for k in range(3)]
    head = "query-id\tcorpus-id\tscore\n"
    (folder / "fiqa" / "qrels" / "train.tsv").write_text(head + "".join(f"{q}\t{d}\t{s}\n" for q, d, s in lines))
    (folder / "fiqa" / "qrels" / "test.tsv").write_text(head + "7\t99\t1\n")
    return folder / "fiqa"


def msmarco(folder: Path) -> Path:
    place = folder / "msmarco"
    place.mkdir()
    passages = [text for _, p, n in ROWS for text in (*p, *n)]
    (place / "collection.tsv").write_text("".join(f"{i}\t{text}\n" for i, text in enumerate(passages)))
    (place / "queries.train.tsv").write_text("".join(f"{121352 + i}\t{q}\n" for i, (q, _, _) in enumerate(ROWS)))
    (place / "qrels.train.tsv").write_text("".join(f"{121352 + i}\t0\t{3 * i}\t1\n" for i in range(len(ROWS))))
    triples = [f"{121352 + i}\t{3 * i}\t{3 * i + k}\n" for i in range(len(ROWS)) for k in (1, 2)]
    # a negative that the judgements call right stays a positive
    (place / "qidpidtriples.train.full.2.tsv").write_text("".join([*triples, "121352\t0\t0\n"]))
    return place


SAMPLES = {
    "jsonl": jsonl,
    "parquet": parquet,
    "triplets": triplets,
    "tevatron": tevatron,
    "flagembedding": flagembedding,
    "beir": beir,
    "msmarco": msmarco,
}
