"""Every format that pairs come in: what holds the rows, and whose columns they have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ullme.data.beir import beir_rows, is_beir
from ullme.data.dialects import DIALECTS
from ullme.data.msmarco import is_msmarco, msmarco_rows
from ullme.data.readers import READERS, Attempt, format_of, jsonl_attempts, reader_of
from ullme.data.wording import hint
from ullme.extension import is_import_path


class Collection(NamedTuple):
    """A format of several files, or of none that ``READERS`` knows: how it is told, and read."""

    told: Callable[[str], bool]
    attempts: Callable[..., Iterator[Attempt]]


COLLECTIONS: dict[str, Collection] = {
    "beir": Collection(is_beir, beir_rows),
    "msmarco": Collection(is_msmarco, msmarco_rows),
}
FORMATS: tuple[str, ...] = (*READERS, *DIALECTS, *COLLECTIONS)


def require_format(name: str) -> None:
    """Pass if pairs come in this format.

    Raises:
        ValueError: they do not; the message offers the nearest.
    """
    if is_import_path(name):
        reader_of(name)
    elif name not in FORMATS:
        known = f"choose from {', '.join(FORMATS)}, or name a function as module:name"
        raise ValueError(f"format: {name!r} is unknown; {known}{hint(name, FORMATS)}")


def container_of(path: str, given: str | None = None) -> str:
    """What holds the rows of a source: a collection, or a format of ``READERS``.

    Raises:
        ValueError: a file that does not exist, or whose name tells no format.
    """
    if given in COLLECTIONS:
        if not Path(path).exists():
            raise ValueError(f"{path}: no such file or folder, which format {given!r} needs; correct the path")
        return given
    if given is None:
        told = next((name for name, collection in COLLECTIONS.items() if collection.told(path)), None)
        return told or format_of(path)
    return format_of(path, None if given in DIALECTS else given)


def attempts_at(container: str) -> Callable[..., Iterator[Attempt]]:
    """What reads a container: its rows, with the complaint about a broken one in its place where others follow."""
    if container in COLLECTIONS:
        return COLLECTIONS[container].attempts
    return jsonl_attempts if container == "jsonl" else reader_of(container)


def place_word(path: str, container: str) -> str:
    """What the number of a row counts."""
    if container in COLLECTIONS:
        return "judged query" if Path(path).is_dir() else "line"
    return "line" if container == "jsonl" else "row"
