"""Sources of texts and a model that takes no time, for the tests of encoding."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

TEXTS = [f"{'word ' * (i * 7 % 5)}text {i}" for i in range(23)]


class Counter:
    """A model whose embedding says which text it belongs to, and which remembers what it was given.

    Attributes:
        seen: every text embedded.
        fail_after: texts after which it raises, as if interrupted.
    """

    embedding_dimension = 8

    def __init__(self, name: str = "counter", fail_after: int | None = None, prompts: dict[str, str] | None = None):
        self.name, self.fail_after, self.prompts = name, fail_after, prompts or {}
        self.seen: list[str] = []

    def encode(self, texts, batch_size=32, show_progress_bar=None, prompt=""):
        if self.fail_after is not None and len(self.seen) + len(texts) > self.fail_after:
            raise KeyboardInterrupt
        self.seen += texts
        return np.stack([vector(prompt + text) for text in texts])

    def encode_query(self, texts, prompt=""):
        return self.encode(texts, prompt=prompt)

    def fingerprint(self):
        return self.name


def vector(text: str) -> np.ndarray:
    """Eight numbers that depend on the text and on nothing else."""
    return np.random.default_rng(list(text.encode())).standard_normal(8).astype(np.float32)


def rows(texts=TEXTS) -> list[dict[str, str]]:
    return [{"_id": f"d{i}", "text": text} for i, text in enumerate(texts)]


def write_jsonl(path: Path, content: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def write_source(folder: Path, kind: str) -> Path:
    """The texts as one file, or one folder, of a kind."""
    path = folder / f"texts.{kind}"
    if kind == "txt":
        path.write_text("\n".join(TEXTS) + "\n")
    elif kind == "jsonl":
        write_jsonl(path, rows())
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows()), path)
    elif kind == "folder":
        write_jsonl(path / "part-0.jsonl", rows()[:9])
        write_jsonl(path / "part-1.jsonl", rows()[9:])
    else:
        write_jsonl(path / "corpus.jsonl", [{**row, "title": ""} for row in rows()])
        write_jsonl(path / "queries.jsonl", [{"_id": "q1", "text": "a question"}])
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def failing_load(device):
    """A model that may not be loaded."""
    raise AssertionError("the model was loaded before the source was found good")


def load_counter(device):
    """A model, in whatever process."""
    return Counter()


def load_dying(parent, device):
    """A model; every process but the parent is killed in its place."""
    if os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    return Counter()


def load_refused(parent, device):
    """A model; every process but the parent is refused it."""
    if os.getpid() != parent:
        raise ValueError("model: is gone;\n put it back")
    return Counter()


def load_dying_midway(mark, device):
    """A model; the first process that embeds a third batch is killed, and leaves a mark."""
    model = Counter()
    encode = model.encode

    def dying(texts, **options):
        if len(model.seen) >= 4 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(texts, **options)

    model.encode = dying
    return model
