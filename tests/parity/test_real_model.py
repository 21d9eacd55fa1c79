"""The step's gradient on a real LLM, dropout on, equals autograd on the whole batch (fp32, 1e-4)."""

from __future__ import annotations

import pytest
import torch

from tests.parity.oracle import forward_of, relative_error, step_gradient, whole_gradient
from ullme.data import PairCollator, TokenMasking, with_mismatched
from ullme.models import ULLME
from ullme.objectives import PRESETS
from ullme.types import Batch, PairExample

ONE_QUERY = 1

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
    model = ULLME(real_model, lora_name="test", lora_r=8, lora_dropout=0.1).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    batch = PairCollator(model.text_tokenizer, generation=True)(ROWS)
    for _ in range(3):
        step_gradient(model, batch, "contrastive", None)
        optimizer.step()
    return model


def full_batch(model: ULLME) -> Batch:
    """The rows with all that any preset needs."""
    masking = TokenMasking.for_tokenizer(model.tokenizer)
    return with_mismatched(PairCollator(model.text_tokenizer, generation=True, masking=masking)(ROWS))


#: One preset of each kind; the others differ from these by a formula alone.
QUICK = ("grl", "grl_kto", "mntp")


@pytest.mark.real_model
@pytest.mark.parametrize("preset", [pytest.param(p, marks=() if p in QUICK else pytest.mark.slow) for p in PRESETS])
def test_gradient_of_a_real_model_does_not_depend_on_chunk_size(model, preset):
    """Oracle: the chunks of the step under the random states it gave them, graphs kept, one backward."""
    batch = full_batch(model)
    forward = forward_of(model, PRESETS[preset])
    for budget, count, checkpointing in ((ONE_QUERY, len(ROWS), False), (two_chunks(batch), 2, True), (None, 1, False)):
        parts = []

        def recording(chunk, parts=parts):
            parts.append((chunk, torch.get_rng_state()))
            return forward(chunk)

        if checkpointing:
            model.gradient_checkpointing_enable()
        found, total, chunks = step_gradient(model, batch, preset, budget, forward=recording)
        model.gradient_checkpointing_disable()
        right, loss = whole_gradient(model, batch, preset, parts)
        assert chunks == count
        assert relative_error(found, right) < 1e-4
        assert total == pytest.approx(loss, rel=1e-5)


def two_chunks(batch: Batch) -> int:
    """A budget of tokens that cuts the batch in two."""
    return int(batch.tokens_B().sum()) * 2 // 3
