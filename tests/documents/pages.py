"""The fenced blocks of the documents, and what the comments before each say of its being run.

``python -m tests.documents.pages`` counts them.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(["README.md", *(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))])

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w-]*) *(?P<rest>.*)$")
_COMMENT = re.compile(r"^ *<!-- (?P<text>.*?) ?-->$")
_NOT_RUN = re.compile(r"^not run(?: \((?P<lines>[^)]+)\))?: *(?P<reason>.*)$")
_ELSEWHERE = re.compile(r"^(?P<how>executed|parsed)\b.*? by (?P<test>tests/[\w/]+\.py)(?P<reason>: .+)?$")

#: What cannot be executed in a test and needs no comment to say so: every such command is parsed.
NOT_RUN_PROGRAMS = {
    "make": "sets up an environment",
    "pip": "installs packages",
    "git": "needs a remote repository",
    "python": "another program",
}


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: its file, from the repository's root on.
        line: of the fence.
        language: after the fence; empty for plain text.
        title: the file that the block is, if it is one: ``title="run.yaml"`` after the language, or ``# name.py`` in
            its first line.
        text: without fences and common indentation.
        not_run: reasons by the words that stand in the lines concerned; the empty word concerns all lines.
        test: the test that executes or parses it in place of this one.
        how: what that test does, with the reason where it only parses.
    """

    page: str
    line: int
    language: str
    title: str | None
    text: str
    not_run: dict[str, str]
    test: str | None
    how: str | None

    @property
    def place(self) -> str:
        """Where it stands."""
        return f"{self.page}:{self.line}"

    def reason(self, command: str) -> str | None:
        """Why this line of the block is not run; None if it is."""
        program = command.split()[0] if command.split() else ""
        said = [reason for words, reason in self.not_run.items() if words in command]
        return said[0] if said else NOT_RUN_PROGRAMS.get(program) if self.language in SHELL else None


SHELL = ("bash", "console")


def blocks(page: str, text: str | None = None) -> list[Block]:
    """The blocks of a page, in order.

    Raises:
        ValueError: a comment before a block gives no reason, or concerns no line of it.
    """
    lines = ((ROOT / page).read_text() if text is None else text).splitlines()
    found, number = [], 0
    while number < len(lines):
        fence = _FENCE.match(lines[number])
        if fence is None:
            number += 1
            continue
        end = next(i for i in range(number + 1, len(lines)) if lines[i].strip() == "```")
        body = textwrap.dedent("\n".join(lines[number + 1 : end])) + "\n"
        not_run, elsewhere = _comments(lines[:number], body, f"{page}:{number + 1}")
        title = re.search(r'title="([^"]+)"', fence["rest"]) or re.match(r"# ([\w.]+\.py)\n", body)
        found.append(Block(page, number + 1, fence["language"], title and title[1], body, not_run, *elsewhere))
        number = end + 1
    return found


def _comments(before: list[str], body: str, place: str) -> tuple[dict[str, str], tuple[str | None, str | None]]:
    """What the comments directly above a block say: the reasons for not running it, and a test that runs it."""
    not_run: dict[str, str] = {}
    test = how = None
    for line in reversed(before):
        comment = _COMMENT.match(line)
        if comment is None:
            break
        said, elsewhere = _NOT_RUN.match(comment["text"]), _ELSEWHERE.match(comment["text"])
        if elsewhere and (elsewhere["how"] == "executed" or elsewhere["reason"]):
            test, how = elsewhere["test"], elsewhere["how"] + (elsewhere["reason"] or "")
        elif said is None or not said["reason"].strip():
            raise ValueError(f"{place}: {line.strip()!r} gives no reason; write <!-- not run: REASON -->")
        elif (said["lines"] or "") not in body:
            raise ValueError(f"{place}: no line of the block has {said['lines']!r}; correct the comment")
        else:
            not_run[said["lines"] or ""] = said["reason"]
    return not_run, (test, how)


def commands(text: str) -> list[str]:
    """The commands of a shell block: lines, joined where they end in a backslash, without comments and prompts."""
    lines = (re.sub(r"^\$ ", "", line.strip()) for line in text.replace("\\\n", " ").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def count() -> Counter[str]:
    """Blocks (and commands of shell blocks) of all pages, by what becomes of them."""
    counted: Counter[str] = Counter()
    for block in (block for page in PAGES for block in blocks(page)):
        kind = "commands" if block.language in SHELL else f"{block.language or 'text'} blocks"
        for part in commands(block.text) if block.language in SHELL and not block.test else [block.text]:
            reason = block.reason(part)
            how = block.how or (f"parsed: {reason}" if reason else "executed")
            counted[f"{kind}, {'shown' if not block.language else how}"] += 1
    return counted


if __name__ == "__main__":
    for what, number in sorted(count().items()):
        print(f"{number:4} {what}")
