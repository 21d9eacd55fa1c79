"""Pairs written as a retrieval collection: passages, queries and judgements, each text once."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ullme.data.beir import QRELS_HEADER
from ullme.data.joins import Seen
from ullme.data.wording import shortened

#: What a row can say beside its texts.
EXTRAS = ("instruction", "scores")
_BREAKS = re.compile(r"[\t\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")


def require_place(row: Mapping[str, Any], holds: Collection[str], name: str, at: str) -> None:
    """Pass if a format can say all that a row says.

    Raises:
        ValueError: it cannot.
    """
    for field in EXTRAS:
        if row[field] is not None and field not in holds:
            said = f"{shortened(row[field])} has no place in format {name!r}"
            raise ValueError(f"{at}: {field}: {said}; write pairs or flagembedding, or drop {field}")


class CollectionWriter:
    """A BEIR or MS MARCO folder, with the judgements of the split ``train``.

    Rows of one query become one. BEIR grades a negative 0; MS MARCO has it in triples beside the first positive.
    """

    def __init__(self, folder: Path, name: str, dropped: Collection[str]) -> None:
        self._name, self._dropped, self._seen = name, dropped, Seen()
        self._beir = name == "beir"
        self._counts = {"d": 0, "q": 0}
        corpus, queries, qrels, triples = (
            ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv", None)
            if self._beir
            else ("collection.tsv", "queries.train.tsv", "qrels.train.tsv", "qidpidtriples.train.tsv")
        )
        folder.mkdir()
        if self._beir:
            (folder / "qrels").mkdir()
        named = {"d": corpus, "q": queries, "qrels": qrels} | ({"triples": triples} if triples else {})
        self._files = {part: (folder / file).open("w", encoding="utf-8", newline="\n") for part, file in named.items()}
        if self._beir:
            self._files["qrels"].write("\t".join(QRELS_HEADER) + "\n")

    def write(self, row: Mapping[str, Any], at: str) -> None:
        """Take a row in the columns of a pair.

        Raises:
            ValueError: it says what the format cannot, or judges a passage otherwise than an earlier row.
        """
        require_place({**row, **dict.fromkeys(self._dropped)}, (), self._name, at)
        grades = {text: grade for side, grade in (("positives", 1), ("negatives", 0)) for text in row[side]}
        self._require_possible(row["query"], grades, at)
        query = self._id("q", row["query"])
        first = self._id("d", row["positives"][0])
        for text, grade in grades.items():
            passage = self._id("d", text)
            if self._seen.first(_judged(row["query"], text), grade) is not None:
                continue
            if self._beir:
                self._files["qrels"].write(f"{query}\t{passage}\t{grade}\n")
            elif grade:
                self._files["qrels"].write(f"{query}\t0\t{passage}\t1\n")
            else:
                self._files["triples"].write(f"{query}\t{first}\t{passage}\n")

    def close(self) -> None:
        """Write the rest."""
        for file in self._files.values():
            file.close()
        self._seen.close()

    def _require_possible(self, query: str, grades: Mapping[str, int], at: str) -> None:
        for text, grade in grades.items():
            if self._seen.get(_judged(query, text)) not in (None, grade):
                sides = ("a positive", "a negative")
                was, now = sides if not grade else sides[::-1]
                raise ValueError(f"{at}: {shortened(text)} is {now} and was {was} of this query before; remove one")
        broken = next((text for text in (query, *grades) if _BREAKS.search(text)), None)
        if broken is not None and not self._beir:
            raise ValueError(f"{at}: {shortened(broken)} has a tab or line break, which TSV cannot hold; write beir")

    def _id(self, kind: str, text: str) -> str:
        """The id of a passage (d) or query (q), which is written where it is new."""
        mine = f"{kind}{self._counts[kind] + 1}" if self._beir else str(self._counts[kind])
        known = self._seen.first(kind.encode() + _key(text), mine)
        if known is not None:
            return str(known)
        self._counts[kind] += 1
        if self._beir:
            title = {"title": ""} if kind == "d" else {}
            self._files[kind].write(json.dumps({"_id": mine, **title, "text": text}, ensure_ascii=False) + "\n")
        else:
            self._files[kind].write(f"{mine}\t{text}\n")
        return mine


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _judged(query: str, passage: str) -> bytes:
    return b"j" + _key(query) + _key(passage)
