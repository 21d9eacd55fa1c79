"""An encoding job from its source to its manifest, begun or continued."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ullme.encode.embedder import Load, dimension_of, embedder_of, resolved_prompt
from ullme.encode.folder import RANGES, CorpusFolder, file_record
from ullme.encode.job import EncodeOptions, Job, early_identity
from ullme.encode.pipeline import Advance, calibrate, encode_shards
from ullme.encode.precision import PRECISIONS, stored_width
from ullme.encode.source import PARTS, TextSource
from ullme.encode.survey import Survey, survey

#: Other processes that write a job's shards: ``(job, shards, load, batch_size, advance)``.
Workers = Callable[[Job, Sequence[int], Load, int, Advance], None]


class Progress:
    """What is told about a job while it runs; the methods of this class say nothing."""

    def found(self, rows: int) -> None:
        """So many more rows of the source have been looked at."""

    def begin(self, rows: int, characters: int, done_rows: int, done_characters: int) -> None:
        """Encoding begins: all there is, and how much of it an earlier run has done."""

    def advance(self, rows: int, characters: int) -> None:
        """So many more rows, of so many characters, are embedded."""


def encode_corpus(
    load: Load,
    source: TextSource,
    output: Path,
    options: EncodeOptions | None = None,
    *,
    model: str = "",
    settings: dict[str, Any] | None = None,
    fingerprint: Callable[[Any], str | None] = lambda model: model.fingerprint(),
    batch_size: int = 32,
    device: str | None = None,
    workers: Workers | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Embed every text of a source into shards in a folder, and return the folder's manifest.

    Killed at any moment and called again alike, it continues after the last finished shard, and ends with the same
    bytes as an uninterrupted run. A folder that is complete already is left as it is. Memory does not grow with the
    number of rows.

    Args:
        load: the model, on the device that it is called with; called after the source was found good.
        source: where the texts are.
        output: a folder that does not exist yet, is empty, or holds this very job.
        options: what is stored of each text.
        model: the model's name, for the manifest.
        settings: how the model was loaded, for the manifest.
        fingerprint: a hash of all that decides the model's embeddings.
        batch_size: memory of one batch, in texts of 128 tokens; decides nothing but rounding.
        device: where this process computes.
        workers: processes that compute in place of this one.
        progress: is told how far the job is.

    Raises:
        ValueError: a source that cannot be used, or a folder that holds another job or something else.
    """
    options, progress = options or EncodeOptions(), progress or Progress()
    folder = CorpusFolder(output)
    before = folder.begun()  # what can be refused at once, before the source is read
    found = survey(source, options.shard_rows, options.sample_rows, progress.found)
    options = options.for_source(found)
    folder.require_same(before, early_identity(options, found.digest, found.rows))
    loaded = load(device)
    job = _job(loaded, source, output, options, found, {"name": model, "settings": settings or {}}, fingerprint)
    folder.require_same(before, job.identity())
    if not folder.complete:
        with folder.locked():
            folder.begin(job := replace(job, version=before.version if before else job.version))
            todo = _todo(job, folder, found, progress)
            embedder = embedder_of(loaded, job.options, batch_size)
            calibrate(job, embedder, found.sample)
            if workers is None:
                encode_shards(job, embedder, todo, advance=progress.advance)
            elif todo:
                del loaded, embedder  # its memory is the workers'
                gc.collect()
                workers(job, todo, load, batch_size, progress.advance)
            assert not folder.todo(job), "a shard was left out"
            folder.finish(job, _more(job))
    folder.tidy()
    return folder.manifest()


def _todo(job: Job, folder: CorpusFolder, found: Survey, progress: Progress) -> list[int]:
    """The shards that are left, after telling how much is done."""
    todo = folder.todo(job)
    done = sorted(set(range(job.shards)) - set(todo))
    done_characters = sum(found.shard_characters[shard] for shard in done)
    progress.begin(job.rows, found.characters, sum(map(job.rows_of, done)), done_characters)
    return todo


def _job(
    loaded: Any,
    source: TextSource,
    output: Path,
    options: EncodeOptions,
    found: Survey,
    model: dict[str, Any],
    fingerprint: Callable[[Any], str | None],
) -> Job:
    prompt = resolved_prompt(loaded, options.prompt, "query" if source.part == PARTS[1] else "document")
    return Job(
        output=output,
        source=source,
        options=replace(options, prompt=prompt),
        rows=found.rows,
        shard_digests=found.shard_digests,
        model={**model, "fingerprint": fingerprint(loaded)},
        dimension=dimension_of(loaded, options.truncate_dim),
        source_digest=found.digest,
        version=version("ullme"),
    )


def _more(job: Job) -> dict[str, Any]:
    """What a manifest says of the corpus as a whole, beside the job and the shards."""
    stored = {"dtype": PRECISIONS[job.options.precision], "width": stored_width(job.dimension, job.options.precision)}
    return {**stored, "ranges": {RANGES: file_record(job.output / RANGES)} if job.options.sample_rows else None}
