"""What is scored: tasks of MTEB from local folders or the hub, or the documentation that every machine has."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mteb.abstasks import AbsTask
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

from ullme.apps.doc_pairs import DocPairs
from ullme.eval import select_tasks
from ullme.eval.local import data_folder
from ullme.eval.tasks import parts_of

LANGUAGES = ("eng",)


class DocumentationRetrieval(AbsTaskRetrieval):
    """Finding what a function's documentation goes on to say by its first sentence; made on this machine."""

    metadata = TaskMetadata(
        name="DocumentationRetrieval",
        dataset={"path": "ullme/documentation", "revision": "made-here"},
        description="The first sentence of a Python function's documentation asks for what comes after it.",
        type="Retrieval",
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
        date=None,
        reference=None,
        domains=None,
        task_subtypes=None,
        license=None,
        annotations_creators=None,
        dialect=None,
        sample_creation=None,
        bibtex_citation=None,
        is_public=False,
    )


def write_documentation(pairs: DocPairs, root: Path) -> Path:
    """Lay the documentation task out as the hub does, in ``root/ullme/documentation``; gives back ``root``."""
    folder = root / DocumentationRetrieval.metadata.dataset["path"]
    qrels = [(q, p, grade) for q, passages in pairs.qrels.items() for p, grade in passages.items()]
    parts: dict[str, tuple[str, list[Mapping[str, object]]]] = {
        "corpus": ("corpus", [{"_id": i, "title": "", "text": text} for i, text in pairs.corpus.items()]),
        "queries": ("queries", [{"_id": i, "text": text} for i, text in pairs.queries.items()]),
        "default": ("test", [{"query-id": q, "corpus-id": p, "score": grade} for q, p, grade in qrels]),
    }
    card = "---\nconfigs:\n"
    for config, (split, rows) in parts.items():
        path = folder / config / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        card += f"- config_name: {config}\n  data_files:\n  - split: {split}\n    path: {config}/{split}.jsonl\n"
    (folder / "README.md").write_text(card + "---\n", encoding="utf-8")
    return root


def named_task(spec: str) -> AbsTask:
    """The task of ``name``, ``name:subset`` or ``name:subset:split``, English only where it has several languages.

    Raises:
        ValueError: it does not exist.
    """
    name, _, rest = spec.partition(":")
    subset, _, split = rest.partition(":")
    subsets, splits = [subset] if subset else None, [split] if split else None
    return select_tasks(name, languages=LANGUAGES, hf_subsets=subsets, eval_splits=splits)[0]


def chosen_tasks(
    asked: Sequence[str], offered: Sequence[str], benchmark: str | None, folder: Path | None
) -> tuple[list[AbsTask], list[str]]:
    """The tasks to score, and the names of those that were offered and are not in the folder.

    Args:
        asked: tasks by name; each must be there.
        offered: the budget's, taken where no task or benchmark is asked for.
        benchmark: a benchmark's tasks.
        folder: local data; None for the hub, or for the documentation task if nothing is asked for.

    Raises:
        ValueError: an unknown task or benchmark, or a folder that has none of those offered.
    """
    if asked or benchmark:
        named = [named_task(spec) for spec in asked]
        joined = select_tasks(None, benchmark, languages=LANGUAGES) if benchmark else []
        return _unique([*named, *joined]), []
    if folder is None:
        return [DocumentationRetrieval()], []
    root = data_folder(folder)
    assert root is not None
    tasks = [named_task(spec) for spec in offered]
    there = [t for t in tasks if all((root / p.metadata.dataset["path"]).is_dir() for p in parts_of(t))]
    if not there:
        raise ValueError(
            f"mteb-folder: {str(folder)!r} has none of {', '.join(offered)}; put one there as <org>/<dataset>, or name "
            "those that it has with --tasks"
        )
    return there, [t.metadata.name for t in tasks if t not in there]


def _unique(tasks: Iterable[AbsTask]) -> list[AbsTask]:
    return list({task.metadata.name: task for task in tasks}.values())
