"""From a YAML file and dotted overrides to a checked run, or to one line that says what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from yaml import YAMLError

from ullme.config.schema import RunConfig, preset_expanded
from ullme.data.wording import hint, nearest, shortened

#: Keys that people look for and that ullme refuses, with the reason and the cure.
REFUSED = {
    "gradient_accumulation_steps": "chunks already bound memory: put the whole batch into "
    "per_device_train_batch_size and lower chunk_tokens",
    "per_gpu_train_batch_size": "its name is per_device_train_batch_size",
    "warmup_ratio": "give warmup_steps, which below 1 is a share of all steps",
}


def read_run_file(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run that a YAML file describes, changed by ``section.key=value`` overrides.

    Raises:
        ValueError: no such file, no YAML, or a key or value that is wrong; one line with file, dotted key and cure.
    """
    path = Path(path)
    content = _yaml(path)
    for override in overrides:
        _apply(content, override)
    try:
        values = OmegaConf.to_container(content, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {error.full_key}: {_first_line(error)}; write a value there") from error
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{path}: {complaint(error)}") from None


def complaint(error: ValidationError) -> str:
    """The first thing that is wrong (a misspelt key before all else), in one line: dotted key, value, cure."""
    errors = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    first = errors[0]
    parts, section = _located(first["loc"])
    message = _MESSAGES.get(first["type"], _about_value)(first, section)
    named = re.match(r"([\w.]+): ", message)
    if first["type"] == "value_error" and named:  # a check of a whole section says which key it means
        message = message[named.end() :]
        parts = parts if parts[-1:] == [named[1]] else [*parts, named[1]]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{'.'.join(parts)}: {message}{more}"


def _unknown_key(error: Mapping[str, Any], section: type[BaseModel]) -> str:
    key = str(error["loc"][-1])
    if key in REFUSED:
        return f"{shortened(error['input'])} cannot be set here; {REFUSED[key]}"
    known = list(section.model_fields)
    return "unknown key" + (hint(key, known) or f"; choose from {', '.join(known)}")


def _missing_key(error: Mapping[str, Any], section: type[BaseModel]) -> str:
    return "is missing; add it"


def _said(error: Mapping[str, Any], section: type[BaseModel]) -> str:
    return error["msg"]


def _not_a_section(error: Mapping[str, Any], section: type[BaseModel]) -> str:
    return f"{shortened(error['input'])} is no section; write keys and values under it"


def _own_words(error: Mapping[str, Any], section: type[BaseModel]) -> str:
    return str(error["ctx"]["error"])


def _about_value(error: Mapping[str, Any], section: type[BaseModel]) -> str:
    return error["msg"].replace("Input", shortened(error["input"]), 1) + "; correct it"


#: What is said of each kind of pydantic error.
_MESSAGES: dict[str, Callable[[Mapping[str, Any], type[BaseModel]], str]] = {
    "extra_forbidden": _unknown_key,
    "missing": _missing_key,
    "objective_type": _said,
    "model_type": _not_a_section,
    "value_error": _own_words,
}


def _located(loc: Sequence[int | str]) -> tuple[list[str], type[BaseModel]]:
    """The dotted key of a pydantic location, and the section that the last key is in."""
    parts: list[str] = []
    section: type[BaseModel] = RunConfig
    offered: list[type[BaseModel]] = [RunConfig]
    for part in loc:
        parts.append(str(part))
        if isinstance(part, str) and offered:
            section = offered[0]
            field = section.model_fields.get(part)
            offered = list(_models(field.annotation)) if field is not None else []
    return parts, section


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The pydantic models inside a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _yaml(path: Path) -> DictConfig:
    if not path.is_file():
        near = nearest(path.name, [p.name for p in path.parent.glob("*.y*ml")])
        cure = f"did you mean {str(path.parent / near)!r}?" if near else "check the path"
        raise ValueError(f"{path}: no such run file; {cure}")
    try:
        content = OmegaConf.load(path)
    except YAMLError as error:
        raise ValueError(f"{path}: is no YAML ({_yaml_cause(error)}); correct it") from error
    except (OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ValueError(
            f"{path}: cannot be read as YAML ({_first_line(error)}); write section: {{key: value}}"
        ) from error
    if not isinstance(content, DictConfig) or content.is_empty():
        sections = ", ".join(RunConfig.model_fields)
        raise ValueError(f"{path}: has no sections; write {sections}, each with its keys")
    return content


def _apply(content: DictConfig, override: str) -> None:
    """Set one dotted key; in a list, its position is the key. A preset named in the file is spelt out first."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"override {override!r}: is not key=value; write for instance trainer.learning_rate=1e-4")
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[index, call-overload]
        if key.startswith("objectives."):
            content["objectives"] = preset_expanded(content.get("objectives", "contrastive"))
        OmegaConf.update(content, key, value, merge=False, force_add=True)
    except YAMLError as error:
        raise ValueError(
            f"override {override!r}: {text!r} is no YAML value ({_yaml_cause(error)}); quote it"
        ) from error
    except (OmegaConfBaseException, IndexError, TypeError) as error:
        raise ValueError(f"override {override!r}: {_first_line(error)}; check the key {key!r}") from error


def _yaml_cause(error: YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or _first_line(error)
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark is not None else problem


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
