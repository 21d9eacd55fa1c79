"""Which tasks to evaluate: by name, type, benchmark and language, always fresh and never mteb's shared objects."""

from __future__ import annotations

import copy
import difflib
import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import mteb
from mteb.abstasks import AbsTask
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.abstasks.task_metadata import TaskType
from mteb.languages import ISO_TO_LANGUAGE, PROGRAMMING_LANGS

from ullme.eval.own import OwnRetrieval, own_tasks


def select_tasks(
    tasks: str | AbsTask | Iterable[str | AbsTask] | None = None,
    benchmarks: str | Iterable[str] | None = None,
    *,
    task_types: str | Iterable[str] | None = None,
    languages: Sequence[str] | None = None,
    hf_subsets: Sequence[str] | None = None,
    eval_splits: Sequence[str] | None = None,
) -> list[AbsTask]:
    """The tasks that were asked for, each once, narrowed to the languages, subsets and splits asked for.

    A task that is named must carry every language; of a type or a benchmark, tasks without any are left out. A file or
    folder is a task of one's own (``OwnRetrieval``), which carries the first language asked for; a folder of several is
    a benchmark.

    Raises:
        ValueError: nothing was asked for, or an unknown name (the message has the nearest one).
    """
    require_languages(languages)
    named = [part for task in _as_list(tasks) for part in _own(task, languages, eval_splits)]
    for task in named:
        if not isinstance(task, OwnRetrieval):
            _require_languages_of(task if isinstance(task, AbsTask) else _fresh(task), languages)
    chosen = [_narrowed(_fresh(task), languages, hf_subsets, eval_splits) for task in named]
    asked = [part for name in _as_list(benchmarks) for part in _own(name, languages, eval_splits)]
    offered = [task for name in asked for task in (_benchmark(name) if isinstance(name, str) else [name])]
    offered += _of_types(_as_list(task_types))
    for task in offered:
        if languages is None or any(carries(langs, languages) for langs in subset_languages(task).values()):
            chosen.append(_narrowed(_fresh(task), languages, hf_subsets, eval_splits))
    if not named and not offered:
        raise ValueError("tasks: nothing to evaluate; give tasks, task_types or benchmarks by name")
    unique: dict[str, AbsTask] = {}
    for task in chosen:
        unique.setdefault(task.metadata.name, task)  # as it was named, not as a benchmark narrows it
        if isinstance(task, OwnRetrieval) and task.path != getattr(unique[task.metadata.name], "path", None):
            raise ValueError(f"task: {task.path!r} is called {task.metadata.name!r} as another one is; rename it")
    if not unique:
        raise ValueError(f"languages: no task that was asked for carries {', '.join(languages or ())}; ask for others")
    return list(unique.values())


def require_languages(languages: Sequence[str] | None) -> None:
    """Pass if all are ISO 639-3 codes such as "eng" or "eng-Latn"; else ValueError with the nearest."""
    if isinstance(languages, str):
        raise ValueError(f"langs: {languages!r} is one string; give a list, [{languages!r}]")
    for code in languages or ():
        bare = code.split("-")[0]
        if bare in ISO_TO_LANGUAGE or bare in PROGRAMMING_LANGS:
            continue
        by_name = {name.casefold(): iso for iso, name in ISO_TO_LANGUAGE.items()}
        near = difflib.get_close_matches(bare.casefold(), [*by_name, *ISO_TO_LANGUAGE], n=1)
        hint = f"; did you mean {by_name.get(near[0], near[0])!r}?" if near else ""
        raise ValueError(f"langs: {code!r} is no ISO 639-3 code such as 'eng' or 'deu'{hint}")


def subset_languages(task: AbsTask) -> dict[str, list[str]]:
    """Languages with script ("eng-Latn") of each subset that the task is narrowed to."""
    languages = task.metadata.hf_subsets_to_langscripts
    return {subset: languages[subset] for subset in task.hf_subsets if subset in languages}


def carries(langscripts: Iterable[str], languages: Iterable[str]) -> bool:
    """Whether any of these languages with script is one of the languages asked for, with or without script."""
    wanted = set(languages)
    return any(code in wanted or code.split("-")[0] in wanted for code in langscripts)


def with_parts(task: AbsTaskAggregate, parts: list[AbsTask]) -> AbsTaskAggregate:
    """A copy of a task that joins several, joining these in their place."""
    own = copy.copy(task)
    own.tasks, own.taskname_to_task = parts, {part.metadata.name: part for part in parts}
    own.metadata = task.metadata.model_copy(update={"tasks": parts})
    return own


def parts_of(task: AbsTask) -> list[AbsTask]:
    """The tasks that are run for this one: itself, or those that it joins."""
    return list(task.tasks) if isinstance(task, AbsTaskAggregate) else [task]


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return [value] if isinstance(value, str | Path | AbsTask) else list(value)


def known_tasks() -> dict[str, type[AbsTask]]:
    """The task classes of mteb by name."""
    # ``mteb.get_tasks`` the function hides ``mteb.get_tasks`` the module from attribute access.
    return {task.metadata.name: task for task in importlib.import_module("mteb.get_tasks").TASK_LIST}


def _fresh(task: str | AbsTask) -> AbsTask:
    """A task of its own for this run: mteb's shared ones keep data, language filters and an advancing random state."""
    if isinstance(task, str):
        registry = known_tasks()
        if task not in registry:
            raise ValueError(f"task: {task!r} is unknown to mteb {mteb.__version__}{_nearest(task, registry)}")
        return _fresh(registry[task]())
    if isinstance(task, AbsTaskAggregate):
        return with_parts(task, [_fresh(part) for part in task.tasks])
    if type(task) in known_tasks().values():
        own = type(task)(seed=task.seed)
    else:
        own = copy.copy(task)
        own.dataset, own.data_loaded = None, False
    own.hf_subsets, own._eval_splits = list(task.hf_subsets), task._eval_splits
    if "metadata" in vars(task):
        own.metadata = task.metadata
    return own


def _own(name: Any, languages: Sequence[str] | None, splits: Sequence[str] | None) -> list[Any]:
    """What was asked for, or the tasks of one's own where it is no name of mteb's and a file or folder is there."""
    if isinstance(name, AbsTask) or str(name) in known_tasks() or not Path(name).exists():
        return [name]
    return list(own_tasks(str(name), (languages or ["eng"])[0], splits, known_tasks()))


def _benchmark(name: str) -> Iterable[AbsTask]:
    try:
        return mteb.get_benchmark(name).tasks
    except KeyError:
        known = [benchmark.name for benchmark in mteb.get_benchmarks()]
        raise ValueError(f"benchmark: {name!r} is unknown to mteb {mteb.__version__}{_nearest(name, known)}") from None


def _of_types(types: list[str]) -> list[AbsTask]:
    for name in types:
        if name not in get_args(TaskType):
            raise ValueError(f"task type: {name!r} is unknown to mteb{_nearest(name, get_args(TaskType))}")
    return (
        list(mteb.get_tasks(task_types=cast(Any, types), modalities=["text"], exclusive_modality_filter=True))
        if types
        else []
    )


def _require_languages_of(task: AbsTask, languages: Sequence[str] | None) -> None:
    """Raise if a task that was named, or every part of it, lacks one of the languages."""
    offered = [langs for part in parts_of(task) for langs in subset_languages(part).values()]
    for code in languages or ():
        if not any(carries(langs, [code]) for langs in offered):
            has = sorted({lang.split("-")[0] for langs in offered for lang in langs})
            raise ValueError(
                f"langs: task {task.metadata.name!r} has no {code!r}, only {', '.join(has)}; ask for one of these"
            )


def _narrowed(
    task: AbsTask, languages: Sequence[str] | None, subsets: Sequence[str] | None, splits: Sequence[str] | None
) -> AbsTask:
    """This task (changed in place) with the subsets and splits asked for; ValueError if it lacks one."""
    name = task.metadata.name
    if isinstance(task, AbsTaskAggregate):
        if subsets or splits:
            raise ValueError(f"task {name!r} joins several tasks; give hf_subsets and eval_splits to those instead")
        return task
    offered = subset_languages(task)
    for subset in subsets or ():
        if subset not in offered:
            raise ValueError(f"hf_subsets: task {name!r} has no {subset!r}{_nearest(subset, offered)}")
    for split in splits or ():
        if split not in task.metadata.eval_splits:
            raise ValueError(
                f"eval_splits: task {name!r} has no {split!r}, only {', '.join(task.metadata.eval_splits)}"
            )
    kept = [
        subset
        for subset, langs in offered.items()
        if (not subsets or subset in subsets) and (languages is None or carries(langs, languages))
    ]
    if not kept:
        raise ValueError(
            f"hf_subsets: none of {', '.join(subsets or ())} of task {name!r} carries the languages asked for"
        )
    task.hf_subsets = kept
    return task.filter_eval_splits(list(splits)) if splits else task


def _nearest(name: str, known: Iterable[str]) -> str:
    folded = {k.casefold(): k for k in known}
    near = difflib.get_close_matches(name.casefold(), list(folded), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(folded[n]) for n in near)}?" if near else "; nothing has a similar name"
