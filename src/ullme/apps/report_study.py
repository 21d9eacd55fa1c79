"""What a report says of a study of ``ullme reproduce``: its tables, pictures, data and what it was made with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ullme.apps.report_files import read_csv, read_object
from ullme.apps.report_page import Bars, Block, Facts, Grid, Page, Picture, Section, Text
from ullme.apps.report_pictures import inline_svg
from ullme.apps.report_run import duration, machine, versions
from ullme.apps.report_scores import published

MANIFEST_FILE = "manifest.json"
#: A study's folder to its pictures: what each shows, and what draws it into a file.
Drawings = Callable[[Path], Iterable[tuple[str, Callable[[Path], Any]]]]

_KEYS = {
    **{
        key: ()
        for key in ("study", "commit", "versions", "hardware", "data", "overlap", "seeds", "tasks_not_in_the_folder")
    },
    "tasks": ("name", "type"),
    "done": ("row", "seed", "average", "seconds"),
}
_AGAIN = "the same ullme reproduce command writes it again"
_TABLES = {
    "table2": "By type of task (the paper's Table 2)",
    "table3": "By task (the paper's Table 3)",
    "ordering": "The ordering that the paper claims, pair by pair",
    "against_bi_cl": "Every row against Bi + CL",
    "against_better_base": "Every row against the better base",
    "against_bag_of_words": "Every row against a bag of words",
}


def study_page(folder: Path, drawings: Drawings | None) -> Page:
    """The report of a study's results folder.

    Raises:
        ValueError: a file of it is damaged.
    """
    manifest = read_object(folder / MANIFEST_FILE, _KEYS, _AGAIN)
    found = {name: folder / "tables" / f"{name}.csv" for name in _TABLES}
    tables = {name: read_csv(path, _AGAIN) for name, path in found.items() if path.is_file()}
    study = manifest["study"]
    steps = f"{study.get('steps')} steps of batch {study.get('batch_size')}"
    todo = [f"{row}, seed {seed}" for row, seed in _undone(manifest)]
    missing = [f"Not trained yet: {'; '.join(todo)}. The same ullme reproduce command goes on."] if todo else []
    missing += ["No row is done, so there are no scores; " + _AGAIN.replace("writes it again", "goes on") + "."] * (
        not tables
    )
    missing += [f"Not scored, as the folder of tasks lacks it: {name}." for name in manifest["tasks_not_in_the_folder"]]
    return Page(
        kind="Study of the paper's Table 2",
        title=folder.resolve().name,
        subtitle=f"{study.get('model')}, {steps}, the same data for every row",
        tiles=_tiles(manifest),
        sections=[
            Section("Scores", _scores(tables, manifest), "Main score x 100; ± is the standard deviation over seeds."),
            Section("Comparisons", [_grid(name, tables[name]) for name in _TABLES if name in tables][2:]),
            Section("Pictures", _pictures(folder, drawings)),
            Section("What was trained on what", [_settings(study), _data(manifest["data"]), *_overlap(manifest)]),
            Section("Made with", _made_with(manifest)),
        ],
        missing=missing,
    )


def _undone(manifest: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Rows and seeds that the study names and has no result of."""
    done = {(entry["row"], entry["seed"]) for entry in manifest["done"]}
    return [(row, seed) for row, seeds in manifest["seeds"].items() for seed in seeds if (row, seed) not in done]


def _tiles(manifest: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    done = manifest["done"]
    kinds = {task["type"] for task in manifest["tasks"]}
    found = [
        ("rows done", str(len({entry["row"] for entry in done})), f"{len(done)} results, one per seed"),
        ("tasks", str(len(manifest["tasks"])), f"of {len(kinds)} types"),
    ]
    if done:
        best = max(done, key=lambda entry: entry["average"])
        found.append(("best average", f"{best['average']:.2f}", _named(best)))
    return found


def _named(entry: Mapping[str, Any]) -> str:
    return entry["row"] if entry["seed"] is None else f"{entry['row']}, seed {entry['seed']}"


def _scores(tables: Mapping[str, list[list[str]]], manifest: Mapping[str, Any]) -> list[Block]:
    """Averages as bars, the paper's two tables, and its figures where they are known."""
    if not tables:
        return []
    averages = [(_named(entry), float(entry["average"])) for entry in manifest["done"]]
    own = [_grid(name, tables[name]) for name in ("table2", "table3") if name in tables]
    return [Bars(averages, "Average over the tasks"), *own, *published([t["name"] for t in manifest["tasks"]], ["eng"])]


def _grid(name: str, table: list[list[str]]) -> Grid:
    head, *rows = table
    words = name not in ("table2", "table3")
    return Grid(head, rows, _TABLES[name], labels=1 if name == "table2" else 2, numbers=4 if words else None)


def _pictures(folder: Path, drawings: Drawings | None) -> list[Block]:
    drawn = (
        [(caption, inline_svg(draw, f"p{i}")) for i, (caption, draw) in enumerate(drawings(folder))] if drawings else []
    )
    return [Picture(svg, caption) for caption, svg in drawn if svg is not None]


def _settings(study: Mapping[str, Any]) -> Facts:
    own = {key: value for key, value in study.items() if not key.startswith("data.")}
    return Facts([(key.replace("_", " "), _shown(value)) for key, value in own.items()], "Settings of every row")


def _data(sources: Mapping[str, Mapping[str, Any]]) -> Grid:
    columns = ("rows", "in a test", "held out", "trained on")
    rows = [[name, *(f"{s[c]:,}" if c in s else "–" for c in columns)] for name, s in sources.items()]
    return Grid(["Source", *columns], rows, "Data")


def _overlap(manifest: Mapping[str, Any]) -> list[Block]:
    """What training and tests have in common, by task and source, and what was done about it."""
    overlap = manifest["overlap"]
    found = [
        [task, source, ", ".join(f"{count} {what}" for what, count in counts.items())]
        for task, by_source in overlap.get("found", {}).items()
        for source, counts in by_source.items()
    ]
    if not found:
        return [Text("No training row is, by its words, in a test.")]
    grid = Grid(["Task", "Source", "found"], found, "Training rows that a test holds", labels=3)
    return [grid, Text(str(overlap.get("rule", "")).capitalize() + ".")]


def _made_with(manifest: Mapping[str, Any]) -> list[Block]:
    rows = [
        [
            _named(e),
            *(duration(e["seconds"][part]) if part in e["seconds"] else "–" for part in ("training", "evaluation")),
        ]
        for e in manifest["done"]
    ]
    return [
        Facts(machine(manifest["hardware"]), "Machine"),
        Facts(versions(manifest["versions"], manifest["commit"]), "Versions"),
        Grid(["Row", "training", "evaluation"], rows, "Time on the clock"),
    ]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
