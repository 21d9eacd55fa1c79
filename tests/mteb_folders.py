"""Miniature MTEB datasets in local folders, in the layout of the hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

WORDS = ("apple", "river", "engine", "violin", "glacier", "pepper", "lantern", "harbour", "meadow", "saddle")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_msmarco(root: Path, seed: str = "") -> Path:
    """A retrieval dataset of ten passages and five queries at ``root/mteb/msmarco``, split ``dev``."""
    return write_retrieval(root, "mteb/msmarco", "dev", seed=seed)


def write_retrieval(root: Path, path: str, split: str, subset: str | None = None, seed: str = "") -> Path:
    folder = root / path
    prefix = f"{subset}-" if subset else ""
    passages = [
        {"_id": f"p{i}", "title": w.title(), "text": f"A passage about the {w} {seed}."} for i, w in enumerate(WORDS)
    ]
    queries = [{"_id": f"q{i}", "text": f"What is a {w}?"} for i, w in enumerate(WORDS[:5])]
    qrels = [{"query-id": f"q{i}", "corpus-id": f"p{i}", "score": 1} for i in range(5)]
    files = {f"{prefix}corpus": ("corpus", passages), f"{prefix}queries": ("queries", queries)}
    files[f"{prefix}qrels" if subset else "default"] = (split, qrels)
    configs = ""
    for config, (name, rows) in files.items():
        write_jsonl(folder / config / f"{name}.jsonl", rows)
        configs += f"- config_name: {config}\n  data_files:\n  - split: {name}\n    path: {config}/{name}.jsonl\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return folder


def write_sts(root: Path, path: str = "mteb/biosses-sts") -> Path:
    """An STS dataset of twelve pairs, split ``test``."""
    pairs = [(a, b) for a in WORDS[:4] for b in WORDS[:3]]
    rows = [
        {"sentence1": f"The {a} is here.", "sentence2": f"I see the {b}.", "score": 4.0 if a == b else i % 5 / 2}
        for i, (a, b) in enumerate(pairs)
    ]
    write_jsonl(root / path / "test.jsonl", rows)
    return root / path


def write_classification(root: Path, path: str, subset: str | None = None) -> Path:
    """A classification dataset of two classes, splits ``train``, ``validation`` and ``test``."""
    folder = root / path / (subset or "")
    for split in ("train", "validation", "test"):
        rows = [{"text": f"{split} {w} number {i}", "label": i % 2} for i in range(10) for w in WORDS[:4]]
        write_jsonl(folder / f"{split}.jsonl", rows)
    return root / path
