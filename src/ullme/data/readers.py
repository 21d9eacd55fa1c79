"""Files and datasets as rows: one reader per format, each streaming ``(row number, row)``.

A format of ``READERS`` goes by its name; one outside ullme by the import path of a function with the same arguments.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from ullme.data.wording import hint, nearest, shortened
from ullme.extension import imported_function, is_import_path

Row = tuple[int, dict[str, Any]]
Reader = Callable[..., Iterator[Row]]
#: A row, or what is wrong with it: reading goes on behind one that is broken.
Attempt = tuple[int, dict[str, Any] | ValueError]

#: How a file's name tells its format.
SUFFIXES: dict[str, str] = {
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".ndjson": "jsonl",
    ".ndjson.gz": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_ROWS_AT_ONCE = 1024


def format_of(path: str, given: str | None = None) -> str:
    """The format of a source: the given one, or by suffix for a file, by content for a folder.

    What is neither file nor folder is a dataset's name. What a reader outside ullme reads, only that knows.

    Raises:
        ValueError: a file that does not exist, or whose name tells no format.
    """
    place = Path(path)
    if given is not None:
        fits = given == "hub" or is_import_path(given) or (place.is_dir() if given == "saved" else place.is_file())
        if not fits:
            wanted = "folder" if given == "saved" else "file"
            raise ValueError(f"{path}: no such {wanted}, which format {given!r} needs{_nearest_file(place)}")
        return given
    by_suffix = next((fmt for suffix, fmt in SUFFIXES.items() if path.lower().endswith(suffix)), None)
    if place.is_dir():
        saved = any((place / mark).is_file() for mark in ("state.json", "dataset_dict.json"))
        return "saved" if saved else "hub"
    if place.is_file():
        if by_suffix is None:
            raise ValueError(f"{path}: its name tells no format; end it in {', '.join(SUFFIXES)}, or set format")
        return by_suffix
    if by_suffix is None and _may_be_hub_name(path):
        return "hub"
    raise ValueError(f"{path}: no such file{_nearest_file(place)}")


def _may_be_hub_name(path: str) -> bool:
    parts = path.split("/")
    return len(parts) <= 2 and all(parts) and not path.startswith((".", "~")) and not Path(parts[0]).is_dir()


def _nearest_file(place: Path) -> str:
    """The end of an error about a missing file: the nearest name that exists beside it."""
    folder = place.parent
    while not folder.is_dir():
        if folder.parent == folder:
            return ""
        place, folder = folder, folder.parent
    near = nearest(place.name, [p.name for p in folder.iterdir()])
    return f"; did you mean {str(folder / near)!r}?" if near else f"; {str(folder)!r} has no file of that name"


def jsonl_rows(path: str, subset: str | None = None, split: str | None = None) -> Iterator[Row]:
    """The objects of a JSON-lines file (optionally gzipped), numbered by line from 1; blank lines are passed over.

    Raises:
        ValueError: a line that is not UTF-8, not JSON or not an object, or a broken gzip file.
    """
    return firm(jsonl_attempts(path))


def jsonl_attempts(path: str, subset: str | None = None, split: str | None = None) -> Iterator[Attempt]:
    """As ``jsonl_rows``, with the complaint about a line in its place.

    Raises:
        ValueError: a broken gzip file.
    """
    for number, line in lines_of(path):
        if line.strip():
            try:
                yield number, json_object(line, f"{path}, line {number}", first=number == 1)
            except ValueError as error:
                yield number, error


def lines_of(path: str) -> Iterator[tuple[int, bytes]]:
    """The lines of a file (optionally gzipped), numbered from 1.

    Raises:
        ValueError: a broken gzip file.
    """
    opened = gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb")
    with opened as file:
        try:
            yield from enumerate(file, start=1)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: broken gzip file ({error}); compress it again, or unpack it") from error


def firm(attempts: Iterable[Attempt]) -> Iterator[Row]:
    """The rows of attempts.

    Raises:
        ValueError: the first that failed.
    """
    for number, row in attempts:
        if isinstance(row, ValueError):
            raise row
        yield number, row


def json_object(line: bytes, at: str, first: bool) -> dict[str, Any]:
    """The object that a line of a file holds; only its first line may start with a byte order mark.

    Raises:
        ValueError: it is not UTF-8, not JSON or not an object; ``at`` says where.
    """
    try:
        row = json.loads(line.decode("utf-8-sig" if first else "utf-8").rstrip())
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(f"{at}: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        text = shortened(line.decode("utf-8-sig", "replace").strip())
        cure = "write one complete JSON object per line"
        raise ValueError(f"{at}, column {error.colno}: broken JSON ({error.msg}) in {text}; {cure}") from error
    if not isinstance(row, dict):
        raise ValueError(f'{at}: {shortened(row)} is not an object; write {{"query": ..., "positive": ...}}')
    return row


def parquet_rows(path: str, subset: str | None = None, split: str | None = None) -> Iterator[Row]:
    """The rows of a Parquet file, numbered from 1, read a batch at a time.

    Raises:
        ValueError: a file that is not Parquet, or is truncated.
    """
    try:
        file = pq.ParquetFile(path)
        batches = (batch.to_pylist() for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE))
        yield from enumerate(chain.from_iterable(batches), start=1)
    except (pa.ArrowException, OSError) as error:
        raise unreadable_parquet(path, error) from error


def unreadable_parquet(path: str, error: Exception) -> ValueError:
    """The error about a file that is not Parquet, or is truncated."""
    return ValueError(f"{path}: unreadable Parquet file ({_one_line(error)}); write or download it again")


def saved_rows(path: str, subset: str | None = None, split: str | None = None) -> Iterator[Row]:
    """The rows of a folder that ``datasets`` saved (``save_to_disk``), numbered from 1.

    Raises:
        ValueError: a folder that cannot be read, or a split it does not have.
    """
    yield from _dataset_rows(saved_dataset(path, subset, split))


def saved_dataset(path: str, subset: str | None = None, split: str | None = None) -> datasets.Dataset:
    """What ``datasets`` saved in a folder, mapped into memory.

    Raises:
        ValueError: as ``saved_rows``.
    """
    try:
        loaded = datasets.load_from_disk(path)
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        raise ValueError(f"{path}: unreadable saved dataset ({_one_line(error)}); save it again") from error
    return _chosen_split(loaded, split, path)


def hub_rows(path: str, subset: str | None = None, split: str | None = None) -> Iterator[Row]:
    """The rows of what ``datasets.load_dataset`` finds under this name or folder, numbered from 1.

    Raises:
        ValueError: a name that neither a file here nor a dataset has, a missing configuration or split.
    """
    yield from _dataset_rows(hub_dataset(path, subset, split))


def hub_dataset(path: str, subset: str | None = None, split: str | None = None) -> datasets.Dataset:
    """What ``datasets.load_dataset`` finds under this name or folder, converted once and mapped into memory.

    Raises:
        ValueError: as ``hub_rows``.
    """
    try:
        loaded = datasets.load_dataset(path, name=subset)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        here = _nearest_file(Path(path))
        raise ValueError(f"{path}: neither a file here nor a dataset ({_one_line(error)}){here}") from error
    return _chosen_split(loaded, split, path)


def _chosen_split(loaded: Any, split: str | None, path: str) -> datasets.Dataset:
    if not isinstance(loaded, dict):
        return loaded
    chosen = split or "train"
    if chosen not in loaded:
        have = ", ".join(map(repr, loaded))
        raise ValueError(f"{path}: split: no {chosen!r}; it has {have}; set split to one of them{hint(chosen, loaded)}")
    return loaded[chosen]


def _dataset_rows(dataset: datasets.Dataset) -> Iterator[Row]:
    batches = (batch.to_pylist() for batch in dataset.with_format("arrow").iter(batch_size=_ROWS_AT_ONCE))
    yield from enumerate(chain.from_iterable(batches), start=1)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]


READERS: dict[str, Reader] = {
    "jsonl": jsonl_rows,
    "parquet": parquet_rows,
    "saved": saved_rows,
    "hub": hub_rows,
}


def reader_of(name: str) -> Reader:
    """The reader of a format: by name, or by import path.

    Raises:
        ValueError: there is none; the message offers the nearest.
    """
    if is_import_path(name):
        return partial(_outside_rows, name, imported_function(name, "format", ("path", "subset", "split")))
    if name not in READERS:
        known = f"choose from {', '.join(READERS)}, or name a function as module:name"
        raise ValueError(f"format: {name!r} is unknown; {known}{hint(name, READERS)}")
    return READERS[name]


def _outside_rows(
    name: str, read: Callable[..., Any], path: str, subset: str | None = None, split: str | None = None
) -> Iterator[Row]:
    """The rows of a reader outside ullme; what it complains of, or gives wrongly, is said with its place."""
    last = "before the first row"
    try:
        for item in read(path, subset, split):
            if not _is_row(item):
                raise ValueError(f"{shortened(item)} is no row; let {name} yield (number, {{column: value}})")
            last = f"after row {item[0]}"
            yield item
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{path}, {last}: {said}; correct the data or {name!r}") from error


def _is_row(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], int) and isinstance(item[1], Mapping)
