"""The parts that a report is made of, and the one HTML file they become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

TEMPLATE = "report.html"


@dataclass(frozen=True)
class Facts:
    """Names and values, as text."""

    rows: Sequence[tuple[str, str]]
    title: str = ""
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Grid:
    """A table of text; the first ``labels`` columns are no numbers, and every column after ``numbers`` is none."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    labels: int = 1
    numbers: int | None = None
    kind: ClassVar[str] = "grid"

    def sort_of(self, column: int, cell: str, row: str = "") -> str:
        """The style of a cell: words, a number, or a difference up or down."""
        if column < self.labels or (self.numbers is not None and column >= self.labels + self.numbers):
            return "words"
        if "difference" not in f"{self.head[column]} {row}" or not cell.strip("+-0."):
            return "number"
        return "number " + {"+": "up", "-": "down"}.get(cell[:1], "")


@dataclass(frozen=True)
class Bars:
    """Values from 0 to 100, each as a bar with its number; ``strong`` is the row that the report is about."""

    rows: Sequence[tuple[str, float]]
    title: str = ""
    strong: str = ""
    kind: ClassVar[str] = "bars"


@dataclass(frozen=True)
class Picture:
    """An SVG element, and what it shows."""

    svg: Markup
    caption: str
    kind: ClassVar[str] = "picture"


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Example:
    """A query whose positive moved: its rank, from 1, before and after, and the passage found first.

    ``first_right`` says whether that passage is the positive.
    """

    row_id: str
    query: str
    positive: str
    ranks: tuple[int, int]
    first: tuple[str, str]
    first_right: tuple[bool, bool]


@dataclass(frozen=True)
class Examples:
    """Queries that moved the same way, those that moved most first."""

    title: str
    items: Sequence[Example]
    better: bool
    names: tuple[str, str] = ("base", "trained")
    kind: ClassVar[str] = "examples"


Block = Facts | Grid | Bars | Picture | Text | Examples


@dataclass(frozen=True)
class Section:
    """A heading, a sentence under it, and what stands there."""

    title: str
    blocks: Sequence[Block]
    lead: str = ""

    @property
    def rows(self) -> list[list[Block]]:
        """The blocks from top to bottom; facts that follow one another stand side by side."""
        return [
            part for kind, group in groupby(self.blocks, key=lambda b: b.kind) for part in _beside(kind, list(group))
        ]


def _beside(kind: str, blocks: list[Block]) -> list[list[Block]]:
    return [blocks] if kind == Facts.kind else [[block] for block in blocks]


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        kind: what it is a report of.
        title: name of the run.
        subtitle: one sentence of what was done.
        tiles: the figures that matter most: name, value, and a remark.
        sections: the rest, in order; those without blocks are left out.
        missing: what the run lacks, each with its cure.
        footer: when and by what the report was made.
    """

    kind: str
    title: str
    subtitle: str
    tiles: Sequence[tuple[str, str, str]] = ()
    sections: Sequence[Section] = ()
    missing: Sequence[str] = ()
    footer: str = ""


def render(page: Page) -> str:
    """The page as one HTML document that loads nothing; whatever a run's texts hold, they are text in it."""
    environment = Environment(
        loader=PackageLoader("ullme", "apps"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(page=page)


def write(page: Page, place: Path) -> Path:
    """Write the page; a file that was there is replaced whole."""
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = place.with_name(f".{place.name}.unfinished")
    unfinished.write_text(render(page), encoding="utf-8", errors="replace")
    unfinished.replace(place)
    return place
