"""The paper's Table 2 in one command: every row trained, scored, compared, drawn; killed, the same command goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from mteb.abstasks import AbsTask
from omegaconf import OmegaConf
from rich.console import Console

from ullme.apps.doc_pairs import DocPairs, doc_pairs
from ullme.apps.doc_sources import PACKAGES
from ullme.apps.quickstart import cpu_multiplies_bfloat16
from ullme.eval.local import with_local_data
from ullme.reproduce.budgets import Budget, budget_of
from ullme.reproduce.data import prepare, read_rows
from ullme.reproduce.jobs import Job, Study, finished, jobs, made_of, run, stage_configs
from ullme.reproduce.manifest import require_same_study, write_manifest
from ullme.reproduce.overlap import find_overlap, texts_of
from ullme.reproduce.plots import write_plots
from ullme.reproduce.results import RowResult, load_results
from ullme.reproduce.rows import ROWS, Row, chosen_rows
from ullme.reproduce.tables import Table, write_tables
from ullme.reproduce.tasks import chosen_tasks, write_documentation

MAX_WORDS = 40  # of a documentation passage: about 50 tokens


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
        tasks: ``name[:subset[:split]]`` of MTEB tasks, in place of the budget's.
        benchmark: an MTEB benchmark.
        mteb_folder: local data of the tasks.
        prompts: ``none``, ``task`` (mteb's instructions), or a YAML file task or type -> instruction.
        overrides: ``key=value`` of the budget, ``section.key=value`` of every run file.
        configs: folder of the rows' run files.
        results: folder of results; the study gets its own in it.
        work: folder of data, checkpoints and models; the study gets its own in it.
        packages: whose documentation stands in for data and tasks.
    """

    model: str = "smollm2-135m-instruct"
    budget: str = "smoke"
    name: str | None = None
    rows: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    data: Path | None = None
    tasks: tuple[str, ...] = ()
    benchmark: str | None = None
    mteb_folder: Path | None = None
    prompts: str = "none"
    overrides: tuple[str, ...] = ()
    configs: Path = Path("configs/reproduce")
    results: Path = Path("results")
    work: Path = Path("runs/reproduce")
    packages: Sequence[str] = PACKAGES


def reproduce(options: Options, console: Console | None = None) -> dict[str, Table]:
    """Train and score every row that is not done, and write what came out after each.

    ``results/<name>/`` gets ``manifest.json``, ``rows/`` (a file per row and seed), ``mteb/`` (results in mteb's
    format), ``tables/`` and ``plots/``; data, checkpoints and models stand in the work folder. Killed at any moment,
    the same call goes on: with the next row, within a row from its last checkpoint or after its last scored task.

    Returns:
        The tables by name.

    Raises:
        ValueError: an option, the data, a run file, or a folder that holds another study; before anything is trained.
    """
    console = console or Console()
    rows = chosen_rows(options.rows)
    study = make_study(options, console)
    require_same_study(study)
    todo = jobs(rows, study.budget)
    for job in todo:
        stage_configs(study, job)
    missing = [job for job in todo if finished(study, job) is None]
    console.print(f"{len(todo)} rows and seeds, {len(todo) - len(missing)} of them done; {_described(study)}.")
    for name in study.left_out:
        console.print(f"Not in the folder, so not scored: {name}", markup=False)
    results, tables, others = report(study, rows)
    for name in others:
        console.print(f"Of another model, data or run file, so in no table: rows/{name}", markup=False)
    for number, job in enumerate(missing, start=1):
        console.rule(f"{number} of {len(missing)}: {job.name}")
        result = run(study, job)
        seconds = ", ".join(f"{name} {value:.0f} s" for name, value in result.seconds.items())
        console.print(f"{result.label}: average {result.average:.2f} ({seconds})", markup=False)
        results, tables, _ = report(study, rows)
    write_plots(results, study.results / "plots")
    return tables


def report(study: Study, rows: Sequence[Row]) -> tuple[list[RowResult], dict[str, Table], list[str]]:
    """Write the manifest, and the tables of what is done: the rows asked for, and earlier ones of the same study.

    Returns:
        Results, tables, and the files of results that are of another study.
    """
    every = [*ROWS.values(), *(row for row in rows if row.name not in ROWS)]
    known = {made_of(study, job) for job in _all_jobs(study, every)}
    results, others = load_results(study.results, known)
    write_manifest(study, rows, results)
    return results, write_tables(results, study.results / "tables") if results else {}, others


def make_study(options: Options, console: Console) -> Study:
    """Budget, data and tasks of a study.

    Raises:
        ValueError: an option or the data.
    """
    budget = _budget(options)
    name = options.name or f"{Path(options.model).name}-{options.budget}"
    work = options.work / name
    benchmark = options.benchmark or (_hub_benchmark(options, budget))
    tasks, left_out = chosen_tasks(options.tasks, budget.tasks, benchmark, options.mteb_folder)
    documentation = _documentation(options, budget)
    folder = options.mteb_folder
    if not (options.tasks or benchmark or folder):
        folder = write_documentation(documentation(), work / "tasks")
    rows = read_rows(options.data, documentation)
    with console.status("Comparing training rows with the tests ..."):
        overlap = find_overlap(rows, (texts_of(_local(task, folder)) for task in tasks))
    return Study(
        model=options.model,
        budget=budget,
        data=prepare(rows, overlap, budget, work / "data"),
        tasks=tasks,
        left_out=left_out,
        task_folder=folder,
        prompts=_prompts(options.prompts),
        configs=options.configs,
        overrides=tuple(o for o in options.overrides if _of_run_file(o)),
        bf16=torch.cuda.is_bf16_supported() if torch.cuda.is_available() else cpu_multiplies_bfloat16(),
        results=options.results / name,
        work=work,
    )


def _all_jobs(study: Study, rows: Sequence[Row]) -> list[Job]:
    """Every job of which a result may lie in the folder."""
    found = (study.results / "rows").glob("*-seed*.json")
    seeds = {int(path.stem.rpartition("-seed")[2]) for path in found} | set(study.budget.seeds)
    listed = [Job(row, seed) for row in rows for seed in (sorted(seeds) if row.trained else [None])]
    return [job for job in listed if all((study.configs / stage).is_file() for stage in job.row.stages)]


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


def _prompts(given: str) -> Any:
    """A word, or a mapping from a YAML file.

    Raises:
        ValueError: the file is missing or holds no mapping.
    """
    path = Path(given)
    if path.suffix not in (".yaml", ".yml"):
        return given
    if not path.is_file():
        raise ValueError(f"prompts: there is no file {given!r}; check the path, or use none or task")
    content = OmegaConf.to_container(OmegaConf.load(path))
    if not isinstance(content, dict) or not all(isinstance(text, str) for text in content.values()):
        raise ValueError(f"prompts: {given!r} is no mapping task or type -> instruction; write one per line")
    return {str(name): text for name, text in content.items()}


def _described(study: Study) -> str:
    rows = sum(source["trained on"] for source in study.data.sources.values())
    taken = sum(source["in a test"] for source in study.data.sources.values())
    return f"{rows} training rows ({taken} that a test holds left out), {len(study.tasks)} tasks"
