"""A run as one HTML file: what was trained on what, curves, scores, and the examples that moved most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import NamedTuple

from ullme import __version__
from ullme.apps import report_run
from ullme.apps.quickstart import PASSAGES_FILE, TEST_FILE
from ullme.apps.report_examples import TRAINED, Comparison, Question, compare, question_of
from ullme.apps.report_files import RunFiles, read_object, read_run
from ullme.apps.report_page import Page, Section, write
from ullme.apps.report_scores import base_scores, before_and_after
from ullme.apps.report_study import MANIFEST_FILE, Drawings, study_page
from ullme.apps.run_folder import RUN_FILE
from ullme.apps.search import read_passages
from ullme.data import load_pairs

REPORT_FILE = "report.html"
QUICKSTART_RUN = "run"
QUICKSTART_SCORES = "scores.json"
_MODELS = {"base_causal": "base, causal", "base_bidirectional": "base, bidirectional", "fine_tuned": TRAINED}
_MEASURES = {"ndcg@10": "nDCG@10", "recall@10": "recall@10", "recall@100": "recall@100", "mrr": "MRR"}


class Report(NamedTuple):
    """Where a report is, and what its run lacks."""

    place: Path
    missing: Sequence[str]


def report(
    run: Path,
    output: Path | None = None,
    *,
    examples: int = 5,
    pairs: Sequence[str] = (),
    score_base: bool = False,
    drawings: Drawings | None = None,
) -> Report:
    """Write the report of a training run, of a quickstart or of a study.

    Args:
        run: the folder that ``ullme train``, ``ullme quickstart`` or ``ullme reproduce`` wrote.
        output: the HTML file; default ``report.html`` in that folder.
        examples: queries to show that improved most, and as many that got worse; 0 loads no model.
        pairs: files of rows to take these from, in place of the run's held-out rows.
        score_base: score the LLM before training on the run's tasks as well, which takes as long as it did for the run.
        drawings: draws the pictures of a study.

    Raises:
        ValueError: it is no such folder, a file in it is damaged, or ``pairs`` cannot be read.
    """
    if (run / RUN_FILE).is_file():
        page = run_page(read_run(run), run, examples, pairs, score_base)
    elif (run / QUICKSTART_RUN / RUN_FILE).is_file():
        page = run_page(read_run(run / QUICKSTART_RUN), run, examples, pairs, score_base)
    elif (run / MANIFEST_FILE).is_file():
        page = study_page(run, drawings)
    else:
        raise ValueError(_no_run(run))
    page = replace(page, footer=f"ullme {__version__}, {date.today().isoformat()}")
    return Report(write(page, output or run / REPORT_FILE), page.missing)


def run_page(run: RunFiles, folder: Path, examples: int, pairs: Sequence[str], score_base: bool = False) -> Page:
    """The report of a training run; ``folder`` is its own, or that of the quickstart around it."""
    of_quickstart = folder != run.folder
    comparison, why_not = _comparison(run, folder, examples, pairs)
    scores = quickstart_scores(folder) if of_quickstart else {}
    base = base_scores(run.config) if score_base and run.scores else None
    lacking = [f"Scores: {QUICKSTART_SCORES} is not there; the same ullme quickstart command goes on."]
    return Page(
        kind="Quickstart" if of_quickstart else "Training run",
        title=folder.resolve().name,
        subtitle=report_run.subtitle(run),
        tiles=[*_gain(scores), *report_run.tiles(run)],
        sections=[*_quickstart_section(scores), *report_run.sections(run, comparison, examples, base)],
        missing=[*run.missing, *(lacking if of_quickstart and not scores else []), *why_not],
    )


def quickstart_scores(folder: Path) -> dict[str, dict[str, float]]:
    """The quickstart's scores by model and measure; empty if it has not ended.

    Raises:
        ValueError: the file is damaged.
    """
    place = folder / QUICKSTART_SCORES
    if not place.is_file():
        return {}
    kept = read_object(place, dict.fromkeys(_MODELS, ()), "remove it, and the same ullme quickstart command writes it")
    try:
        return {
            shown: {_MEASURES[key]: float(value) for key, value in kept[name].items() if key in _MEASURES}
            for name, shown in _MODELS.items()
        }
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{place}: is damaged ({error}); remove it and run ullme quickstart again") from error


def _quickstart_section(scores: dict[str, dict[str, float]]) -> list[Section]:
    if not scores:
        return []
    lead = "Queries about functions that training never saw, before and after, as the quickstart measured them."
    return [Section("Before and after", before_and_after(scores, TRAINED), lead)]


def _gain(scores: dict[str, dict[str, float]]) -> list[tuple[str, str, str]]:
    if not scores:
        return []
    before = max(values["nDCG@10"] for name, values in scores.items() if name != TRAINED)
    return [("nDCG@10", f"{100 * scores[TRAINED]['nDCG@10']:.1f}", f"from {100 * before:.1f} of the better base")]


def _comparison(
    run: RunFiles, folder: Path, examples: int, pairs: Sequence[str]
) -> tuple[Comparison | None, list[str]]:
    """Both models on the same rows; or why there is no such comparison, with its cure."""
    if run.model is None:
        return None, []  # what an unfinished run lacks is said already
    if not examples:
        return None, ["Examples: left out, as asked for; --examples 5 loads both models and shows them."]
    if pairs:
        return compare(run.config, run.model, question_of(load_pairs(list(pairs)))), []
    try:
        question = _question(run, folder)
        if question is not None:
            return compare(run.config, run.model, question), []
    except ValueError as error:  # rows or models that are no longer where they were
        return None, [f"Examples: {error}."]
    return None, ["Examples: the run holds no rows out (data.eval); give some with --pairs FILE."]


def _question(run: RunFiles, folder: Path) -> Question | None:
    """The rows to ask about: those the run held out, or the test queries of the quickstart."""
    data = folder / "data"
    if folder != run.folder and (data / TEST_FILE).is_file():
        return question_of(load_pairs(data / TEST_FILE), corpus=read_passages(data / PASSAGES_FILE))
    held_out = run.config.data.eval
    return question_of(load_pairs(held_out)) if held_out else None


def _no_run(run: Path) -> str:
    """Why a path is no run, and what to give instead."""
    inside = next((parent for parent in run.resolve().parents if (parent / RUN_FILE).is_file()), None)
    if inside is not None:
        return f"{run}: is inside a run and not one itself; give {str(inside)!r}"
    found = "holds no run" if run.is_dir() else "is a file" if run.exists() else "does not exist"
    return (
        f"{run}: {found}; give the folder that ullme train ({RUN_FILE} in it), ullme quickstart or ullme reproduce "
        f"({MANIFEST_FILE}) wrote"
    )
