"""The step's gradient on a real LLM equals whole-batch autograd (fp32, 1e-4)."""

from __future__ import annotations

import pytest
import torch

from tests.parity.oracle import relative_error, step_gradient, whole_gradient
from ullme.data import PairCollator
from ullme.models import ULLME
from ullme.types import PairExample

ROWS = [
    PairExample(
        "how do I parse a date from a string?",
        ("datetime.strptime turns text into a datetime, given a format such as %Y-%m-%d.",),
        ("datetime.strftime writes a datetime as text.", "json.loads reads a JSON document from a string."),
    ),
    PairExample(
        "remove a file",
        ("os.remove deletes the file at a path; it raises IsADirectoryError for a folder.",),
        ("os.rmdir removes an empty folder.",),
    ),
    PairExample("sorted copy of a list", ("sorted(list) returns a new sorted list from the items of any iterable.",)),
    PairExample(
        "count words",
        ("collections.Counter counts hashable objects, for instance the words of a text.",),
        ("str.count counts a substring.", "len gives the number of items."),
    ),
]


@pytest.fixture(scope="module")
def model(real_model) -> ULLME:
    """SmolLM2 after three steps of training.

    Untrained, its bidirectional embeddings lie so close together (cosines near 1, temperature 0.05) that rounding alone
    moves the gradient by 1e-4 when rows are padded differently, also in plain autograd without any cache.
    """
    torch.manual_seed(0)
    model = ULLME(real_model, lora_name="test", lora_r=8).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    batch = PairCollator(model.text_tokenizer, generation=True)(ROWS)
    for _ in range(3):
        step_gradient(model, batch, "contrastive", None)
        optimizer.step()
    return model


@pytest.mark.real_model
@pytest.mark.parametrize("preset", ["contrastive", "grl"])
def test_gradient_of_a_real_model_does_not_depend_on_chunk_size(model, preset):
    batch = PairCollator(model.text_tokenizer, generation=True)(ROWS)
    right, loss = whole_gradient(model, batch, preset)
    for budget, chunks in ((1, len(ROWS)), (int(batch.tokens_B()[:2].sum()), 2)):
        found, total, count = step_gradient(model, batch, preset, budget)
        assert count >= chunks
        assert relative_error(found, right) < 1e-4
        assert total == pytest.approx(loss, rel=1e-5)
