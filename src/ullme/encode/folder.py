"""A corpus's folder on disk: whether a job may use it, what is finished in it, and how files appear in it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ullme.encode.job import FORMAT, Job, differences

MANIFEST, RANGES = "manifest.json", "ranges.npy"
#: Everything about a job that is not finished: what it is, which shards are done, files being written.
_UNFINISHED, _JOB, _LOCK = ".unfinished", "job.json", "lock"


class CorpusFolder:
    """The folder of one corpus: complete with its manifest, or unfinished, or not there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unfinished = path / _UNFINISHED

    def begun(self) -> Job | None:
        """The job that this folder holds, finished or not; None where a new one may start.

        Raises:
            ValueError: the folder holds something else, or cannot be one.
        """
        name = f"output: {str(self.path)!r}"
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{name} exists and is a file; name a new folder")
        for file in (self.path / MANIFEST, self.unfinished / _JOB):
            if file.is_file():
                return _read_job(file, self.path)
        if self.path.is_dir() and any(entry.name != _UNFINISHED for entry in self.path.iterdir()):
            raise ValueError(f"{name} exists already and holds no corpus; name a new folder or remove it")
        return None

    def require_same(self, before: Job | None, now: Mapping[str, Any]) -> None:
        """Pass if the folder's job and this identity agree as far as they go.

        Raises:
            ValueError: they do not; the message names what differs.
        """
        for key, old, new in () if before is None else differences(before.identity(), now):
            raise ValueError(
                f"output: {str(self.path)!r} holds a corpus with {key}={_short(old)}, and this one has {_short(new)}; "
                f"name a new folder, or set {key} back"
            )

    @property
    def complete(self) -> bool:
        """Whether every shard is there."""
        return (self.path / MANIFEST).is_file()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one process; the system gives it back whatever becomes of that process.

        Raises:
            ValueError: another process holds it.
        """
        self.unfinished.mkdir(parents=True, exist_ok=True)
        with (self.unfinished / _LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(
                    f"output: {str(self.path)!r} is being written by another process; wait for it or name a new folder"
                ) from error
            yield

    def begin(self, job: Job) -> None:
        """Keep what the job is, for the run that continues it, and drop what a killed one was writing."""
        for half_written in self.unfinished.glob("*." + "?" * 32):
            half_written.unlink(missing_ok=True)
        self.write_json(self.unfinished / _JOB, job.to_dict())

    def todo(self, job: Job) -> list[int]:
        """The shards that are not finished, in their order."""
        return [shard for shard in range(job.shards) if not self.finished(shard)]

    def finished(self, shard: int) -> bool:
        """Whether a shard is on disk, each of its files at its size."""
        record = self._record(shard)
        if not record.is_file():
            return False
        files = json.loads(record.read_text())["files"]
        return all((self.path / n).is_file() and (self.path / n).stat().st_size == f["bytes"] for n, f in files.items())

    def finish_shard(self, shard: int, rows: int, written: Mapping[str, Path]) -> None:
        """Put a shard's files (name -> where it was written) into place; its record, last, makes it finished."""
        files = {name: file_record(path) for name, path in written.items()}
        for path in written.values():
            synced(path)
        for name, path in written.items():
            os.replace(path, self.path / name)
        self.write_json(self._record(shard), {"rows": rows, "files": files})

    def finish(self, job: Job, more: Mapping[str, Any]) -> None:
        """Write the manifest, by which the corpus is complete."""
        shards = [json.loads(self._record(shard).read_text()) for shard in range(job.shards)]
        manifest = {**job.to_dict(), **more, "shards": shards}
        self.write_json(self.path / MANIFEST, manifest)

    def manifest(self) -> dict[str, Any]:
        """What a complete corpus says of itself."""
        return json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))

    def tidy(self) -> None:
        """Remove what only an unfinished corpus needs."""
        if self.complete:
            shutil.rmtree(self.unfinished, ignore_errors=True)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A path to write a file at, of which nothing is left unless it was moved into place."""
        path = self.unfinished / f"{name}.{uuid.uuid4().hex}"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def place(self, name: str, write: Callable[[Path], None]) -> None:
        """Let ``write`` write a file, and put it into place whole."""
        with self.writing(name) as path:
            write(path)
            synced(path)
            os.replace(path, self.path / name)

    def write_json(self, path: Path, content: Any) -> None:
        """A JSON file that is there whole or not at all."""
        with self.writing(path.name) as unfinished:
            unfinished.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            synced(unfinished)
            os.replace(unfinished, path)

    def _record(self, shard: int) -> Path:
        return self.unfinished / f"shard-{shard:05d}.json"


def file_record(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, as a manifest keeps them."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def synced(path: Path) -> None:
    """Let a file's content reach the disk before its name does: a machine may go down too."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _read_job(file: Path, output: Path) -> Job:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, not {FORMAT}")
        known = Job.__dataclass_fields__.keys() - {"output"}
        return Job.from_dict({key: content[key] for key in known}, output)
    except (ValueError, KeyError, TypeError) as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"output: {str(output)!r}: {file.name} is not of ullme encode ({said}); name a new folder"
        ) from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:16]}...{text[-1]}"
