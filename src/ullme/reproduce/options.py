"""What ``ullme reproduce`` was asked for, and the study that it comes to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from mteb.abstasks import AbsTask
from rich.console import Console

from ullme.apps.doc_pairs import DocPairs, doc_pairs
from ullme.apps.doc_sources import PACKAGES
from ullme.apps.quickstart import cpu_multiplies_bfloat16
from ullme.eval.local import with_local_data
from ullme.reproduce.budgets import Budget, budget_of
from ullme.reproduce.data import prepare, read_rows
from ullme.reproduce.mining import with_mined_negatives
from ullme.reproduce.overlap import find_overlap, texts_of
from ullme.reproduce.prompts import prompt_set
from ullme.reproduce.rows import shipped_configs
from ullme.reproduce.study import Study
from ullme.reproduce.tasks import chosen_tasks, write_documentation

MAX_WORDS = 40  # of a documentation passage: about 50 tokens
MINED = "mined-negatives"  # in the work folder, for all studies


@dataclass(frozen=True)
class Options:
    """What the command was asked for.

    Attributes:
        model: packaged model, hub name or folder.
        budget: name of a budget.
        name: of the study; its folder in ``results`` and ``work``.
        rows: names of rows, or run files outside the table; None takes all.
        seeds: seeds of every trained row, in place of the budget's.
        data: folder or file of pairs, or a YAML list of sources; None takes this machine's documentation.
        labelled: sources whose own negatives people chose; they stay beside the mined ones.
        tasks: ``name[:subset[:split]]`` of MTEB tasks, in place of the budget's.
        benchmark: an MTEB benchmark.
        mteb_folder: local data of the tasks.
        prompts: ``none``, ``task`` (mteb's instructions), ``wang`` (one per type of task, after Wang et al. 2023), or a
            YAML file task or type -> instruction.
        overrides: ``key=value`` of the budget, ``section.key=value`` of every run file.
        configs: folder of the rows' run files; default those that came with ullme.
        results: folder of results; the study gets its own in it.
        work: folder of data, checkpoints and models; the study gets its own in it.
        packages: whose documentation stands in for data and tasks.
        release: folder for the best model of the rows, with its scores and its card; None makes none.
    """

    model: str = "smollm2-135m-instruct"
    budget: str = "smoke"
    name: str | None = None
    rows: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    data: Path | None = None
    labelled: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    benchmark: str | None = None
    mteb_folder: Path | None = None
    prompts: str = "none"
    overrides: tuple[str, ...] = ()
    configs: Path = field(default_factory=shipped_configs)
    results: Path = Path("results")
    work: Path = Path("runs/reproduce")
    packages: Sequence[str] = PACKAGES
    release: Path | None = None


def make_study(options: Options, console: Console) -> Study:
    """Budget, data and tasks of a study.

    Raises:
        ValueError: an option or the data.
    """
    budget = _budget(options)
    name = options.name or f"{Path(options.model).name}-{options.budget}"
    work = options.work / name
    benchmark = options.benchmark or _hub_benchmark(options, budget)
    tasks, left_out = chosen_tasks(options.tasks, budget.tasks, benchmark, options.mteb_folder)
    documentation = _documentation(options, budget)
    folder = options.mteb_folder
    if not (options.tasks or benchmark or folder):
        folder = write_documentation(documentation(), work / "tasks")
    rows = read_rows(options.data, documentation)
    with console.status("Comparing training rows with the tests ..."):
        overlap = find_overlap(rows, (texts_of(_local(task, folder)) for task in tasks))
    study = Study(
        model=options.model,
        budget=budget,
        data=prepare(rows, overlap, budget, work / "data"),
        tasks=tasks,
        left_out=left_out,
        task_folder=folder,
        prompts=prompt_set(options.prompts),
        configs=options.configs,
        overrides=tuple(o for o in options.overrides if _of_run_file(o)),
        bf16=torch.cuda.is_bf16_supported() if torch.cuda.is_available() else cpu_multiplies_bfloat16(),
        results=options.results / name,
        work=work,
    )
    with console.status("Mining hard negatives ..."):
        return with_mined_negatives(study, options.work / MINED, options.labelled)


def _budget(options: Options) -> Budget:
    own = [override for override in options.overrides if not _of_run_file(override)]
    budget = budget_of(options.budget, own)
    return budget if options.seeds is None else budget.model_copy(update={"seeds": options.seeds, "other_seeds": None})


def _of_run_file(override: str) -> bool:
    key = override.partition("=")[0]
    return "." in key or key == "objectives"


def _hub_benchmark(options: Options, budget: Budget) -> str | None:
    """The budget's benchmark where neither tasks nor a folder is named."""
    return None if options.tasks or options.mteb_folder else budget.benchmark


def _documentation(options: Options, budget: Budget) -> Callable[[], DocPairs]:
    """This machine's documentation, read when it is first needed."""

    @cache
    def read() -> DocPairs:
        return doc_pairs(
            options.packages,
            max_train=budget.rows_per_source,
            max_queries=budget.queries,
            max_corpus=budget.passages,
            negatives=budget.negatives,
            passage_words=MAX_WORDS,
        )

    return read


def _local(task: AbsTask, folder: Path | None) -> AbsTask:
    return with_local_data(task, folder.resolve()) if folder else task
