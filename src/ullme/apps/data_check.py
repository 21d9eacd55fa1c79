"""What is wrong with training data, and where: every row is looked at, at a memory that does not grow with them."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from rich.table import Table

from ullme.data import DataSource
from ullme.data.files import labels_of
from ullme.data.joins import Seen
from ullme.data.wording import shortened
from ullme.files import aside

#: What can be found, and whether data that have it should not be trained on.
KINDS: dict[str, bool] = {
    "malformed": True,
    "test text": True,
    "passage of a test": False,
    "duplicate": False,
    "repeated text": False,
    "too long": False,
}
#: Shorter texts ("thank you") are the same by chance.
LEAST_WORDS = 4
_SHOWN = 5


class Finding(NamedTuple):
    """One thing that is wrong: of which kind, and what, with its place."""

    kind: str
    said: str


class EvaluationTexts(NamedTuple):
    """A test's texts: what it judges (queries, passages that answer them), and the other passages that it searches."""

    name: str
    judged: Iterable[str]
    corpus: Iterable[str] = ()


class Length(NamedTuple):
    """How long a text may be.

    Attributes:
        unit: what is counted.
        of: counts it.
        most: of a text that is not too long.
    """

    unit: str
    of: Callable[[str], int]
    most: int


WORDS = Length("words", lambda text: len(text.split()), 1000)


@dataclass
class Report:
    """What was found: rows that were read, findings by kind, and the first of each kind."""

    rows: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[str]] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Whether the data can be trained on."""
        return not any(grave and self.counts[kind] for kind, grave in KINDS.items())

    def add(self, finding: Finding) -> None:
        """Take a finding."""
        self.counts[finding.kind] += 1
        if len(shown := self.first.setdefault(finding.kind, [])) < _SHOWN:
            shown.append(finding.said)

    def table(self) -> Table:
        """As a table: a line per kind."""
        table = Table(title=f"{self.rows} good rows", show_lines=True)
        for name in ("kind", "found", "the first of them"):
            table.add_column(name, justify="right" if name == "found" else "left", overflow="fold")
        for kind in KINDS:
            listed = [said.replace("[", r"\[") for said in self.first.get(kind, [])]
            more = ["..."] if self.counts[kind] > len(listed) else []
            table.add_row(kind, str(self.counts[kind]), "\n".join(listed + more))
        return table


def check_data(
    sources: Sequence[DataSource],
    tests: Iterable[EvaluationTexts] = (),
    *,
    length: Length = WORDS,
    normalised: Callable[[str], str] = lambda text: " ".join(text.casefold().split()),
    tell: Callable[[Finding], None] = lambda finding: None,
) -> Report:
    """Look for what is wrong with these sources.

    Args:
        sources: the data.
        tests: what must not be trained on. A training text that a test judges is a ``test text``; one that it only
            searches is a ``passage of a test``, after which the test is no longer zero-shot.
        length: beyond which a text is ``too long``.
        normalised: what of a text is compared with tests.
        tell: is told every finding.
    """
    report = Report()
    with Seen() as rows, Seen() as known:
        _remember(tests, known, normalised)
        for source in sources:
            for row, at in _rows(source):
                found = [Finding("malformed", str(row))] if isinstance(row, ValueError) else []
                if not isinstance(row, ValueError):
                    report.rows += 1
                    found += _duplicates(row, at, rows)
                    found += _lengths(row, at, length)
                    found += _leaks(row, at, known, normalised)
                for finding in found:
                    report.add(finding)
                    tell(finding)
    return report


def _rows(source: DataSource) -> Iterator[tuple[dict[str, Any] | ValueError, str]]:
    """Every row with its place."""
    try:
        files = source.files()
    except ValueError as error:
        yield error, source.path
        return
    labels = labels_of(files, files[0])
    for row in source.attempts():
        yield row, source.path if isinstance(row, ValueError) else f"{labels[row['file']]}:{row['row']}"


def _remember(tests: Iterable[EvaluationTexts], known: Seen, normalised: Callable[[str], str]) -> None:
    """Keep the tests' texts; what any test judges is known as that, whatever else it is."""
    searched: list[tuple[str, Iterable[str]]] = []
    for test in tests:
        searched.append((test.name, test.corpus))
        _keep(known, test.name, "test text", test.judged, normalised)
    for name, corpus in searched:
        _keep(known, name, "passage of a test", corpus, normalised)


def _keep(known: Seen, name: str, kind: str, texts: Iterable[str], normalised: Callable[[str], str]) -> None:
    for text in map(normalised, texts):
        if len(text.split()) >= LEAST_WORDS:
            known.first(text_digest(text), f"{kind}\n{name}")


def _duplicates(row: dict[str, Any], at: str, seen: Seen) -> Iterator[Finding]:
    before = seen.first(text_digest(row["query"], *sorted(row["positives"])), at)
    if before is not None:
        yield Finding("duplicate", f"{at}: query and positives stand in {before} too")
    texts = [(row["query"], "query")] if row["positives"] != [row["query"]] else []
    for name, text in _passages(row):
        same = next((other for said, other in texts if said == text), None)
        if same is not None:
            yield Finding("repeated text", f"{at}: {name}: {shortened(text)} is {same} too")
        texts.append((text, name))


def _lengths(row: dict[str, Any], at: str, length: Length) -> Iterator[Finding]:
    for name, text in (("query", row["query"]), *_passages(row)):
        # nothing less than counting tells: a character of Chinese may be three tokens
        if (count := length.of(text)) > length.most:
            yield Finding("too long", f"{at}: {name}: {count} {length.unit}, more than {length.most}")


def _leaks(row: dict[str, Any], at: str, known: Seen, normalised: Callable[[str], str]) -> Iterator[Finding]:
    for name, text in (("query", row["query"]), *_passages(row)):
        found = known.get(text_digest(normalised(text)))
        if found is not None:
            kind, test = found.split("\n", 1)
            yield Finding(kind, f"{at}: {name}: {shortened(text)} stands in {test}")


def _passages(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for side in ("positives", "negatives"):
        for i, text in enumerate(row[side]):
            yield f"{side}[{i}]", text


def text_digest(*texts: str) -> bytes:
    """A key that equal texts in equal order share."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        digest.update(b"%d " % len(text) + text.encode())
    return digest.digest()


@contextmanager
def reported(path: Path | None, inputs: Iterable[str | Path] = ()) -> Iterator[Callable[[Finding], None]]:
    """Takes findings, and writes them where a file was named; it is there when all are, and until then as it was.

    Args:
        path: the file, a JSON object per line; None writes nothing.
        inputs: files and folders that are read, and so must not be written over.

    Raises:
        ValueError: the file is one of the inputs or in one, is a folder, or would be in none.
    """
    if path is None:
        yield lambda finding: None
        return
    for place in inputs:
        if is_within(path, place):
            raise ValueError(f"report: {str(path)!r} is read as data ({str(place)!r}); name another file outside of it")
    if path.is_dir():
        raise ValueError(f"report: {str(path)!r} is a folder; name a .jsonl file in it")
    if not path.parent.is_dir():
        raise ValueError(f"report: {str(path)!r}: there is no folder {str(path.parent)!r}; make it first")
    with _written_whole(path) as file:
        yield lambda finding: file.writelines((json.dumps(finding._asdict(), ensure_ascii=False), "\n"))


def is_within(path: Path, place: str | Path) -> bool:
    """Whether a path is this file, under whatever name, or lies in this folder; what does not exist holds nothing."""
    if os.path.isdir(place):
        inside = path.resolve().is_relative_to(Path(place).resolve())
        return inside or path.exists() and any(path.samefile(p) for p in Path(place).rglob("*") if p.is_file())
    return os.path.exists(place) and path.exists() and path.samefile(place)


@contextmanager
def _written_whole(path: Path) -> Iterator[TextIO]:
    """A file that takes its name when it is whole; a device or a pipe is written as it is."""
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8") as file:
            yield file
        return
    path = path.resolve()  # of a link, what it leads to
    with aside(path) as folder:
        with (folder / path.name).open("w", encoding="utf-8") as file:
            yield file
        os.replace(folder / path.name, path)
