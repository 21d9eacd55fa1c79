"""Objectives: the weighted terms of a training loss, each a pure function of named tensors.

``PRESETS`` holds the paper's combinations; :func:`objectives_from` turns a preset's name, or a list of mappings as a
run file states them, into objectives.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from ullme.objectives.base import Objective
from ullme.objectives.contrastive import Contrastive
from ullme.objectives.kl import KL
from ullme.objectives.preference import DPO
from ullme.objectives.sft import SFT
from ullme.types import Need

__all__ = [
    "DPO",
    "KL",
    "OBJECTIVES",
    "PRESETS",
    "SFT",
    "AnyObjective",
    "Contrastive",
    "Objective",
    "measures_of",
    "named",
    "needs_of",
    "objectives_from",
]

#: Every objective by its ``type``.
OBJECTIVES: dict[str, type[Objective]] = {"contrastive": Contrastive, "sft": SFT, "dpo": DPO, "kl": KL}

#: For a field of a pydantic model: the union of all objectives, told apart by ``type``.
AnyObjective = Annotated[Contrastive | SFT | DPO | KL, Field(discriminator="type")]

#: The paper's combinations with its weights (section 3: lambda_CL = 1, lambda_DPO = 0.5, lambda_KL = 1).
PRESETS: dict[str, tuple[Objective, ...]] = {
    "contrastive": (Contrastive(),),
    "grl": (Contrastive(weight=1.0), DPO(weight=0.5), KL(weight=1.0)),
    "grl_sft": (Contrastive(weight=1.0), SFT(weight=0.5), KL(weight=1.0)),
}

_ADAPTER: TypeAdapter[Objective] = TypeAdapter(AnyObjective)


def objectives_from(value: str | Objective | Mapping[str, Any] | Iterable[Any]) -> tuple[Objective, ...]:
    """Objectives from a preset's name, an objective, a mapping with ``type``, or a list of these.

    Raises:
        ValueError: a name or key is unknown (the message offers the nearest), or a value does not fit.
    """
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


def _from_mapping(values: Mapping[str, Any]) -> Objective:
    kind = _known("objectives: type", str(values.get("type", "")), OBJECTIVES)
    for key in values:
        _known(f"objectives: key of {kind}", key, OBJECTIVES[kind].model_fields)
    try:
        return _ADAPTER.validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"] if part != kind)
        where = f"objectives: {kind}.{field}" if field else f"objectives: {kind}"
        got = "" if isinstance(first["input"], dict) else f" (got {first['input']!r})"
        raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')}{got}") from None


def _known(what: str, name: str, known: Iterable[str]) -> str:
    """``name`` if it is known; else ValueError with the nearest right one."""
    known = list(known)
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"{what}: {name!r} is unknown; {hint}choose from {', '.join(known)}")
