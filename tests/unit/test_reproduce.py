"""The parts of ``ullme reproduce`` that need no model: rows, budgets, data, overlap, results, tables, pictures."""

import json

import numpy as np
import pytest
from datasets import Dataset

from ullme.reproduce.budgets import BUDGETS, budget_of
from ullme.reproduce.data import prepare, read_rows, sources_of
from ullme.reproduce.floor import BagOfWords
from ullme.reproduce.overlap import Overlap, TaskTexts, _texts, find_overlap
from ullme.reproduce.results import RowResult, TaskScore, file_of, load_result, load_results
from ullme.reproduce.rows import ROWS, chosen_rows
from ullme.types import PairExample

PAIRS = [PairExample(f"what is thing number {i}?", (f"the thing with number {i}",), ("no",)) for i in range(50)]


def test_rows_stand_in_the_order_of_the_tables_whatever_was_asked_first(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("model: {}")
    assert [row.name for row in chosen_rows(["grl", str(own), "floor", "grl"])] == ["floor", "grl", "mine"]
    assert [row.name for row in chosen_rows()] == list(ROWS)


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
    budget = budget_of("cores")
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


def write_pairs(path, pairs):
    rows = [{"query": p.query, "positives": list(p.positives), "negatives": list(p.negatives)} for p in pairs]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_sources_are_a_folder_a_file_or_a_list_of_sources(tmp_path):
    for name in ("b", "a"):
        write_pairs(tmp_path / "pairs" / f"{name}.jsonl", PAIRS[:2])
    assert [source.name for source in sources_of(tmp_path / "pairs")] == ["a", "b"]
    assert [source.name for source in sources_of(tmp_path / "pairs" / "b.jsonl")] == ["b"]
    listed = tmp_path / "list.yaml"
    listed.write_text(f"- {{path: {tmp_path}/pairs/a.jsonl, instruction: Find it, limit: 1}}\n")
    rows = read_rows(listed, documentation=None)
    assert [(row.query, row.instruction) for row in rows["a.jsonl"]] == [(PAIRS[0].query, "Find it")]


def test_wrong_sources_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no .jsonl"):
        sources_of(tmp_path)
    (tmp_path / "list.yaml").write_text("- {pth: a}\n")
    with pytest.raises(ValueError, match=r"data: .*list.yaml: 0"):
        sources_of(tmp_path / "list.yaml")


def prepared(folder, rows, overlap=None, **changes):
    budget = budget_of("smoke").model_copy(update={"held_out": 6, "rows_per_source": 20, **changes})
    return prepare(rows, overlap or Overlap(), budget, folder)


def queries(path):
    return [json.loads(line)["query"] for line in path.read_text().splitlines()]


def test_no_row_is_both_trained_on_and_held_out(tmp_path):
    twice = [*PAIRS, *PAIRS[:25]]
    found = prepared(tmp_path, {"one": twice, "two": PAIRS})
    held_out = set(queries(found.held_out))
    assert len(held_out) == len(queries(found.held_out)) == 6
    trained = [query for path in found.train for query in queries(path)]
    assert len(trained) == 2 * 20 and not held_out & set(trained)
    assert found.sources["one"]["rows"] == 75 and found.sources["one"]["trained on"] == 20


def test_the_same_rows_give_the_same_files_in_any_order(tmp_path):
    first = prepared(tmp_path / "a", {"one": PAIRS})
    again = prepared(tmp_path / "b", {"one": PAIRS[::-1]})
    assert first.sources == again.sources and len(first.sources["one"]["sha256"]) == 64
    assert prepared(tmp_path / "c", {"one": PAIRS[1:]}).sources != first.sources


def test_files_stay_in_their_folder_whatever_a_source_is_called(tmp_path):
    found = prepared(tmp_path / "data", {"/etc/../a b": PAIRS[:10], "/etc/../a_b": PAIRS[10:]}, held_out=0)
    assert [path.parent for path in found.train] == [tmp_path / "data"] * 2
    assert sum(len(queries(path)) for path in found.train) == 10 + 20


def test_a_row_that_a_test_holds_is_neither_trained_on_nor_held_out(tmp_path):
    judged = ["What is THING number 3", "the thing, with number 4."]
    overlap = find_overlap({"one": PAIRS}, [TaskTexts("Task", judged), TaskTexts("Other", ["one that no row holds"])])
    assert overlap.counts == {"Task": {"one": {"positives": 1, "queries": 1}}}
    found = prepared(tmp_path, {"one": PAIRS}, overlap, rows_per_source=1000)
    seen = {*queries(found.train[0]), *queries(found.held_out)}
    assert seen == {p.query for p in PAIRS} - {PAIRS[3].query, PAIRS[4].query}
    assert found.sources["one"]["in a test"] == 2


def test_short_texts_that_are_equal_are_no_overlap():
    pairs = [PairExample("thank you", ("you are welcome",), ())]
    assert not find_overlap({"one": pairs}, [TaskTexts("Task", ["Thank you!", "You are welcome."])]).counts


def test_a_row_whose_passage_is_searched_is_counted_and_kept():
    overlap = find_overlap({"one": PAIRS}, [TaskTexts("Task", [], [PAIRS[7].positives[0], PAIRS[8].query])])
    assert overlap.corpus_counts == {"Task": {"one": {"positives": 1, "queries": 1}}}
    assert not overlap.counts and not any(overlap.touches(pair) for pair in PAIRS)


def test_nothing_left_to_train_on_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no row of one is left"):
        prepared(tmp_path, {"one": PAIRS[:1]}, find_overlap({"one": PAIRS[:1]}, [TaskTexts("Task", [PAIRS[0].query])]))


def test_texts_of_a_task_are_those_of_its_evaluated_splits():
    rows = Dataset.from_dict({"id": ["x"], "text": ["a passage"], "more": [["b", "c"]]})
    train = Dataset.from_dict({"text": ["of the training split"]})
    data = {"en": {"test": {"corpus": rows, "relevant_docs": {"q": {"x": 1}}}, "train": train}}
    assert sorted(_texts(data, {"test"})) == ["a passage", "b", "c"]


def test_the_floor_sees_words_and_neither_their_order_nor_their_case():
    one, same, other, none = BagOfWords().encode(["The red cat", "cat the RED", "blue dogs bark", "?"])
    assert np.allclose(one, same) and np.isclose(one @ one, 1) and abs(one @ other) < 0.5
    assert not none.any()


def result(row="grl", seed=0, made_of="x", **scores):
    listed = tuple(TaskScore(task, "STS", score, "cosine_spearman", "r") for task, score in scores.items())
    return RowResult(row, ROWS[row].label if row in ROWS else row, seed, made_of, listed)


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
