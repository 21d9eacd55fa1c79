"""Hooks of the documentation site: files beside docs/ become pages, the commands get theirs, docstrings their look.

MkDocs calls the functions named ``on_...``; griffe, which reads docstrings, uses the class.
"""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
import typer
from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).parents[1]

#: Where pages from beside docs/ stand in the site.
BESIDE = "repository/"

#: Pages of one long table.
WIDE = ("architectures.md", "paper_index.md")

#: What griffe says of an annotated attribute that is neither ``ClassVar`` nor a property.
FIELD = {"class-attribute", "instance-attribute"}

#: Where the classes are whose fields are keys of a run file.
IN_RUN_FILES = ("ullme.config.schema.", "ullme.config.sections.", "ullme.objectives.", "ullme.data.source.")

_LINK = re.compile(r"(?P<before>\]\()(?P<target>[^)#\s:]+)(?P<anchor>#[^)\s]*)?(?P<after>\))")


def on_config(config: Any) -> Any:
    """Replace each folder of the navigation by its pages, in the order of their names."""
    config.nav = [_expanded(entry) for entry in config.nav]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the page of the commands, and every file beside docs/ that a page or the navigation leads to."""
    files.append(_generated(config, "api/commands.md", commands_page()))
    wanted = [page.removeprefix(BESIDE) for page in re.findall(rf"{BESIDE}[\w./-]+", str(config.nav))]
    wanted += [t for f in files.documentation_pages() if f.abs_src_path for t in _beside(f"docs/{f.src_uri}")]
    seen: set[str] = set()
    while wanted:
        path = wanted.pop()
        if path not in seen:
            seen.add(path)
            files.append(_generated(config, _page_of(path), _content(path)))
            wanted += _beside(path) if path.endswith(".md") else []
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Let links to files beside docs/ lead to their pages, and give wide tables the width of the window."""
    uri = page.file.src_uri
    if uri in WIDE:
        page.meta["hide"] = ["toc"]
    own = uri.removeprefix(BESIDE) if uri.startswith(BESIDE) else f"docs/{uri}"
    return _LINK.sub(lambda link: _relinked(link, own, uri), markdown)


def on_post_build(*, config: Any) -> None:
    """Write the index of the search as a script as well, which a page opened from a disk may load."""
    index = Path(config.site_dir) / "search" / "search_index.json"
    index.with_suffix(".js").write_text(f"var __index = {index.read_text()}")


class Shown(griffe.Extension):
    """Docstrings as the site shows them: roles such as ``:class:`` as code, fields of run files with their defaults."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring:
            obj.docstring.value = re.sub(r":(?:py:)?\w+:`~?([^`]+)`", r"`\1`", obj.docstring.value)

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """List the fields of a class that a run file fills: what pydantic makes of them is no signature to griffe."""
        fields = [_field(a) for a in cls.attributes.values() if a.annotation and FIELD <= a.labels]
        if cls.docstring and fields and cls.path.startswith(IN_RUN_FILES):
            cls.docstring.value += "\n\n```python\n" + "\n".join(fields) + "\n```"


def _field(attribute: griffe.Attribute) -> str:
    """``name: type = default`` of a pydantic field, without its constraints."""
    kind = ast.parse(str(attribute.annotation), mode="eval").body
    if isinstance(kind, ast.Subscript) and ast.unparse(kind.value) == "Annotated" and isinstance(kind.slice, ast.Tuple):
        kind = kind.slice.elts[0]
    shown = f"{attribute.name}: {ast.unparse(kind)}"
    value = ast.parse(str(attribute.value), mode="eval").body if attribute.value is not None else None
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "Field":
        named = {keyword.arg: keyword.value for keyword in value.keywords}
        made = named.get("default_factory")
        value = named.get("default") or (made and ast.Call(made, [], []))
    return shown if value is None else f"{shown} = {ast.unparse(value)}"


def commands_page() -> str:
    """Every command with its arguments and options, as ``--help`` has them."""
    from ullme.cli import app

    parts = ["# Commands", "What `ullme COMMAND --help` says, of every command."]
    for name, command in _commands("ullme", typer.main.get_command(app)):
        parts += [f"## {name}", (command.help or "").strip(), *_parameters(name, command)]
    return "\n\n".join(parts) + "\n"


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """A command, or those of a group, by their whole names."""
    children = getattr(command, "commands", None)
    if children is None:
        yield name, command
    for child, below in (children or {}).items():
        yield from _commands(f"{name} {child}", below)


def _parameters(name: str, command: Any) -> Iterator[str]:
    context = command.make_context(name, [], resilient_parsing=True)
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```text\n{name} {usage}\n```"
    rows = []
    for parameter in command.get_params(context):
        told = parameter.get_help_record(context)
        if told is not None and told[0] != "--help":
            shown = [re.sub(r"\s+", " ", part).replace("|", "\\|") for part in told]
            rows.append(f"| `{shown[0]}` | {shown[1]} |")
    yield "\n".join(["| Argument or option | |", "|---|---|", *rows])


def _expanded(entry: Any) -> Any:
    if isinstance(entry, dict):
        return {title: _expanded(below) for title, below in entry.items()}
    if isinstance(entry, list):
        return [_expanded(below) for below in entry]
    if not entry.endswith("/"):
        return entry
    return sorted(str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs" / entry).glob("*.md"))


def _generated(config: Any, uri: str, content: str) -> File:
    return File.generated(config, uri, content=content, inclusion=InclusionLevel.NOT_IN_NAV)


def _beside(path: str) -> list[str]:
    """Files beside docs/ to which a Markdown file of the repository leads."""
    targets = (_resolved(link["target"], path) for link in _LINK.finditer((ROOT / path).read_text()))
    return [target for target in targets if not target.startswith("docs/") and (ROOT / target).is_file()]


def _resolved(target: str, path: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), target))


def _page_of(path: str) -> str:
    """Where a file of the repository stands in the site."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return BESIDE + (path if path.endswith(".md") else f"{path}.md")


def _content(path: str) -> str:
    text = (ROOT / path).read_text()
    language = {".py": "python", ".yaml": "yaml", ".toml": "toml"}.get(Path(path).suffix, "text")
    return text if path.endswith(".md") else f"# {path}\n\n```{language}\n{text}```\n"


def _relinked(link: re.Match[str], own: str, uri: str) -> str:
    target = _resolved(link["target"], own)
    if own.startswith("docs/") and target.startswith("docs/") or not (ROOT / target).is_file():
        return link[0]
    place = posixpath.relpath(_page_of(target), posixpath.dirname(uri) or ".")
    return f"{link['before']}{place}{link['anchor'] or ''}{link['after']}"


def on_page_content(html: str, *, page: Any, **_: Any) -> str:
    """Put drawings into the page itself, so that they take its colours."""
    folder = posixpath.dirname(f"docs/{page.file.src_uri}")

    def drawn(image: re.Match[str]) -> str:
        drawing = (ROOT / _resolved(image["place"], folder + "/")).read_text()
        return f'<figure class="drawing">{drawing}</figure>'

    return re.sub(r'<img[^>]*src="(?P<place>[^":]+\.svg)"[^>]*>', drawn, html)
