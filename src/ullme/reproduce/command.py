"""The paper's Table 2 in one command: every row trained, scored, compared, drawn; killed, the same command goes on."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from ullme.reproduce.jobs import finished, run, with_current_data
from ullme.reproduce.manifest import require_same_study, write_manifest
from ullme.reproduce.options import Options, make_study
from ullme.reproduce.plots import write_plots
from ullme.reproduce.release import release
from ullme.reproduce.results import RowResult, file_of, load_result, load_results
from ullme.reproduce.rows import NAMED, Row, chosen_rows
from ullme.reproduce.study import Job, Study, jobs, made_of, stage_configs
from ullme.reproduce.tables import Table, write_tables


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
        console.print(f"Of another model, data, run file or test, so in no table: rows/{name}", markup=False)
    for number, job in enumerate(missing, start=1):
        console.rule(f"{number} of {len(missing)}: {job.name}")
        result = run(study, job)
        seconds = ", ".join(f"{name} {value:.0f} s" for name, value in result.seconds.items())
        console.print(f"{result.label}: average {result.average:.2f} ({seconds})", markup=False)
        results, tables, _ = report(study, rows)
    write_plots(results, study.results / "plots")
    if options.release is not None:
        release(study, rows, results, options, options.release, console)
    return tables


def report(study: Study, rows: Sequence[Row]) -> tuple[list[RowResult], dict[str, Table], list[str]]:
    """Write the manifest, and the tables of what is done: the rows asked for, and earlier ones of the same study.

    Returns:
        Results, tables, and the files of results that are of another study, or have no score on the data of its tasks.
    """
    known = {made_of(study, job) for job in _all_jobs(study, [*NAMED.values(), *_own_rows(study, rows)])}
    found, others = load_results(study.results, known)
    current = [with_current_data(study, result) for result in found]
    results = [result for result in current if result.scores]
    others += [file_of(study.results, r.row, r.seed).name for r in current if not r.scores]
    write_manifest(study, rows, results)
    return results, write_tables(results, study.results / "tables") if results else {}, others


def _own_rows(study: Study, rows: Sequence[Row]) -> list[Row]:
    """The rows outside the tables: those asked for, and earlier ones whose run file can still be carried out."""
    own = {row.name: row for row in rows if row.name not in NAMED}
    for path in sorted((study.results / "rows").glob("*.json")):
        kept = load_result(path)
        row = Row(kept.row, kept.label, (kept.run_file,))
        if kept.run_file and row.name not in own.keys() | NAMED.keys() and _can_be_made(study, Job(row, kept.seed)):
            own[row.name] = row
    return list(own.values())


def _can_be_made(study: Study, job: Job) -> bool:
    """Whether a row's run files are there and valid."""
    try:
        return bool(stage_configs(study, job))
    except ValueError:
        return False


def _all_jobs(study: Study, rows: Sequence[Row]) -> list[Job]:
    """Every job of which a result may lie in the folder."""
    found = (study.results / "rows").glob("*-seed*.json")
    seeds = {int(path.stem.rpartition("-seed")[2]) for path in found} | set(study.budget.seeds)
    listed = [Job(row, seed) for row in rows for seed in (sorted(seeds) if row.trained else [None])]
    return [job for job in listed if all((study.configs / stage).is_file() for stage in job.row.stages)]


def _described(study: Study) -> str:
    rows = sum(source["trained on"] for source in study.data.sources.values())
    taken = sum(source["in a test"] for source in study.data.sources.values())
    return f"{rows} training rows ({taken} that a test holds left out), {len(study.tasks)} tasks"
