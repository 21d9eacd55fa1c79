"""What a table was made with: commit, versions, machine, model, data, prompts, tasks, overlap of training and test."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mteb.abstasks import AbsTask

from ullme.apps.environment import commit, hardware, versions
from ullme.eval.prompting import PromptPolicy, prompt_policy
from ullme.eval.tasks import parts_of
from ullme.files import written
from ullme.reproduce.data import file_hash
from ullme.reproduce.results import RowResult
from ullme.reproduce.rows import NAMED, Row
from ullme.reproduce.study import Study
from ullme.templates import ECHO_TEMPLATE, GENERATION_TEMPLATE, INSTRUCTION_TEMPLATE

MANIFEST = "manifest.json"
#: What of a budget may be other when a study is added to: it changes no score that is kept.
_MAY_DIFFER = {"seeds", "other_seeds", "tasks", "benchmark", "queries", "passages", "chunk_tokens", "evaluations"}


def identity(study: Study) -> dict[str, Any]:
    """What must stay the same while a study is added to: more rows, seeds and tasks may come."""
    budget = study.budget.model_dump(exclude=_MAY_DIFFER)
    data = {f"data.{name}": source.get("sha256") for name, source in study.data.sources.items()}
    model = study.model if not Path(study.model).exists() else Path(study.model).name
    more = {"model": model, "prompts": study.prompts, "bf16": study.bf16, "overrides": list(study.overrides)}
    return {**more, **budget, **data}


def require_same_study(study: Study) -> None:
    """Pass if the results folder is new or holds this study.

    Raises:
        ValueError: it holds another one; the message names the first difference.
    """
    place = study.results / MANIFEST
    if not place.is_file():
        if study.results.is_dir() and any(study.results.iterdir()):
            raise ValueError(f"name: {str(study.results)!r} is not empty and holds no study; give another --name")
        return
    try:
        before = json.loads(place.read_text(encoding="utf-8"))["study"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{place}: is damaged ({error}); delete it, and it is written again") from error
    now = identity(study)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise ValueError(
                f"name: {str(study.results)!r} holds a study with {key}={before.get(key)!r}, and this one has "
                f"{now.get(key)!r}; give another --name, or set {key} back"
            )


def write_manifest(study: Study, rows: Sequence[Row], results: Sequence[RowResult]) -> Path:
    """Write ``manifest.json``: what the study is, what it ran on, and what is done of it.

    Seeds and run files are those of the rows asked for and of those that were done before. Commit, versions and
    hardware are this call's; those of an earlier row stand in its own file.
    """
    named = [*rows, *(NAMED[result.row] for result in results if result.row in NAMED)]
    stages = [*(stage for row in named for stage in row.stages), *(r.run_file for r in results if r.run_file)]
    done = [
        {"row": r.row, "seed": r.seed, "model": r.model, "average": round(r.average, 2), "seconds": r.seconds}
        for r in results
    ]
    content = {
        "study": identity(study),
        "commit": commit(),
        "versions": versions(),
        "hardware": hardware(),
        "seeds": _seeds(study, rows, results),
        "run_files": {Path(stage).name: file_hash(study.configs / stage) for stage in stages},
        "prompts": prompt_hashes(study.prompts, study.tasks),
        "data": study.data.sources,
        "overlap": {
            "rule": "left out: rows whose query or positive is by its words a sentence, query or answering passage of "
            "a scored split; and negatives that are",
            "found": study.data.overlap.counts,
            "other_passages_of_a_searched_corpus_kept": study.data.overlap.corpus_counts,
        },
        "tasks": [_described(task) for task in study.tasks],
        "tasks_not_in_the_folder": list(study.left_out),
        "done": done,
    }
    return written(study.results / MANIFEST, json.dumps(content, indent=1) + "\n")


def _seeds(study: Study, rows: Iterable[Row], results: Iterable[RowResult]) -> dict[str, list[int]]:
    seeds = {row.name: set(study.budget.seeds_of(row.name)) for row in rows if row.trained}
    for result in results:
        if result.seed is not None:
            seeds.setdefault(result.row, set()).add(result.seed)
    return {name: sorted(found) for name, found in seeds.items()}


def prompt_hashes(prompts: Any, tasks: Iterable[AbsTask]) -> dict[str, Any]:
    """Hashes of the templates, and of what stands before the queries of each task."""
    templates = {"instruction": INSTRUCTION_TEMPLATE, "generation": GENERATION_TEMPLATE, "echo": ECHO_TEMPLATE}
    policy = prompt_policy(prompts, None, "none")
    return {
        "policy": policy.name,
        "templates": {name: _hash(text) for name, text in templates.items()},
        "tasks": {part.metadata.name: _hash(_query_prompt(policy, part)) for task in tasks for part in parts_of(task)},
    }


def _query_prompt(policy: PromptPolicy, task: AbsTask) -> str:
    return policy.prompt(task.metadata, None)


def _described(task: AbsTask) -> Mapping[str, Any]:
    meta = task.metadata
    subsets = list(getattr(task, "hf_subsets", []) or [])
    return {"name": meta.name, "type": meta.type, "subsets": subsets, "splits": list(task.eval_splits)}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
