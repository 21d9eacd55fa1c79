"""Retrieval tasks of one's own: a BEIR folder, or pairs in any format, as a task of mteb's."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata

from ullme.data.beir import beir_parts, beir_splits
from ullme.data.formats import container_of
from ullme.data.joins import Joins
from ullme.data.judged import Parts
from ullme.data.msmarco import msmarco_parts, msmarco_splits
from ullme.data.readers import SUFFIXES
from ullme.data.rows import titled
from ullme.data.source import DataSource
from ullme.data.wording import hint, shortened

#: ISO 15924 for a script that is not known.
_ANY_SCRIPT = "Zyyy"
#: Counted up when equal data come to score otherwise: what is kept of them from before is then not taken.
_RULES = 2

#: mteb finds the instruction of a task's type only for the tasks that it knows by name.
_PROMPT: Any = {"query": AbsTaskRetrieval.abstask_prompt}


class OwnRetrieval(AbsTaskRetrieval):
    """A retrieval task whose data are the caller's, scored by mteb as any other: nDCG@10 is its main score.

    Of a BEIR or MS MARCO folder, corpus, queries and judgements are taken as they are. Of pairs every passage, positive
    or negative, is in the corpus once, and a query is answered by the positives of all its rows.

    Attributes:
        ignore_identical_ids: whether a query never finds the passage of its own id; as ``load_data`` found the data
            (``_Collection.finds_itself``), where mteb's public tasks say it of theirs.

    Args:
        path: the folder or file.
        splits: which of its splits; of a table without splits only what its rows are called.
        language: ISO 639-3 code of the language in whose column its score stands.
        name: the task's name.
    """

    def __init__(self, path: str, splits: Sequence[str], language: str, name: str, **options: Any) -> None:
        self.path = path
        language = language if "-" in language else f"{language}-{_ANY_SCRIPT}"
        self.metadata = TaskMetadata(
            name=name,
            description=f"The retrieval task of {Path(path).name}.",
            dataset={"path": path, "revision": f"local-{_RULES}-{content_hash(Path(path))}"},
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
        """Read the data, and see whether their queries are passages themselves.

        Raises:
            ValueError: something is wrong with them; names its place.
        """
        if self.data_loaded:
            return
        splits: dict[str, RetrievalSplitData] = {}
        themselves: set[bool | None] = set()
        for split in self.eval_splits:
            collection = _read(self.path, split)
            splits[split] = collection.data()
            themselves.add(collection.finds_itself())
        self.dataset, self.data_loaded = {"default": splits}, True
        self.ignore_identical_ids = True in themselves and False not in themselves

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
        splits: those to score; default ``test``, or the only one that is there.
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


class _Layout(NamedTuple):
    """A folder that has splits: which there are, and the parts of one."""

    splits: Callable[[Path], Collection[str]]
    parts: Callable[[str, str], Parts]


_COLLECTIONS = {"beir": _Layout(beir_splits, beir_parts), "msmarco": _Layout(msmarco_splits, msmarco_parts)}


class _Collection(NamedTuple):
    """What is searched (titles and texts), what is asked, and the grades of both by their ids."""

    corpus: dict[str, tuple[str, str]]
    queries: dict[str, tuple[str, str]]
    judged: dict[str, dict[str, int]]

    def data(self) -> RetrievalSplitData:
        """As mteb has it, with the queries that are judged."""
        titles, texts = zip(*self.corpus.values(), strict=True)
        asked = [(name, text) for name, (_, text) in self.queries.items() if name in self.judged]
        return RetrievalSplitData(
            corpus=Dataset.from_dict({"id": list(self.corpus), "title": list(titles), "text": list(texts)}),
            queries=Dataset.from_dict({"id": [name for name, _ in asked], "text": [text for _, text in asked]}),
            relevant_docs=self.judged,
            top_ranked=None,
        )

    def finds_itself(self) -> bool | None:
        """Whether queries are passages too, which each would find first; None where no id is on both sides.

        mteb takes a passage of a query's own id out of what the query finds, whatever its text. So every passage that
        shares an id with a query has to have that query's text (up to case and blanks), and none may answer it.
        """
        both = self.corpus.keys() & self.queries.keys()
        if not both:
            return None
        copies = all(_same(self.queries[name][1], *self.corpus[name]) for name in both)
        return copies and not any(self.judged.get(name, {}).get(name, 0) > 0 for name in both)


def _same(query: str, title: str, text: str) -> bool:
    asked, *passages = (" ".join(said.casefold().split()) for said in (query, text, titled(title, text)))
    return asked in passages


def _splits(path: str, asked: Sequence[str] | None) -> list[str]:
    """The splits to score.

    Raises:
        ValueError: one that is not there, or none is asked for where there are several.
    """
    there = _splits_there(path)
    if there is None:
        chosen = list(dict.fromkeys(asked or ["test"]))
        if len(chosen) > 1:
            named = ", ".join(map(repr, chosen))
            raise ValueError(f"{path}: split: {named} are {len(chosen)}, and its rows are one; name one")
        return chosen
    chosen = list(asked or (["test"] if "test" in there else there))
    missing = [split for split in chosen if split not in there]
    if missing or (len(chosen) > 1 and not asked):
        wrong = repr(missing[0]) if missing else "none is called 'test', and more than one is there"
        have = ", ".join(there) or "none"
        raise ValueError(f"{path}: split: {wrong}; it has {have}; name one{hint(missing[0] if missing else '', there)}")
    return chosen


def _splits_there(path: str) -> list[str] | None:
    """The splits that a folder has; None for rows that have none: a file, or one dataset that was saved."""
    place, container = Path(path), container_of(path)
    if container in _COLLECTIONS and place.is_dir():
        return list(_COLLECTIONS[container].splits(place))
    listed = place / "dataset_dict.json"
    if container != "saved" or not listed.is_file():
        return None
    try:
        return [str(name) for name in json.loads(listed.read_text("utf-8"))["splits"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{listed}: names no splits; save it again") from error


def _read(path: str, split: str) -> _Collection:
    container = container_of(path)
    if container in _COLLECTIONS and Path(path).is_dir():
        return _judged(path, split, _COLLECTIONS[container].parts(path, split))
    return _pairs(path, split)


def _judged(path: str, split: str, parts: Parts) -> _Collection:
    """A collection as its files have it."""
    corpus, queries = _texts(parts.passages()), _texts(parts.queries())
    judged: dict[str, dict[str, int]] = {}
    with Joins() as joins:
        for error in parts.judge(joins):
            raise error
        for query, passage, grade, at in joins.judgements():
            for kind, name, known in (("query", query, queries), ("passage", passage, corpus)):
                if name not in known:
                    raise ValueError(f"{at}: there is no {kind} {shortened(name)}; add it, or remove the judgement")
            judged.setdefault(query, {})[passage] = grade
    if not judged:
        raise ValueError(f"{path}: no judgement in the qrels of {split!r}; write at least one")
    return _Collection(corpus, queries, judged)


def _texts(part: Iterator[tuple[str, Any]]) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for at, row in part:
        if isinstance(row, ValueError):
            raise row
        name, title, text = row
        if name in found:
            raise ValueError(f"{at}: id: {name!r} stands in an earlier row too; give each text an id of its own")
        found[name] = (title, text)
    return found


def _pairs(path: str, split: str) -> _Collection:
    """Pairs as a collection."""
    queries: dict[str, str] = {}
    corpus: dict[str, str] = {}
    judged: dict[str, dict[str, int]] = {}
    for row in DataSource(path=path, split=split).rows():
        query = queries.setdefault(row["query"], f"q{len(queries)}")
        for text in (*row["positives"], *row["negatives"]):
            corpus.setdefault(text, f"d{len(corpus)}")
        judged.setdefault(query, {}).update({corpus[text]: 1 for text in row["positives"]})
    passages, asked = ({name: ("", text) for text, name in texts.items()} for texts in (corpus, queries))
    return _Collection(passages, asked, judged)
