"""Retrieval tasks of one's own: a BEIR folder, or pairs in any format, as a task of mteb's."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata

from ullme.data.formats import container_of
from ullme.data.judged import beir_parts, beir_splits
from ullme.data.readers import SUFFIXES
from ullme.data.source import DataSource
from ullme.data.wording import hint, shortened

#: ISO 15924 for a script that is not known.
_ANY_SCRIPT = "Zyyy"


#: mteb finds the instruction of a task's type only for the tasks that it knows by name.
_PROMPT: Any = {"query": AbsTaskRetrieval.abstask_prompt}


class OwnRetrieval(AbsTaskRetrieval):
    """A retrieval task whose data are the caller's, scored by mteb as any other: nDCG@10 is its main score.

    Of a BEIR folder, corpus, queries and judgements are taken as they are. Of pairs every passage, positive or
    negative, is in the corpus once, and a query is answered by the positives of all its rows.

    Args:
        path: the folder or file.
        splits: which judgements of a BEIR folder; of pairs only what their one split is called.
        language: ISO 639-3 code of the language in whose column its score stands.
        name: the task's name.
    """

    def __init__(self, path: str, splits: Sequence[str], language: str, name: str, **options: Any) -> None:
        self.path = path
        language = language if "-" in language else f"{language}-{_ANY_SCRIPT}"
        self.metadata = TaskMetadata(
            name=name,
            description=f"The retrieval task of {Path(path).name}.",
            dataset={"path": path, "revision": f"local-{content_hash(Path(path))}"},
            type="Retrieval",
            category="t2t",
            prompt=_PROMPT,
            eval_splits=list(splits),
            eval_langs=[language],
            main_score="ndcg_at_10",
            is_public=False,
        )
        super().__init__(**options)

    def load_data(self, num_proc: int | None = None, **options: Any) -> None:
        """Read the data.

        Raises:
            ValueError: something is wrong with them; names its place.
        """
        if self.data_loaded:
            return
        read = _collection if container_of(self.path) == "beir" else _pairs
        self.dataset = {"default": {split: read(self.path, split) for split in self.eval_splits}}
        self.data_loaded = True

    def unload_data(self) -> None:
        """Forget the data, and not the metadata, which are this task's own (mteb forgets both)."""
        self.dataset, self.data_loaded = {}, False


def own_tasks(
    path: str, language: str = "eng", splits: Sequence[str] | None = None, taken: Collection[str] = ()
) -> Iterator[OwnRetrieval]:
    """The tasks that a path names: of a BEIR folder or a file of pairs one, of a folder of such things all.

    Args:
        path: the file or folder.
        language: ISO 639-3 code.
        splits: judgements to score; default ``test``, or the only ones that are there.
        taken: names that the tasks may not have.

    Raises:
        ValueError: a file of no known format, a folder without any, or a split that is not there.
    """
    place = Path(path)
    if place.is_dir() and container_of(path) == "hub":
        inside = [p for p in sorted(place.iterdir()) if _is_task(p)]
        if not inside:
            kinds = "a BEIR folder (corpus.jsonl, queries.jsonl, qrels/), a file of pairs, or a folder of such"
            raise ValueError(f"{path}: no retrieval task is here; give {kinds}")
        for part in inside:
            yield from own_tasks(str(part), language, splits, taken)
        return
    name = re.sub(r"[^\w.-]+", "-", place.name.split(".")[0] or "own")
    yield OwnRetrieval(str(place.resolve()), _splits(path, splits), language, f"{name}-own" if name in taken else name)


def content_hash(place: Path) -> str:
    """A hash of a file, or of every file in a folder and its name; hidden ones do not count."""
    digest = hashlib.sha256()
    for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
        relative = path.relative_to(place)
        if path.is_file() and not any(part.startswith(".") for part in relative.parts):
            digest.update(f"{relative.as_posix()} {path.stat().st_size} ".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()[:12]


def _is_task(place: Path) -> bool:
    if place.is_dir():
        return container_of(str(place)) in ("beir", "msmarco", "saved")
    return place.name.lower().endswith(tuple(SUFFIXES))


def _splits(path: str, asked: Sequence[str] | None) -> Sequence[str]:
    """The splits to score."""
    if container_of(path) != "beir":
        return list(asked or ["test"])[:1]
    there = list(beir_splits(Path(path)))
    chosen = list(asked or (["test"] if "test" in there else there))
    missing = [split for split in chosen if split not in there]
    if missing or (len(chosen) > 1 and not asked):
        wrong = repr(missing[0]) if missing else "none is called 'test', and more than one is there"
        raise ValueError(f"{path}: split: {wrong}; it has {', '.join(there)}; name one{hint(str(missing), there)}")
    return chosen


def _collection(path: str, split: str) -> RetrievalSplitData:
    """The parts of a BEIR folder."""
    parts = beir_parts(path, split)
    corpus, queries = _texts(parts.passages()), _texts(parts.queries())
    judged: dict[str, dict[str, int]] = {}
    for at, (query, passage, grade) in _firm(parts.judgements()):
        for kind, name, known in (("query", query, queries), ("passage", passage, corpus)):
            if name not in known:
                raise ValueError(f"{at}: there is no {kind} {shortened(name)}; add it, or remove the judgement")
        judged.setdefault(query, {})[passage] = grade
    if not judged:
        raise ValueError(f"{path}: no judgement in qrels/{split}; write at least one")
    return _data(corpus, queries, judged)


def _texts(part: Iterator[tuple[str, Any]]) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for at, (name, title, text) in _firm(part):
        if name in found:
            raise ValueError(f"{at}: id: {name!r} stands in an earlier row too; give each text an id of its own")
        found[name] = (title, text)
    return found


def _firm(part: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    for at, row in part:
        if isinstance(row, ValueError):
            raise row
        yield at, row


def _pairs(path: str, split: str) -> RetrievalSplitData:
    """Pairs as a collection."""
    queries: dict[str, str] = {}
    corpus: dict[str, str] = {}
    judged: dict[str, dict[str, int]] = {}
    for row in DataSource(path=path).rows():
        query = queries.setdefault(row["query"], f"q{len(queries)}")
        for text in (*row["positives"], *row["negatives"]):
            corpus.setdefault(text, f"d{len(corpus)}")
        judged.setdefault(query, {}).update({corpus[text]: 1 for text in row["positives"]})
    passages = {name: ("", text) for text, name in corpus.items()}
    return _data(passages, {name: ("", text) for text, name in queries.items()}, judged)


def _data(
    corpus: dict[str, tuple[str, str]], queries: dict[str, tuple[str, str]], judged: dict[str, dict[str, int]]
) -> RetrievalSplitData:
    titles, texts = zip(*corpus.values(), strict=True)
    asked = [(name, text) for name, (_, text) in queries.items() if name in judged]
    return RetrievalSplitData(
        corpus=Dataset.from_dict({"id": list(corpus), "title": list(titles), "text": list(texts)}),
        queries=Dataset.from_dict({"id": [name for name, _ in asked], "text": [text for _, text in asked]}),
        relevant_docs=judged,
        top_ranked=None,
    )
