"""Comparisons, tables and pictures of a study, on scores that are known."""

import csv

import numpy as np
import pytest

from tests.unit.test_reproduce import result
from ullme.reproduce import plots
from ullme.reproduce.bootstrap import (
    Comparison,
    Interval,
    against,
    better_base,
    bootstrap,
    claimed_order,
    paired_differences,
    scores_of,
)
from ullme.reproduce.results import RowResult, TaskScore
from ullme.reproduce.tables import by_task, by_type, write_tables


@pytest.fixture
def study():
    """Two seeds of two rows, a base and the floor, on three tasks of two types."""
    types = {"A": "STS", "B": "Retrieval", "C": "STS"}

    def row(name, label, seed, *scores):
        listed = [TaskScore(t, kind, s, "m", "r") for (t, kind), s in zip(types.items(), scores, strict=True)]
        history = [
            {"step": 1, "loss": 2.0, "contrastive_loss": 2.0 + (seed or 0)},
            {"step": 1, "eval_loss": 1.0, "eval_rank_agreement": 0.1 * (seed or 0)},
        ]
        return RowResult(name, label, seed, "x", tuple(listed), history=history if seed is not None else [])

    return [
        row("floor", "Bag of words", None, 50.0, 50.0, 50.0),
        row("base_causal", "Base, causal", None, 30.0, 10.0, 20.0),
        row("base_bidirectional", "Base, bidirectional", None, 10.0, 10.0, 20.0),
        row("bi_cl", "Bi + CL", 0, 40.0, 60.0, 50.0),
        row("bi_cl", "Bi + CL", 1, 42.0, 62.0, 52.0),
        row("grl_sft", "GRL_SFT", 0, 39.0, 61.0, 50.0),
        row("grl", "GRL", 0, 45.0, 63.0, 54.0),
        row("grl", "GRL", 1, 45.0, 65.0, 56.0),
    ]


def test_differences_pair_tasks_and_seeds(study):
    tasks, difference_KS = paired_differences(scores_of(study), "grl", "bi_cl")
    assert tasks == ["A", "B", "C"]
    assert difference_KS.tolist() == [[5.0, 3.0], [3.0, 3.0], [4.0, 4.0]]


def test_an_untrained_row_is_compared_with_every_seed_and_a_missing_seed_with_none(study):
    scores = scores_of(study)
    assert paired_differences(scores, "bi_cl", "floor")[1].tolist() == [[-10, -8], [10, 12], [0, 2]]
    assert paired_differences(scores, "grl_sft", "bi_cl")[1].tolist() == [[-1], [1], [0]]
    assert paired_differences(scores, "floor", "base_causal")[1].shape == (3, 1)


def test_rows_without_a_common_seed_cannot_be_compared(study):
    scores = scores_of([*study, result("echo", 7, A=1.0)])
    with pytest.raises(ValueError, match="share no seed or no task"):
        paired_differences(scores, "echo", "bi_cl")
    assert "echo" not in [comparison.row for comparison in against(scores, "bi_cl")]


def test_equal_differences_have_an_interval_of_no_width():
    assert bootstrap(np.full((4, 2), 1.5)) == Interval(1.5, 1.5, 1.5, 4, 2)


def test_the_interval_is_that_of_the_mean_of_independent_draws():
    """For one seed the bootstrap variance of the mean is the sample variance over n (Efron and Tibshirani 1993)."""
    difference_KS = np.random.default_rng(3).normal(2.0, 1.0, (200, 1))
    found = bootstrap(difference_KS)
    half = 1.96 * difference_KS.std() / np.sqrt(200)
    assert found.mean == pytest.approx(difference_KS.mean())
    assert found.low == pytest.approx(found.mean - half, abs=0.03)
    assert found.high == pytest.approx(found.mean + half, abs=0.03)


def test_the_interval_widens_with_what_varies_between_seeds():
    tasks_K1 = np.linspace(-1, 1, 20)[:, None]
    seeds_1S = np.array([[-3.0, 3.0]])
    alone, both = bootstrap(tasks_K1 + np.zeros((1, 2))), bootstrap(tasks_K1 + seeds_1S)
    assert both.high - both.low > 2 * (alone.high - alone.low)
    assert bootstrap(tasks_K1 + seeds_1S) == both  # the same on every call


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        (Interval(1, 0.5, 2, 3, 1), "holds"),
        (Interval(-1, -2, -0.5, 3, 1), "reversed"),
        (Interval(1, -0.5, 2, 3, 1), "holds on average, not beyond chance"),
        (Interval(-1, -2, 0.5, 3, 1), "does not hold, not beyond chance"),
        (Interval(1, 0.5, 1.5, 1, 2), "one task: says nothing of others"),
    ],
)
def test_a_verdict_says_no_more_than_the_interval(interval, verdict):
    assert Comparison("a", "b", interval).verdict == verdict


def test_the_claimed_ordering_starts_at_the_better_base_and_passes_over_rows_not_run(study):
    scores = scores_of(study)
    assert better_base(scores) == "base_causal"
    pairs = [(c.row, c.other) for c in claimed_order(scores)]
    assert pairs == [("bi_cl", "base_causal"), ("grl_sft", "bi_cl"), ("grl", "grl_sft")]


def test_the_better_base_is_better_on_the_tasks_that_both_have():
    causal, both = result("base_causal", None, A=5.0), result("base_bidirectional", None, A=4.0, B=90.0)
    assert better_base(scores_of([causal, both])) == "base_causal"
    assert better_base(scores_of([both])) == "base_bidirectional"
    assert better_base(scores_of([causal, result("base_bidirectional", None, B=90.0)])) is None


def test_table_2_averages_tasks_and_not_types(study):
    table = by_type(study)
    assert table.head == ["", "seeds", "Retrieval (1)", "STS (2)", "Average (3)"]
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["Base, causal"] == ["-", "10.00", "25.00", "20.00"]
    assert rows["Bi + CL"] == ["2", "61.00 ± 1.41", "46.00 ± 1.41", "51.00 ± 1.41"]
    assert rows["GRL_SFT"][0] == "1" and "±" not in rows["GRL_SFT"][1]


def test_table_3_has_a_row_per_task_by_type(study):
    table = by_task(study)
    assert [row[:2] for row in table.rows] == [["B", "Retrieval"], ["A", "STS"], ["C", "STS"], ["Average", ""]]
    assert table.rows[1][table.head.index("GRL")] == "45.00 ± 0.00"


def test_an_average_over_other_tasks_is_not_shown(study):
    table = by_type([*study, result("echo", 0, A=99.0)])
    assert next(row for row in table.rows if row[0] == "Echo")[1:] == ["1", "-", "-", "-"]


def test_tables_are_written_in_three_formats(study, tmp_path):
    tables = write_tables(study, tmp_path)
    assert {*tables} == {"table2", "table3", "ordering", "against_bi_cl", "against_better_base", "against_bag_of_words"}
    assert {path.name for path in tmp_path.iterdir()} == {f"{t}.{e}" for t in tables for e in ("md", "csv", "tex")}
    with (tmp_path / "table2.csv").open() as file:
        assert list(csv.reader(file)) == [tables["table2"].head, *tables["table2"].rows]
    latex = (tmp_path / "table2.tex").read_text()
    assert r"GRL\_SFT & 1 &" in latex and r"51.00 $\pm$ 1.41 \\" in latex and latex.count("&") == 4 * 7
    assert "| GRL | GRL_SFT |" in (tmp_path / "ordering.md").read_text()


def test_curves_gather_the_seeds_of_a_row(study):
    _, _, belongs = plots.CURVES[0]
    assert plots.curves_of(study, belongs)["contrastive_loss"]["grl"] == {1: [2.0, 3.0]}
    _, _, belongs = plots.CURVES[1]
    assert plots.curves_of(study, belongs) == {
        "eval_rank_agreement": {"bi_cl": {1: [0.0, 0.1]}, "grl_sft": {1: [0.0]}, "grl": {1: [0.0, 0.1]}}
    }


def test_of_a_task_the_seeds_alone_vary(study):
    intervals = plots.task_intervals(scores_of(study), "grl", "bi_cl")
    assert intervals["A"] == Interval(4.0, 3.0, 5.0, 1, 2)
    assert intervals["C"] == Interval(4.0, 4.0, 4.0, 1, 2)


def test_every_picture_that_has_something_to_show_is_drawn(study, tmp_path):
    drawn = plots.write_plots(study, tmp_path)
    assert [path.name for path in drawn] == ["difference_to_bi_cl.png", "training.png", "rank_agreement.png"]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in drawn)
    assert plots.write_plots(study[:1], tmp_path / "none") == []
