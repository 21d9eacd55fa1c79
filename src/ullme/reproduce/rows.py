"""The rows of the paper's Table 2 and variants of them: what each is called, and what run files or settings make it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
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
        changes: ``section.key=value`` of its last run file.
    """

    name: str
    label: str
    stages: tuple[str, ...] = ()
    untrained: Mapping[str, Any] | None = None
    changes: tuple[str, ...] = ()

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

#: Rows beside the paper's that take a run file of their own, run when they are named.
BESIDE: dict[str, Row] = {"grl_echo": Row("grl_echo", "Echo + GRL", ("grl_echo.yaml",))}

#: Name -> what it is, the row that it varies, and the keys that are set in its run file. GRL's objectives are
#: contrastive (0), DPO (1) and KL (2).
_VARIANTS: dict[str, tuple[str, str, str]] = {
    "kl_reversed": ("GRL, KL(P_gen || P_rt)", "grl", "objectives.2.direction=gen||rt"),
    "kl_gen_fixed": ("GRL, P_gen taken as given", "grl", "objectives.2.stop_gradient=gen"),
    "kl_rt_fixed": ("GRL, P_rt taken as given", "grl", "objectives.2.stop_gradient=rt"),
    "kl_temperature": ("GRL, s_rt / 0.05 in the KL", "grl", "objectives.2.temperature_rt=0.05"),
    "grl_echo_temperature": ("Echo + GRL, s_rt / 0.05 in the KL", "grl_echo", "objectives.2.temperature_rt=0.05"),
    "kl_light": ("GRL, KL x 0.1", "grl", "objectives.2.weight=0.1"),
    "no_kl": ("GRL without KL", "grl", "objectives.2.weight=0"),
    "no_dpo": ("GRL without DPO", "grl", "objectives.1.weight=0"),
    "beta_low": ("GRL, beta 0.01", "grl", "objectives.1.beta=0.01"),
    "beta_high": ("GRL, beta 0.5", "grl", "objectives.1.beta=0.5"),
    "template": ("GRL, bare query before a passage", "grl", 'model.generation_template="{query}\\n"'),
    "grl_temperature": ("GRL, contrastive / 0.02", "grl", "objectives.0.temperature=0.02"),
    "grl_negatives": ("GRL, 1 negative", "grl", "data.negatives_per_query=1"),
    "grl_rate_low": ("GRL, learning rate 1e-4", "grl", "trainer.learning_rate=1e-4"),
    "grl_steps": ("GRL, 50 steps", "grl", "trainer.max_steps=50"),
    "cl_temperature": ("Bi + CL, contrastive / 0.02", "bi_cl", "objectives.0.temperature=0.02"),
    "cl_negatives": ("Bi + CL, 1 negative", "bi_cl", "data.negatives_per_query=1"),
    "cl_rate_low": ("Bi + CL, learning rate 1e-4", "bi_cl", "trainer.learning_rate=1e-4"),
    "cl_steps": ("Bi + CL, 50 steps", "bi_cl", "trainer.max_steps=50"),
}

ABLATIONS: dict[str, Row] = {
    name: replace((ROWS | BESIDE)[of], name=name, label=label, changes=(change,))
    for name, (label, of, change) in _VARIANTS.items()
}

#: Every row that has a name.
NAMED = ROWS | BESIDE | ABLATIONS

#: The ordering that the paper claims, lowest first; "base" is the better of the two attention modes.
CLAIMED_ORDER = ("base", "causal_cl", "bi_cl", "bi_cl_sft", "grl_sft", "grl")


def chosen_rows(names: Iterable[str] | None = None) -> list[Row]:
    """The rows asked for, in the order of the tables; variants and run files outside the tables come after these.

    Raises:
        ValueError: an unknown row, two rows of one name, or a run file that does not exist.
    """
    asked = list(dict.fromkeys(names or ROWS))
    own = [_own_row(Path(name)) for name in asked if name.endswith((".yaml", ".yml"))]
    for name in asked:
        if not name.endswith((".yaml", ".yml")):
            require_choice("rows", name, NAMED)
    rows = [row for row in NAMED.values() if row.name in asked] + own
    names_of = [row.name for row in rows]
    twice = [name for name in names_of if names_of.count(name) > 1]
    if twice or {row.name for row in own} & NAMED.keys():
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
