"""Hard negatives of the training rows, found by the tool itself: by words, or by the LLM after a short warm-up."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from ullme.apps.train import train
from ullme.data.mining import Encode, mine_negatives
from ullme.reproduce.data import Prepared, digest, file_hash, read_file, write_rows
from ullme.reproduce.floor import BagOfWords
from ullme.reproduce.rows import Row
from ullme.reproduce.study import Job, Study, made_of, stage_configs
from ullme.types import PairExample

#: The LLM that mines is Bi + CL, trained on the same rows without their hard negatives.
WARM_UP = Job(Row("miner", "Miner", ("bi_cl.yaml",)), 0)


def with_mined_negatives(study: Study, folder: Path, labelled: Collection[str] = ()) -> Study:
    """The study with the negatives of its rows mined, as its budget says.

    A row's candidates are the positives and negatives of its own source. One that is nearer to the query than the
    positive, or nearly as near (``margin``), is taken for a positive that nobody marked, and left out.

    What was mined is kept in the folder, by the hash of the rows, the miner and the numbers, and not mined again; so is
    the miner, whose training resumes.

    Args:
        study: with the rows as they were prepared.
        folder: of mined rows and miners; several studies may share it.
        labelled: sources whose own negatives people chose: these stay, before the mined ones.

    Raises:
        ValueError: a source that does not exist, or what training the miner says.
    """
    unknown = sorted(set(labelled) - study.data.train.keys())
    if unknown:
        raise ValueError(f"labelled: {unknown[0]!r} is no source; choose from {', '.join(study.data.train)}")
    budget = study.budget
    if not budget.mined:
        return study
    name, encoder = _miner(study, folder)
    numbers = {"miner": name, "count": budget.mined, "margin": budget.margin}

    def mined(path: Path, keep_own: bool) -> Path:
        key = digest({**numbers, "rows": file_hash(path), "keep_own": keep_own})
        place = folder / f"{path.stem}-{key}.jsonl"
        if not place.is_file():
            found = mine(read_file(path), encoder(), budget.mined, budget.margin, keep_own)
            write_rows(found, place)
        return place

    files = {source: mined(path, source in labelled) for source, path in study.data.train.items()}
    held_out = mined(study.data.held_out, False) if study.data.held_out else None
    return replace(study, data=_with_files(study.data, files, held_out, budget.mined))


def mine(
    rows: Sequence[PairExample], encode: Encode, count: int, margin: float, keep_own: bool = False
) -> list[PairExample]:
    """The rows with negatives from among the positives and negatives of all; own ones first where they are kept."""
    candidates = dict.fromkeys(text for row in rows for text in row.negatives)
    found = mine_negatives(rows, encode, corpus=list(candidates), count=count, relative_margin=margin)
    if not keep_own:
        return found
    own = [dict.fromkeys((*row.negatives, *new.negatives)) for row, new in zip(rows, found, strict=True)]
    return [replace(row, negatives=tuple(both)[:count]) for row, both in zip(rows, own, strict=True)]


def _miner(study: Study, folder: Path) -> tuple[str, Callable[[], Encode]]:
    """What tells the miner from another, and how to get it; it is trained when it is first needed."""
    budget = study.budget
    if not budget.miner_steps:
        bag = BagOfWords()
        return bag.fingerprint(), lambda: bag.encode
    shorter = budget.model_copy(update={"steps": budget.miner_steps, "negatives": 0})
    own = replace(study, budget=shorter, data=replace(study.data, held_out=None), overrides=())
    name = made_of(own, WARM_UP)

    @cache
    def trained() -> Encode:
        (config,) = stage_configs(replace(own, work=folder / f"miner-{name}"), WARM_UP)
        return train(config).model.encode

    return name, trained


def _with_files(data: Prepared, files: dict[str, Path], held_out: Path | None, count: int) -> Prepared:
    """The data with mined files in place of its own, and what was found said of each source."""
    sources = {name: dict(source) for name, source in data.sources.items()}
    for name, path in files.items():
        numbers = [len(row.negatives) for row in read_file(path)]
        mean = round(sum(numbers) / len(numbers), 2)
        full = sum(number == count for number in numbers)
        sources[name] |= {"sha256": file_hash(path), "negatives per row": mean, f"rows with {count}": full}
    return replace(data, train=files, held_out=held_out, sources=sources)
