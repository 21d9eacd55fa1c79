"""Blocks of documents executed, or at least parsed by what they are for."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from tests.documents.pages import ROOT, SHELL, Block, commands
from tests.documents.place import SHORTER
from ullme.cli import app, main
from ullme.config import read_run_file

#: What a run file needs beside the part of one that a page shows.
REST = {
    "model": {"name_or_path": "smollm2-135m-instruct"},
    "data": {"train": [{"path": "pairs.jsonl"}]},
    "trainer": {"output_dir": "runs/shown"},
}

#: Arguments that make a documented command one of seconds.
ADDED = {"train": SHORTER}


class Page:
    """One page's blocks, run in order in one folder and one namespace.

    Args:
        monkeypatch: sets the page's environment variables.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: dict[str, Any] = {"__name__": "__page__"}
        self.monkeypatch = monkeypatch

    def run(self, block: Block) -> None:
        """Execute a block; what its comments exempt is parsed."""
        if block.title is not None:
            file = Path(block.title)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
        LANGUAGES["bash" if block.language in SHELL else block.language](self, block)

    def python(self, block: Block) -> None:
        tree = ast.parse(block.text, block.place)
        resolve_imports(tree)
        if block.title is None and not block.reason(""):
            exec(compile(tree, block.place, "exec"), self.names)

    def yaml(self, block: Block) -> None:
        shown = yaml.safe_load(block.text)
        file = Path("shown.yaml")
        file.write_text(yaml.safe_dump(shown if block.title else {**REST, **shown}))
        assert read_run_file(file).objectives

    def json(self, block: Block) -> None:
        assert all(json.loads(line) for line in block.text.splitlines())

    def shell(self, block: Block) -> None:
        for command in commands(block.text):
            words = shlex.split(command, comments=True)
            assert not {"|", "&&", ">", "<", ";"} & set(words), f"{command}: write it as a simple command"
            words = words[words[0] == "export" :]
            while words and "=" in words[0]:
                self.monkeypatch.setenv(*words.pop(0).split("=", 1))
            if words:
                parse(words)
            if words and block.reason(command) is None:
                assert words[0] == "ullme", f"{block.place}: {command}: say why it is not run"
                assert main(words[1:] + ADDED.get(words[1], [])) == 0, f"{block.place}: {command}"

    def nothing(self, block: Block) -> None:
        """Text that is shown, and is no code."""


LANGUAGES: dict[str, Callable[[Page, Block], None]] = {
    "python": Page.python,
    "yaml": Page.yaml,
    "json": Page.json,
    "bash": Page.shell,
    "": Page.nothing,
    "text": Page.nothing,
}


def resolve_imports(tree: ast.AST) -> None:
    """Import what a block imports; a file of the page is found where it was written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


def parse(words: Sequence[str]) -> None:
    """Read a command as its program would, and do nothing."""
    program, *arguments = words
    assert program in PROGRAMS, f"{program}: no way to parse it"
    PROGRAMS[program](arguments)


def parse_ullme(arguments: Sequence[str]) -> None:
    """Every option exists and has a value of its type; a run file is read with its overrides."""
    command: Any = typer.main.get_command(app)
    rest, parent = list(arguments), None
    while hasattr(command, "resolve_command"):
        context = command.make_context(command.name or "ullme", rest, parent=parent)
        rest = [*context._protected_args, *context.args]
        _, command, rest = command.resolve_command(context, rest)
        parent = context
    context = command.make_context(command.name, rest, parent=parent)
    if command.name == "train":
        read_run_file(context.params["run_file"], context.params["overrides"] or [])


def parse_make(arguments: Sequence[str]) -> None:
    """The Makefile has the targets."""
    makefile = (ROOT / "Makefile").read_text()
    for target in (argument for argument in arguments if "=" not in argument):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def parse_pip(arguments: Sequence[str]) -> None:
    """The extras exist."""
    project = (ROOT / "pyproject.toml").read_text()
    for extras in re.findall(r"\[([\w,]+)\]", " ".join(arguments)):
        assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras.split(",")), extras


def parse_nothing(arguments: Sequence[str]) -> None:
    """A program that is not ours."""


PROGRAMS: dict[str, Callable[[Sequence[str]], None]] = {
    "ullme": parse_ullme,
    "make": parse_make,
    "pip": parse_pip,
    "python": parse_nothing,
    "git": parse_nothing,
}
