"""Objectives: the weighted terms of a training loss, each a pure function of named tensors.

``OBJECTIVES`` names each, ``PRESETS`` holds the paper's combinations; :func:`objectives_from` turns a preset's name, or
a list of mappings as a run file states them, into objectives. A mapping's ``type`` is a name of the table, or the
import path ``module:Class`` of a class outside ullme.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, ValidationError
from pydantic_core import PydanticCustomError

from ullme.extension import import_path, imported_class, is_import_path
from ullme.objectives.base import Objective
from ullme.objectives.contrastive import Contrastive
from ullme.objectives.distillation import Distillation, GenerationDistillation, MarginMSE
from ullme.objectives.kl import KL
from ullme.objectives.kto import KTO
from ullme.objectives.mntp import MNTP
from ullme.objectives.preference import DPO, IPO, Hinge
from ullme.objectives.reference_free import CPO, ORPO, SimPO
from ullme.objectives.sft import SFT
from ullme.types import Need

__all__ = [
    "CPO",
    "DPO",
    "IPO",
    "KL",
    "KTO",
    "MNTP",
    "OBJECTIVES",
    "ORPO",
    "PRESETS",
    "SFT",
    "AnyObjective",
    "Contrastive",
    "Distillation",
    "GenerationDistillation",
    "Hinge",
    "MarginMSE",
    "Objective",
    "SimPO",
    "as_mapping",
    "measures_of",
    "named",
    "needs_of",
    "objective_class",
    "objectives_from",
]

#: Every objective by its ``type``.
OBJECTIVES: dict[str, type[Objective]] = {
    "contrastive": Contrastive,
    "sft": SFT,
    "dpo": DPO,
    "ipo": IPO,
    "hinge": Hinge,
    "kto": KTO,
    "cpo": CPO,
    "simpo": SimPO,
    "orpo": ORPO,
    "kl": KL,
    "mntp": MNTP,
    "distillation": Distillation,
    "generation_distillation": GenerationDistillation,
    "margin_mse": MarginMSE,
}

#: The paper's combinations with its weights (section 3: lambda_CL = 1, lambda_DPO = 0.5, lambda_KL = 1), and the stages
#: of LLM2Vec: masked next-token prediction, and unsupervised SimCSE, which is contrast between two dropout masks of the
#: same text (Gao et al. 2021, section 3) on rows of one text alone.
PRESETS: dict[str, tuple[Objective, ...]] = {
    "contrastive": (Contrastive(),),
    "grl": (Contrastive(weight=1.0), DPO(weight=0.5), KL(weight=1.0)),
    "grl_sft": (Contrastive(weight=1.0), SFT(weight=0.5), KL(weight=1.0)),
    "grl_kto": (Contrastive(weight=1.0), KTO(weight=0.5), KL(weight=1.0)),
    "grl_cpo": (Contrastive(weight=1.0), CPO(weight=0.5), KL(weight=1.0)),
    "mntp": (MNTP(),),
    "simcse": (Contrastive(temperature=0.05, hard_negatives=False),),
}


def objectives_from(value: str | Objective | Mapping[str, Any] | Iterable[Any]) -> tuple[Objective, ...]:
    """Objectives from a preset's name, a class's import path, an objective, a mapping with ``type``, or a list of them.

    Raises:
        ValueError: a name or key is unknown (the message offers the nearest), or a value does not fit.
    """
    if isinstance(value, str) and is_import_path(value):
        return (_from_mapping({"type": value}),)
    if isinstance(value, str):
        return PRESETS[_known("objectives: preset", value, PRESETS)]
    if isinstance(value, Objective):
        return (value,)
    if isinstance(value, Mapping):
        return (_from_mapping(value),)
    found = tuple(objective for item in value for objective in objectives_from(item))
    if not found:
        raise ValueError(f"objectives: none given; name a preset ({', '.join(PRESETS)}) or list at least one")
    return found


def named(objectives: Iterable[Objective]) -> dict[str, Objective]:
    """Objectives under the names that logs use: their types, numbered from the second of a kind."""
    seen: Counter[str] = Counter()
    names: dict[str, Objective] = {}
    for objective in objectives:
        seen[objective.type] += 1
        number = seen[objective.type]
        names[objective.type if number == 1 else f"{objective.type}_{number}"] = objective
    return names


def needs_of(objectives: Iterable[Objective]) -> frozenset[Need]:
    """What a model must compute for the losses of these objectives."""
    return frozenset(need for objective in objectives for need in objective.needs)


def measures_of(objectives: Iterable[Objective]) -> frozenset[Need]:
    """What a model must compute beforehand, without gradient, for the sums over the batch that enter these losses."""
    return frozenset(need for objective in objectives for need in objective.measures)


def objective_class(name: str) -> type[Objective]:
    """The objective that the ``type`` of a run file names: by the table, or by import path.

    Raises:
        ValueError: there is none of this name, or what the path names is no objective.
    """
    if not is_import_path(name):
        return OBJECTIVES[_known("type", name, OBJECTIVES)]
    found = imported_class(name, "type", Objective)
    if found.loss_B is Objective.loss_B:
        raise ValueError(f"type: {name!r} computes no loss; give it a method loss_B(self, inputs)")
    return found


def as_mapping(objective: Objective) -> dict[str, Any]:
    """An objective as a run file states it, every option spelt out; :func:`objectives_from` reads it back."""
    kind = type(objective)
    name = objective.type if OBJECTIVES.get(objective.type) is kind else import_path(kind)
    return {**objective.model_dump(mode="json"), "type": name}


def _options(values: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping of a run file without its ``type``, which has said the class."""
    return {name: value for name, value in values.items() if name != "type"}


def _from_mapping(values: Mapping[str, Any]) -> Objective:
    try:
        kind = objective_class(str(values.get("type", "")))
    except ValueError as error:
        raise ValueError(f"objectives: {error}") from None
    name = str(values["type"]).rpartition(":")[2]
    for key in values:
        _known(f"objectives: key of {name}", key, kind.model_fields)
    try:
        return kind.model_validate(_options(values))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["objectives: " + name, *map(str, first["loc"])])
        got = "" if isinstance(first["input"], dict) else f" (got {first['input']!r})"
        raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')}{got}") from None


def _validated(value: Any) -> Any:
    """For pydantic: a mapping becomes an objective of the class that its ``type`` names."""
    if not isinstance(value, Mapping):
        return value
    if "type" not in value:
        said = f"{dict(value)!r} has no type; add for instance type: contrastive"
        raise PydanticCustomError("objective_type", "{said}", {"said": said})
    try:
        kind = objective_class(str(value["type"]))
    except ValueError as error:
        raise PydanticCustomError("objective_type", "{said}", {"said": str(error)}) from None
    for key in value:
        if key not in kind.model_fields:
            raise ValueError(f"{key}: unknown key; {_choice(key, kind.model_fields)}")
    return kind.model_validate(_options(value))


#: For a field of a pydantic model: any objective, read from and written as the mapping of a run file.
AnyObjective = Annotated[Objective, BeforeValidator(_validated), PlainSerializer(as_mapping)]


def _known(what: str, name: str, known: Iterable[str]) -> str:
    """``name`` if it is known; else ValueError with the nearest right one."""
    if name in known:
        return name
    raise ValueError(f"{what}: {name!r} is unknown; {_choice(name, known)}")


def _choice(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}choose from {', '.join(known)}"
