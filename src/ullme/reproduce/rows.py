"""The rows of the paper's Table 2: what each is called, and the run files or settings that make it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ullme.models.settings import require_choice


@dataclass(frozen=True)
class Row:
    """A row of the tables.

    Attributes:
        name: short name, for files and options.
        label: what stands in the tables.
        stages: run files that are carried out one after another, each on the merged adapter of the one before.
        untrained: settings of the LLM that is scored as it is; None where something is trained.
    """

    name: str
    label: str
    stages: tuple[str, ...] = ()
    untrained: Mapping[str, Any] | None = None

    @property
    def trained(self) -> bool:
        """Whether the row has seeds."""
        return bool(self.stages)


FLOOR = "floor"
BASES = ("base_causal", "base_bidirectional")
#: The row that every other one is compared with.
COMPARED_WITH = "bi_cl"

ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        Row(FLOOR, "Bag of words"),
        Row("base_causal", "Base, causal", untrained={"attention": "causal"}),
        Row("base_bidirectional", "Base, bidirectional", untrained={"attention": "bidirectional"}),
        Row("base_echo", "Echo, untrained", untrained={"attention": "causal", "echo": True}),
        Row("echo", "Echo", ("echo.yaml",)),
        Row("llm2vec", "LLM2Vec", ("llm2vec_mntp.yaml", "llm2vec.yaml")),
        Row("causal_cl", "Causal + CL", ("causal_cl.yaml",)),
        Row("bi_cl", "Bi + CL", ("bi_cl.yaml",)),
        Row("bi_cl_sft", "Bi + CL + SFT", ("bi_cl_sft.yaml",)),
        Row("grl_sft", "GRL_SFT", ("grl_sft.yaml",)),
        Row("grl", "GRL", ("grl.yaml",)),
    )
}

#: The ordering that the paper claims, lowest first; "base" is the better of the two attention modes.
CLAIMED_ORDER = ("base", "causal_cl", "bi_cl", "bi_cl_sft", "grl_sft", "grl")


def chosen_rows(names: Iterable[str] | None = None) -> list[Row]:
    """The rows asked for, in the order of the tables; a run file outside them is a row of its own, after these.

    Raises:
        ValueError: an unknown row, two rows of one name, or a run file that does not exist.
    """
    asked = list(dict.fromkeys(names or ROWS))
    own = [_own_row(Path(name)) for name in asked if name.endswith((".yaml", ".yml"))]
    known = [name for name in asked if not name.endswith((".yaml", ".yml"))]
    for name in known:
        require_choice("rows", name, ROWS)
    rows = [row for row in ROWS.values() if row.name in known] + own
    names_of = [row.name for row in rows]
    twice = [name for name in names_of if names_of.count(name) > 1]
    if twice or {row.name for row in own} & set(ROWS):
        raise ValueError(f"rows: two rows are called {(twice or [own[0].name])[0]!r}; rename the run file")
    return rows


def shipped_configs() -> Path:
    """The folder of the rows' run files: in an installed package its own, in a checkout ``configs/reproduce``."""
    packaged = Path(__file__).parent / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "configs" / "reproduce"


def _own_row(path: Path) -> Row:
    if not path.is_file():
        raise ValueError(f"rows: there is no run file {str(path)!r}; check the path, or choose from {', '.join(ROWS)}")
    return Row(path.stem, path.stem, (str(path.resolve()),))
