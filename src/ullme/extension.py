"""Code outside ullme, named by import path: ``package.module:name``. Whoever names a module runs it."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

Kind = TypeVar("Kind")


def is_import_path(name: str) -> bool:
    """Whether a name is meant as an import path; no name of ullme's own has a colon."""
    return ":" in name


def import_path(kind: type) -> str:
    """The import path of a class."""
    return f"{kind.__module__}:{kind.__qualname__}"


def imported(path: str, what: str) -> Any:
    """What ``package.module:name`` names; its module is run if it was not imported yet.

    Args:
        path: the import path; ``name`` may be dotted.
        what: the field that named it, for messages.

    Raises:
        ValueError: no such module or name (the message offers the nearest), or one that cannot be imported.
    """
    module_name, _, name = path.partition(":")
    at = f"{what}: {path!r}"
    if not all(part.isidentifier() for part in [*module_name.split("."), *name.split(".")]):
        raise ValueError(f"{at} is no import path; write package.module:name")
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"{at}: {_missing_module(str(error.name), module_name)}") from error
    except (ImportError, SyntaxError) as error:
        raise ValueError(f"{at}: cannot be imported ({error}); correct the module") from error
    for part in name.split("."):
        if not hasattr(found, part):
            names = [n for n in vars(found) if not n.startswith("_")]
            raise ValueError(f"{at}: {module_name!r} has no {part!r}{_nearest(part, names)}; correct the name")
        found = getattr(found, part)
    return found


def imported_function(path: str, what: str, arguments: Sequence[str]) -> Any:
    """The function at this import path, which must be callable with these positional arguments.

    Raises:
        ValueError: as :func:`imported`; or it is no function, or takes other arguments.
    """
    found = imported(path, what)
    wanted = f"({', '.join(arguments)})"
    if not callable(found) or inspect.isclass(found):
        raise ValueError(f"{what}: {path!r} is {_described(found)}; name a function of {wanted}")
    require_arguments(found, f"{what}: {path!r}", arguments)
    return found


def imported_class(path: str, what: str, base: type[Kind]) -> type[Kind]:
    """The class at this import path, a subclass of ``base``.

    Raises:
        ValueError: as :func:`imported`; or it is no such class.
    """
    found = imported(path, what)
    if not inspect.isclass(found) or not issubclass(found, base) or found is base:
        wanted = f"a subclass of {base.__module__.split('.')[0]}'s {base.__name__}"
        raise ValueError(f"{what}: {path!r} is {_described(found)}; name {wanted}")
    return found


def require_arguments(function: Any, at: str, arguments: Sequence[str]) -> None:
    """Raise unless the function can be called with these positional arguments.

    Raises:
        ValueError: it cannot; the message begins with ``at``.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # a function of an extension module may have none
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise ValueError(f"{at} takes {signature}; let it take ({', '.join(arguments)})") from error


def source_digest(path: str, what: str) -> str:
    """A hash of the file that holds what this import path names: another one where the code was changed."""
    file = inspect.getsourcefile(inspect.unwrap(imported(path, what)))
    return hashlib.sha256(Path(file).read_bytes() if file else b"").hexdigest()


def _missing_module(missing: str, wanted: str) -> str:
    """What is wrong: the module itself is not there, or one that it imports."""
    if not f"{wanted}.".startswith(f"{missing}."):
        return f"imports {missing!r}, which is not there; install it"
    parent, _, last = missing.rpartition(".")
    places = getattr(importlib.import_module(parent), "__path__", []) if parent else None
    near = _nearest(last, (module.name for module in pkgutil.iter_modules(places)))
    return f"there is no module {missing!r}{near}; correct the name, or put the folder that holds it on PYTHONPATH"


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def _described(found: Any) -> str:
    return f"the class {found.__name__}" if inspect.isclass(found) else f"of type {type(found).__name__}"
