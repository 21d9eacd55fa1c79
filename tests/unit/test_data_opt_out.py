"""Sources that opt out of in-batch negatives: alone with their own negatives, and nobody else's."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import tiny_tokenizer
from tests.unit.streams import rows, whole_epoch, write_jsonl, write_parquet
from ullme import distributed
from ullme.data import DataSource, PairCollator, load_pairs, stream_pairs
from ullme.data.windows import StreamBatches
from ullme.objectives import Contrastive
from ullme.prompts import TextTokenizer
from ullme.types import ObjectiveInputs, PairExample

OBJECTIVES = [
    {},
    {"symmetric": True},
    {"loss": "SupConLoss", "temperature": 0.3},
    {"hard_negatives": False},
    {"false_negative_margin": 0.1, "symmetric": True},
]


def inputs_of(in_batch, keep=None):
    """Embedded queries with two positives and two negatives each, and which of them stay."""
    generator = torch.Generator().manual_seed(3)
    queries, passages, width = len(in_batch), 4, 6
    keep = list(range(queries)) if keep is None else keep
    mask_BP = torch.ones(queries, passages, dtype=torch.bool)
    positive_BP = mask_BP.clone()
    positive_BP[:, 2:] = False
    return ObjectiveInputs(
        passage_mask_BP=mask_BP[keep],
        positive_mask_BP=positive_BP[keep],
        query_key_B=torch.arange(queries)[keep],
        passage_key_BP=torch.arange(100, 100 + queries * passages).view(queries, passages)[keep],
        row_ids=("",) * len(keep),
        query_BD=torch.randn(queries, width, generator=generator, dtype=torch.float64)[keep],
        passage_BPD=torch.randn(queries, passages, width, generator=generator, dtype=torch.float64)[keep],
        in_batch_B=torch.tensor(in_batch)[keep],
    )


@pytest.mark.parametrize("options", OBJECTIVES, ids=str)
def test_a_row_that_opts_out_is_as_if_alone_and_others_are_as_if_without_it(options):
    objective = Contrastive(**options)
    in_batch = [True, False, True, False, True]
    loss_B = objective(inputs_of(in_batch))
    for b in (1, 3):
        torch.testing.assert_close(loss_B[b : b + 1], objective(inputs_of(in_batch, [b])))
    torch.testing.assert_close(loss_B[[0, 2, 4]], objective(inputs_of(in_batch, [0, 2, 4])))
    assert not torch.allclose(loss_B, objective(inputs_of([True] * 5)))


def test_saying_that_all_take_part_says_nothing():
    given = inputs_of([True] * 4)
    without = ObjectiveInputs(**{**given.__dict__, "in_batch_B": None})
    torch.testing.assert_close(Contrastive()(given), Contrastive()(without), rtol=0, atol=0)


@pytest.mark.parametrize("load", [load_pairs, stream_pairs])
def test_what_a_source_says_reaches_the_inputs_of_objectives(tmp_path, load):
    sources = [
        DataSource(path=write_parquet(tmp_path / "a.parquet", rows(6, "a"))),
        DataSource(path=write_jsonl(tmp_path / "labels.jsonl", rows(6, "b")), in_batch_negatives=False),
    ]
    examples = next(iter(whole_epoch(StreamBatches(load(sources), 12, one_source=False))))
    batch = PairCollator(TextTokenizer(tiny_tokenizer()), 1)(examples)
    wanted = [row.source == "a.parquet" for row in examples]
    assert batch.in_batch_B.tolist() == wanted and len(set(wanted)) == 2
    part = ObjectiveInputs.of(batch.rows([3, 1]))
    assert part.in_batch_B.tolist() == [wanted[3], wanted[1]]
    pairs = [PairExample("q", ("p",), in_batch_negatives=False), PairExample("r", ("s",))]
    assert PairCollator(TextTokenizer(tiny_tokenizer()))(pairs).in_batch_B.tolist() == [False, True]


def test_ranks_tell_each_other_who_opts_out(monkeypatch):
    """Every rank's rows twice, in place of another rank's."""
    twice = lambda rows_BX: (torch.cat([rows_BX, rows_BX]), slice(0, len(rows_BX)))  # noqa: E731
    monkeypatch.setattr(distributed, "gather_rows", twice)
    whole, own = distributed.gather_inputs(inputs_of([True, False, True]))
    assert whole.in_batch_B.dtype == torch.bool and whole.in_batch_B.tolist() == [True, False, True] * 2
    loss_B = Contrastive()(whole)
    torch.testing.assert_close(loss_B[[1]], Contrastive()(inputs_of([True, False, True], [1])))
    assert own == slice(0, 3)
