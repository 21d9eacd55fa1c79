"""Documentation strings of installed packages, found in their source files without importing them."""

from __future__ import annotations

import ast
import importlib.util
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Packages that come with ullme (``stdlib`` is Python's own library), with enough documentation to learn from.
PACKAGES = ("stdlib", "numpy", "scipy", "sklearn", "pandas", "matplotlib", "networkx", "sympy", "torch")

_LEFT_OUT = {
    *("test", "tests", "testing", "conftest.py", "site-packages", "__pycache__"),
    *("_vendor", "vendor", "externals", "extern", "_inductor", "_dynamo", "idlelib", "lib2to3", "turtledemo"),
    *("ensurepip", "distutils", "_pytest", "benchmarks", "pydoc_data"),
}
_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Documented:
    """A public class, function or method: its qualified name, subpackage, module and documentation."""

    name: str
    unit: str
    module: str
    doc: str


def documented(packages: Sequence[str]) -> Iterator[Documented]:
    """Everything public and documented in these packages, by package, file and position."""
    for package in packages:
        folder = _folder(package)
        if folder is None:
            continue
        for path in sorted(folder.rglob("*.py")):
            within = path.relative_to(folder)
            if not _LEFT_OUT.intersection(within.parts) and not _is_private(package, within):
                yield from _in_file(path, package, within)


def _is_private(package: str, within: Path) -> bool:
    """Whether a file is no part of a library's interface: a private folder, or a private module of Python's own."""
    if package == "stdlib":
        return within.parts[0].startswith("_")
    return any(part.startswith("_") and part != "_core" for part in within.parts[:-1])


def _folder(package: str) -> Path | None:
    if package == "stdlib":
        return Path(sysconfig.get_path("stdlib"))
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec is not None else None
    return Path(places[0]) if places else None


def _in_file(path: Path, package: str, within: Path) -> Iterator[Documented]:
    source = path.read_bytes()
    if b'"""' not in source:
        return
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # a template or a test input that is no module of this Python
        return
    parts = [part for part in within.with_suffix("").parts if part != "__init__"]
    module = ".".join([*([] if package == "stdlib" else [package]), *parts])
    unit = ".".join(module.split(".")[: 1 if package == "stdlib" else 2])
    for name, doc in _in_body(tree.body, module):
        yield Documented(name, unit, module, doc)


def _in_body(body: Sequence[ast.stmt], prefix: str) -> Iterator[tuple[str, str]]:
    for node in body:
        if not isinstance(node, _DEFINITIONS) or node.name.startswith("_"):
            continue
        name = f"{prefix}.{node.name}"
        doc = ast.get_docstring(node)
        if doc:
            yield name, doc
        if isinstance(node, ast.ClassDef):
            yield from _in_body(node.body, name)
