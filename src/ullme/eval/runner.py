"""Evaluation on MTEB: one dataset (paper, Listing 3) or many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mteb
from datasets.exceptions import DatasetsError
from mteb.abstasks import AbsTask
from mteb.cache import ResultCache
from mteb.results import TaskResult
from mteb.types import EncodeKwargs
from tqdm.auto import tqdm

from ullme.eval.adapter import Evaluated, as_encoder
from ullme.eval.local import cache_of, data_folder, local_revision, with_local_data
from ullme.eval.models import load_model
from ullme.eval.results import EvaluationResults, Score, language_scores
from ullme.eval.tasks import select_tasks
from ullme.templates import INSTRUCTION_TEMPLATE

#: What datasets and the hub's client raise for data that are absent, unreachable or damaged.
_UNREADABLE = (ConnectionError, FileNotFoundError, DatasetsError)


def eval_mteb_dataset(
    model: Any, dataset_name: str, langs: Sequence[str] = ("eng",), **options: Any
) -> dict[str, float]:
    """The main score x 100 of a model on one MTEB dataset, by language (paper, Listing 3).

    Args:
        model: see :func:`evaluate`.
        dataset_name: mteb's name of the task, such as ``MSMARCO``.
        langs: ISO 639-3 codes.
        options: those of :func:`evaluate`.

    Returns:
        For instance ``{"eng": 35.8}``.

    Raises:
        ValueError: unknown dataset, or a language that it does not have (the message has the nearest names).
    """
    results = evaluate(model, dataset_name, languages=langs, **options)
    return {score.language: score.score for score in results.scores}


def evaluate(
    model: Any,
    tasks: str | AbsTask | Iterable[str | AbsTask] | None = None,
    benchmarks: str | Iterable[str] | None = None,
    *,
    task_types: str | Iterable[str] | None = None,
    languages: Sequence[str] | None = None,
    hf_subsets: Sequence[str] | None = None,
    eval_splits: Sequence[str] | None = None,
    prompts: str | Mapping[str, str] | None = None,
    instruction_template: str = INSTRUCTION_TEMPLATE,
    data_dir: str | Path | None = None,
    results_dir: str | Path | None = None,
    overwrite: bool = False,
    batch_size: int = 32,
    show_progress_bar: bool = True,
) -> EvaluationResults:
    """Scores of a model on tasks of MTEB, kept in mteb's own format and reused.

    Results stand under the model's name, a revision that hashes its weights and settings, and the arguments of the
    experiment (prompts, local data); the same model on the same data is not run again.

    Args:
        model: a ULLME or WrappedULLME, a SentenceTransformer, an mteb model, an object with ``encode(list of str)``,
            or the name or folder of a model (:func:`ullme.eval.models.load_model`).
        tasks: names of tasks, mteb task objects, or data of one's own (``ullme.eval.own``): a BEIR folder, pairs.
        benchmarks: names of benchmarks, such as ``MTEB(eng, v1)``, the tasks of the paper, or folders of own data.
        task_types: every text task of these types, such as ``STS``.
        languages: ISO 639-3 codes; None takes all that the tasks have.
        hf_subsets: subsets of the tasks, where a language has several.
        eval_splits: splits to score in place of the tasks' own.
        prompts: ``"task"`` (mteb's instructions), ``"none"``, ``"own"`` (the model's), or instructions by task name or
            type; None takes the model's own prompts if it has any, else mteb's instructions for a ULLME.
        instruction_template: how an instruction stands before a text.
        data_dir: folder of local datasets, ``<org>/<name>`` as on the hub; default ``$ULLME_MTEB_DATA``, else the hub.
        results_dir: where results are kept; default mteb's, ``$MTEB_CACHE`` or ``~/.cache/mteb``.
        overwrite: run again what is kept.
        batch_size: passed to ``encode``.
        show_progress_bar: one bar over tasks, one per encoded side.

    Raises:
        ValueError: an unknown task, benchmark, language, split, model or prompt, or data that cannot be read.
    """
    chosen = select_tasks(
        tasks,
        benchmarks,
        task_types=task_types,
        languages=languages,
        hf_subsets=hf_subsets,
        eval_splits=eval_splits,
    )
    root = data_folder(data_dir)
    chosen = [with_local_data(task, root) for task in chosen] if root else chosen
    evaluated = as_encoder(load_model(model) if isinstance(model, str | Path) else model, prompts, instruction_template)
    evaluated.require_prompts(chosen)
    cache = ResultCache(results_dir) if evaluated.keep else None
    encode_kwargs = EncodeKwargs(batch_size=batch_size, show_progress_bar=show_progress_bar)
    scores: list[Score] = []
    kept: list[TaskResult] = []
    with tqdm(chosen, desc="Tasks", disable=not show_progress_bar or len(chosen) == 1) as bar:
        for task in bar:
            bar.set_postfix_str(task.metadata.name)
            result = _run(evaluated, task, cache, encode_kwargs, overwrite)
            kept.append(result)
            scores += language_scores(task, result, languages)
    meta = evaluated.encoder.mteb_model_meta
    folder = cache.cache_path / "results" / meta.model_name_as_path() / meta.revision if cache else None
    return EvaluationResults(meta.name, meta.revision, tuple(scores), tuple(kept), folder)


def _run(
    evaluated: Evaluated, task: AbsTask, cache: ResultCache | None, encode_kwargs: EncodeKwargs, overwrite: bool
) -> TaskResult:
    """The result of one task, from the cache if it is there."""
    local = local_revision(task)
    encoder = evaluated.with_experiment({"data": local} if local else {})
    metadata = task.metadata
    try:
        with cache_of(local):
            found = mteb.evaluate(
                encoder,
                task,
                cache=cache,
                overwrite_strategy="always" if overwrite else "only-missing",
                encode_kwargs=encode_kwargs,
                show_progress_bar=False,
                co2_tracker=False,
            )
    except (*_UNREADABLE, KeyError) as error:
        if isinstance(error, KeyError) and error.args[0] not in task.eval_splits:
            raise  # a fault of ours or mteb's, not a split that the data lack
        path = metadata.dataset["path"]
        reason = f"{type(error).__name__}: {(str(error).strip() or 'no reason').splitlines()[0]}"
        raise ValueError(
            f"task {metadata.name!r}: its data {path!r} cannot be read ({reason}); connect to the hub, or give "
            "data_dir (or ULLME_MTEB_DATA) with a complete copy"
        ) from error
    finally:
        # mteb's unload_data() forgets the metadata of a copy, and with it the place of local data.
        task.metadata = metadata
    return found.task_results[0]
