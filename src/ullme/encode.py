"""Files of texts to files of embeddings, a block at a time."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ullme.data.readers import READERS, format_of

#: Columns that may hold a row's text or its id, unless the user names others.
TEXT_COLUMNS = ("text", "passage", "sentence", "query", "contents")
ID_COLUMNS = ("id", "_id", "docid")
_BLOCK_ROWS = 1024


@dataclass(frozen=True)
class TextFile:
    """A file with one text per row: ``.txt`` (a line is a text), JSONL or Parquet.

    Attributes:
        path: the file.
        column: the column that holds the text; None takes the first of ``TEXT_COLUMNS`` that is there.
        id_column: the column that holds the row's id; None takes one of ``ID_COLUMNS``, else the row's number.
    """

    path: Path
    column: str | None = None
    id_column: str | None = None

    def check(self) -> None:
        """Raise if the first row cannot be read, before a model is loaded for it.

        Raises:
            ValueError: no such file, no such column, or no rows.
        """
        if next(self.rows(), None) is None:
            raise ValueError(f"{self.path}: no texts; write one per row")

    def rows(self) -> Iterator[tuple[str, str]]:
        """Each row's id and text.

        Raises:
            ValueError: a broken row, a missing column or an empty text, with its number.
        """
        for number, row in self._numbered():
            at = f"{self.path}, row {number}"
            column = _column(row, self.column, TEXT_COLUMNS, f"{at}: text")
            text = row[column]
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{at}: {column}: {text!r} is no text; fill it in or remove the row")
            found_id = [name for name in ID_COLUMNS if name in row]
            if self.id_column is not None:
                found_id = [_column(row, self.id_column, (), f"{at}: id")]
            yield str(row[found_id[0]] if found_id else number), text

    def _numbered(self) -> Iterator[tuple[int, dict[str, Any]]]:
        if not self.path.is_file():
            raise ValueError(f"{self.path}: no such file; check the path")
        if self.path.suffix != ".txt":
            yield from READERS[format_of(str(self.path))](str(self.path))
            return
        with self.path.open(encoding="utf-8") as file:
            try:
                yield from ((number, {"text": line.rstrip("\n")}) for number, line in enumerate(file, start=1))
            except UnicodeDecodeError as error:
                raise ValueError(f"{self.path}: is not UTF-8 ({error.reason}); save it as UTF-8") from error


def encode_file(
    encode: Callable[[list[str]], np.ndarray],
    source: TextFile,
    output: Path,
    described: dict[str, Any],
    advance: Callable[[int], None] = lambda rows: None,
) -> dict[str, Any]:
    """Embed every text of ``source`` into the new folder ``output``, and return the manifest written there.

    The folder holds ``embeddings.npy`` (rows, D), ``ids.txt`` (one JSON string per line, in the same order) and
    ``manifest.json``. It appears complete or not at all. Memory does not grow with the number of rows.

    Args:
        encode: texts to embeddings (N, D), in their order.
        source: where the texts are.
        output: a folder that does not exist yet, or is empty.
        described: what produced the embeddings, for the manifest.
        advance: called with the number of rows after each block.

    Raises:
        ValueError: a row that cannot be read, or an output folder that is in use.
    """
    require_unused(output)
    with _appearing(output) as folder, (folder / "embeddings.npy").open("w+b") as file:
        rows, width, dtype = 0, 0, np.dtype(np.float32)
        with (folder / "ids.txt").open("w", encoding="utf-8") as ids:
            for block in _blocks(source.rows()):
                vectors_ND = np.ascontiguousarray(encode([text for _, text in block]))
                if rows == 0:
                    width, dtype = vectors_ND.shape[1], vectors_ND.dtype
                    _write_header(file, (0, width), dtype)
                file.write(vectors_ND.tobytes())
                ids.writelines(json.dumps(name, ensure_ascii=False) + "\n" for name, _ in block)
                rows += len(block)
                advance(len(block))
        if rows == 0:
            raise ValueError(f"{source.path}: no texts; write one per row")
        _write_header(file, (rows, width), dtype)
        manifest = {"rows": rows, "dimension": width, "dtype": str(dtype), "source": asdict(source), **described}
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2, default=str) + "\n", encoding="utf-8")
    return manifest


def require_unused(output: Path) -> None:
    """Raise unless a folder may be made at ``output``.

    Raises:
        ValueError: something is there already.
    """
    if output.is_dir() and not any(output.iterdir()):
        return
    if output.exists():
        raise ValueError(f"output: {str(output)!r} exists already; name a new folder or remove it")


def _write_header(file: BinaryIO, shape: tuple[int, int], dtype: np.dtype) -> None:
    """Write (or rewrite) the array's header: NumPy leaves room in it for the first dimension to grow."""
    file.seek(0)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _blocks(rows: Iterator[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    while block := list(islice(rows, _BLOCK_ROWS)):
        yield block


def _column(row: dict[str, Any], named: str | None, usual: tuple[str, ...], at: str) -> str:
    have = ", ".join(map(repr, row))
    found = [name for name in ((named,) if named is not None else usual) if name in row]
    if not found:
        asked = repr(named) if named is not None else " or ".join(map(repr, usual))
        raise ValueError(f"{at}: no column {asked}; it has {have}; name one of them")
    return found[0]


@contextmanager
def _appearing(output: Path) -> Iterator[Path]:
    """A folder to fill, which takes its place when all went well and vanishes when not."""
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        yield unfinished
        unfinished.chmod(0o755)
        os.replace(unfinished, output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
