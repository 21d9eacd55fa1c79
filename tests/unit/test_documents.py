"""Documents that name code and tests are true to them; their blocks and links are tested in tests/documents."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def names_of(path):
    """The functions, classes, methods and module-level names of a Python file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


@pytest.mark.parametrize("document", ["docs/paper_index.md", "docs/extending.md", "README.md", "CONTRIBUTING.md"])
def test_every_file_and_function_that_a_document_names_exists(document):
    text = (ROOT / document).read_text()
    places = set(re.findall(r"`((?:src|tests|docs|configs|benchmarks)/[\w./]+)(?:::(\w+))?`", text))
    for path, name in sorted(places):
        assert (ROOT / path).exists(), path
        assert not name or name in names_of(ROOT / path), f"{path}::{name}"


def test_every_line_of_the_paper_index_has_code_a_test_or_the_issue_that_owes_them():
    rows = [line for line in (ROOT / "docs/paper_index.md").read_text().splitlines() if line.startswith("| ")]
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 5, row
        if cells[0] not in ("Paper", "---"):
            assert all("::" in cell or "issue" in cell for cell in cells[2:4]), row
            assert cells[4], row


def test_ci_and_pre_commit_run_the_checks_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    tools = re.findall(r"^\t\$\(BIN\)/((?:ruff \w+|mypy|lint-imports|codespell))", makefile, re.MULTILINE)
    assert set(tools) == {"ruff check", "ruff format", "mypy", "lint-imports", "codespell"}
    assert all(f".venv/bin/{tool}" in hooks for tool in tools)
    assert re.search(r"^make .*\btest\b", (ROOT / ".ci/run").read_text(), re.MULTILINE)


def test_constraints_pin_every_direct_dependency_and_name_no_host():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    wanted = project["dependencies"] + optional["test"] + optional["dev"] + optional["docs"] + optional["demo"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = {line.split("==")[0] for line in lines}
    assert all(re.fullmatch(r"[a-z0-9.-]+==[\w.]+( ; python_version >= \"3\.11\")?", line) for line in lines)
    assert {re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-") for requirement in wanted} <= pinned
