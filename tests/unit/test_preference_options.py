"""Preference objectives: numbers at the edge of what a float holds, and the range of each option."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from ullme.objectives import OBJECTIVES, objectives_from
from ullme.objectives.functional import log_odds


def test_log_odds_keep_their_digits_on_both_sides_and_stop_short_of_certainty():
    logp = torch.tensor([-1e-12, -1e-6, -0.5, -0.8, -30.0, -700.0], dtype=torch.float64)
    right = [x - math.log(-math.expm1(x)) for x in logp.tolist()]
    assert torch.allclose(log_odds(logp), torch.tensor(right, dtype=torch.float64), rtol=1e-14)
    certain = torch.zeros(1, requires_grad=True)
    odds = log_odds(certain)
    assert float(odds.detach()) == pytest.approx(-math.log(torch.finfo(torch.float32).eps), rel=1e-6)
    assert float(torch.autograd.grad(odds.sum(), certain)[0]) > 1e6


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("dpo", {"beta": 0}),
        ("dpo", {"label_smoothing": 0.5}),
        ("dpo", {"label_smoothing": -0.1}),
        ("dpo", {"beta": math.inf}),
        ("ipo", {"label_smoothing": 0.1}),
        ("hinge", {"beta": math.nan}),
        ("kto", {"desirable_weight": -1}),
        ("kto", {"undesirable_weight": math.inf}),
        ("cpo", {"alpha": -0.1}),
        ("cpo", {"label_smoothing": math.nan}),
        ("simpo", {"gamma": -0.5}),
        ("simpo", {"alpha": 1}),
        ("orpo", {"beta": -1}),
    ],
)
def test_an_option_out_of_range_or_of_another_objective_is_refused_by_name(kind, options):
    name = next(iter(options))
    with pytest.raises(ValueError, match=name) as caught:
        objectives_from({"type": kind, **options})
    assert "\n" not in str(caught.value)
    with pytest.raises(ValidationError):
        OBJECTIVES[kind](**options)
