from __future__ import annotations

from pathlib import Path

import pytest
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ullme.apps.check import check_all, examine_architecture
from ullme.apps.check_report import STATUSES, markdown_row

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"

#: One architecture of every mechanism, kind of layer and kind of refusal.
RECHECKED = (
    "llama",
    "gemma2",
    "mixtral",
    "deepseek_v32",
    "llama4_text",
    "bloom",
    "nemotron",
    "openai-gpt",
    "modernbert-decoder",
    "minimax",
    "deepseek_v4",
    "bert",
    "whisper",
)


def rows() -> dict[str, list[str]]:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0].strip("` "): row for row in cells}


def same_libraries() -> bool:
    return f"Transformers {transformers.__version__}," in PAGE.read_text(encoding="utf-8")


needs_same_libraries = pytest.mark.skipif(
    not same_libraries(), reason="docs/architectures.md was generated with another version of Transformers"
)


@needs_same_libraries
def test_every_entry_of_the_mapping_is_classified() -> None:
    found = rows()
    assert set(found) == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert {row[8] for row in found.values()} <= set(STATUSES)
    assert all(row[1] == MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name] for name, row in found.items())
    assert all(row[9] != "-" for row in found.values() if row[8] != "passes"), "a refusal gives its reason"


def test_at_least_ninety_architectures_pass() -> None:
    assert sum(row[8] == "passes" for row in rows().values()) >= 90


@needs_same_libraries
@pytest.mark.parametrize("model_type", RECHECKED)
def test_the_page_says_what_is_found_now(model_type: str) -> None:
    assert markdown_row(examine_architecture(model_type)) in PAGE.read_text(encoding="utf-8").splitlines()


def test_an_architecture_that_cannot_be_built_is_a_row_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such\n  kernel")

    monkeypatch.setattr("ullme.apps.check.tiny_model", broken)
    finding = examine_architecture("llama")
    assert (finding.status, finding.reason) == ("not built", "RuntimeError: no such kernel")


def test_the_page_is_the_same_on_every_run(tmp_path: Path) -> None:
    pages = []
    for name in ("first.md", "second.md"):
        check_all(tmp_path / name, model_types=("llama", "mamba"))
        pages.append((tmp_path / name).read_text(encoding="utf-8"))
    assert pages[0] == pages[1]
    assert "| passes | 1 |" in pages[0]


def test_a_model_that_was_built_but_breaks_when_examined_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr("ullme.apps.check._examine", broken)
    finding = examine_architecture("llama")
    assert finding.status == "fails" and "shapes do not fit" in finding.reason
