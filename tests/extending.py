"""The code and the run file of ``docs/extending.md``, written where a test can import them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
ROWS = 12

#: A module whose parts are not what they should be.
BROKEN = """
import torch
from torch import nn
from ullme.objectives import Contrastive, Objective

class NoLoss(Objective):
    pass

class Wider(nn.Module):
    def __init__(self, width):
        super().__init__()

    def forward(self, hidden_NTD, mask_NT, pooled_NT):
        return hidden_NTD.repeat(1, 1, 2).sum(1)

class WithoutWidth(nn.Module):
    def __init__(self):
        super().__init__()

class WithoutMasks(nn.Module):
    def __init__(self, width):
        super().__init__()

    def forward(self, hidden_NTD):
        return hidden_NTD[:, 0]

class Narrow(Contrastive):
    temperature: float = 0.01

def two(hidden_NTD, mask_NT):
    return hidden_NTD[:, 0]

def no_rows(path, subset, split):
    yield 1, {"query": "a", "positive": "b"}
    yield {"query": "a", "positive": "b"}

def nothing(path, subset, split):
    return []

number = 3
"""


def blocks(language: str) -> list[str]:
    """The code blocks of the page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)


def modules() -> dict[str, str]:
    """The blocks that say in their first line which file they are."""
    named = [(re.match(r"# (\w+)\.py\n", block), block) for block in blocks("python")]
    return {match[1]: block for match, block in named if match}


def checks() -> list[str]:
    """The other blocks, which use these files."""
    return [block for block in blocks("python") if block not in modules().values()]


def write_all(folder: Path) -> Path:
    """Modules, pairs and run file of the page, in one folder; the run file's path."""
    for name, code in modules().items():
        (folder / f"{name}.py").write_text(code)
    lines = [f"what is {i}?\tit is {i}\tit is {i + 30}" + "\tno idea" * (i % 2) for i in range(ROWS)]
    (folder / "pairs.tsv").write_text("\n".join(lines) + "\n")
    (folder / "run.yaml").write_text(blocks("yaml")[0])
    return folder / "run.yaml"


def forget_modules(folder: Path) -> None:
    """Let the next import of this folder's modules read their files again."""
    for path in folder.glob("*.py"):
        sys.modules.pop(path.stem, None)


def importable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The page's files and some wrong ones in a folder that is on the path and current; a fixture yields from it."""
    write_all(folder)
    (folder / "my_broken.py").write_text(BROKEN)
    (folder / "my_imports.py").write_text("import no_such_library\n")
    (folder / "my_syntax.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder)
    forget_modules(folder)
    yield folder
    forget_modules(folder)
