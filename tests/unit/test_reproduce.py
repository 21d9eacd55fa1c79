"""The parts of ``ullme reproduce`` that need no model: rows, budgets, data, overlap, results, tables, pictures."""

import numpy as np
import pytest

from ullme.config import read_run_file
from ullme.reproduce.budgets import BUDGETS, budget_of
from ullme.reproduce.floor import BagOfWords
from ullme.reproduce.release_card import compared_rows
from ullme.reproduce.results import RowResult, TaskScore, file_of, load_result, load_results
from ullme.reproduce.rows import ABLATIONS, NAMED, ROWS, chosen_rows, shipped_configs
from ullme.types import PairExample

PAIRS = [PairExample(f"what is thing number {i}?", (f"the thing with number {i}",), ("no",)) for i in range(50)]


def test_rows_stand_in_the_order_of_the_tables_whatever_was_asked_first(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("model: {}")
    assert [row.name for row in chosen_rows(["grl", str(own), "floor", "grl"])] == ["floor", "grl", "mine"]
    assert [row.name for row in chosen_rows()] == list(ROWS)


@pytest.mark.parametrize("row", ABLATIONS.values(), ids=ABLATIONS)
def test_a_variant_is_its_row_with_one_thing_changed(row):
    path = shipped_configs() / row.stages[-1]
    before, after = (flat(read_run_file(path, changes).model_dump(mode="json")) for changes in ((), row.changes))
    key = row.changes[0].partition("=")[0]
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} == {key}


def test_grl_under_echo_reads_as_echo_and_learns_as_grl():
    echo, grl, both = (read_run_file(shipped_configs() / NAMED[name].stages[0]) for name in ("echo", "grl", "grl_echo"))
    assert both.objectives == grl.objectives
    assert both.model.model_copy(update={"lora": echo.model.lora}) == echo.model
    assert both.model.lora.model_copy(update={"name": "echo"}) == echo.model.lora


def flat(values, before=""):
    """Nested values by dotted keys."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    inner = {key: value for name, item in items for key, value in flat(item, f"{before}.{name}".strip(".")).items()}
    return inner or {before: values}


@pytest.mark.parametrize(
    ("names", "message"),
    [(["grll"], "rows: 'grll' is unknown; did you mean 'grl'"), (["none.yaml"], "there is no run file 'none.yaml'")],
)
def test_an_unknown_row_is_refused(names, message):
    with pytest.raises(ValueError, match=message):
        chosen_rows(names)


def test_a_run_file_that_is_called_like_a_row_is_refused(tmp_path):
    (tmp_path / "grl.yaml").write_text("model: {}")
    with pytest.raises(ValueError, match=r"two rows are called 'grl'"):
        chosen_rows(["bi_cl", str(tmp_path / "grl.yaml")])


def test_every_number_of_a_budget_can_be_overridden():
    budget = budget_of("smoke", ["steps=7", "seeds=[3,4]", "tasks=BIOSSES"])
    assert (budget.steps, budget.seeds, budget.tasks) == (7, (3, 4), ("BIOSSES",))
    assert budget.batch_size == BUDGETS["smoke"].batch_size


def test_only_some_rows_get_every_seed_where_a_budget_says_so():
    budget = budget_of("small")
    assert budget.seeds_of("grl") == budget.seeds_of("bi_cl") == (0, 1)
    assert budget.seeds_of("causal_cl") == (0,)
    assert budget_of("gpu").seeds_of("causal_cl") == (0, 1, 2)


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("smok", "steps=1", "budget: 'smok' is unknown; did you mean 'smoke'"),
        ("smoke", "step=1", "override 'step=1': no key of a budget; did you mean 'steps'"),
        ("smoke", "steps=0", "budget 'smoke': steps: 0"),
    ],
)
def test_a_budget_that_does_not_exist_is_refused(name, override, message):
    with pytest.raises(ValueError, match=message):
        budget_of(name, [override])


def test_the_floor_sees_words_and_neither_their_order_nor_their_case():
    one, same, other, none = BagOfWords().encode(["The red cat", "cat the RED", "blue dogs bark", "?"])
    assert np.allclose(one, same) and np.isclose(one @ one, 1) and abs(one @ other) < 0.5
    assert not none.any()


def result(row="grl", seed=0, made_of="x", **scores):
    listed = tuple(TaskScore(task, "STS", score, "cosine_spearman", "r") for task, score in scores.items())
    return RowResult(row, ROWS[row].label if row in ROWS else row, seed, made_of, listed)


def test_a_release_is_compared_with_rows_that_have_all_its_tasks():
    scores = result(A=1.0, B=2.0).scores
    causal, both = result("base_causal", None, A=9.0), result("base_bidirectional", None, A=3.0, B=4.0)
    floor = result("floor", None, A=5.0, B=6.0, C=7.0)
    assert compared_rows([causal, both, floor], scores) == [both, floor]


def test_results_are_read_as_they_were_kept_in_the_order_of_the_tables(tmp_path):
    kept = [result("floor", None, A=1.0), result("bi_cl", 1, A=2.0), result("grl", 0, A=3.0), result("mine", 0, A=4.0)]
    for one in reversed(kept):
        one.save(tmp_path)
    result("grl", 5, made_of="other", A=9.0).save(tmp_path)
    assert load_results(tmp_path, ["x"]) == (kept, ["grl-seed5.json"])


def test_a_damaged_result_is_named(tmp_path):
    place = file_of(tmp_path, "grl", 0)
    place.parent.mkdir()
    place.write_text('{"row": "grl"')
    with pytest.raises(ValueError, match=r"grl-seed0.json: is no result of a row .*delete it"):
        load_result(place)
