"""What a study trains on: sources, what a test holds, cut texts, mined negatives, prompts."""

import json

import pytest
from datasets import Dataset

from tests.mteb_folders import write_msmarco
from ullme.data.mining import mine_negatives
from ullme.eval import select_tasks
from ullme.eval.local import with_local_data
from ullme.reproduce import mining
from ullme.reproduce.budgets import budget_of
from ullme.reproduce.data import Prepared, prepare, read_file, read_rows, sources_of
from ullme.reproduce.floor import BagOfWords
from ullme.reproduce.mining import mine, with_mined_negatives
from ullme.reproduce.overlap import Overlap, TaskTexts, _texts, find_overlap, texts_of
from ullme.reproduce.prompts import PROMPT_SETS, WANG, prompt_set
from ullme.reproduce.study import Study
from ullme.reproduce.tables import TYPES
from ullme.types import PairExample

PAIRS = [PairExample(f"what is thing number {i}?", (f"the thing with number {i}",), ("no",)) for i in range(50)]


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


@pytest.mark.parametrize("lost", ["in_batch_negatives: false", "weight: 3"])
def test_what_a_study_would_lose_of_a_source_is_refused(tmp_path, lost):
    (tmp_path / "list.yaml").write_text(f"- {{path: a.jsonl}}\n- {{path: b.jsonl, {lost}}}\n")
    with pytest.raises(ValueError, match=rf"data: .*list.yaml: 1.{lost.split(':')[0]}: "):
        sources_of(tmp_path / "list.yaml")


def prepared(folder, rows, overlap=None, **changes):
    budget = budget_of("smoke").model_copy(update={"held_out": 6, "rows_per_source": 20, **changes})
    return prepare(rows, overlap or Overlap(), budget, folder)


def queries(path):
    return [json.loads(line)["query"] for line in path.read_text().splitlines()]


def test_the_rows_of_a_query_become_one(tmp_path):
    pairs = [PairExample("q", ("yes", "also"), ("no",)), PairExample("q", ("too",), ("yes", "never")), *PAIRS]
    found = prepared(tmp_path, {"one": pairs}, rows_per_source=1000, held_out=0)
    (row,) = (row for row in read_file(found.train["one"]) if row.query == "q")
    assert (row.positives, row.negatives) == (("yes", "also", "too"), ("no", "never"))
    assert (found.sources["one"]["rows"], found.sources["one"]["queries"]) == (52, 51)


def test_no_row_is_both_trained_on_and_held_out(tmp_path):
    twice = [*PAIRS, *PAIRS[:25]]
    found = prepared(tmp_path, {"one": twice, "two": PAIRS})
    held_out = set(queries(found.held_out))
    assert len(held_out) == len(queries(found.held_out)) == 6
    trained = [query for path in found.train.values() for query in queries(path)]
    assert len(trained) == 2 * 20 and not held_out & set(trained)
    assert found.sources["one"]["rows"] == 75 and found.sources["one"]["trained on"] == 20


def test_the_same_rows_give_the_same_files_in_any_order(tmp_path):
    first = prepared(tmp_path / "a", {"one": PAIRS})
    again = prepared(tmp_path / "b", {"one": PAIRS[::-1]})
    assert first.sources == again.sources and len(first.sources["one"]["sha256"]) == 64
    assert prepared(tmp_path / "c", {"one": PAIRS[1:]}).sources != first.sources


def test_files_stay_in_their_folder_whatever_a_source_is_called(tmp_path):
    found = prepared(tmp_path / "data", {"/etc/../a b": PAIRS[:10], "/etc/../a_b": PAIRS[10:]}, held_out=0)
    assert [path.parent for path in found.train.values()] == [tmp_path / "data"] * 2
    assert sum(len(queries(path)) for path in found.train.values()) == 10 + 20


def test_a_row_that_a_test_holds_is_neither_trained_on_nor_held_out(tmp_path):
    judged = ["What is THING number 3", "the thing, with number 4."]
    overlap = find_overlap({"one": PAIRS}, [TaskTexts("Task", judged), TaskTexts("Other", ["one that no row holds"])])
    assert overlap.counts == {"Task": {"one": {"positives": 1, "queries": 1}}}
    found = prepared(tmp_path, {"one": PAIRS}, overlap, rows_per_source=1000)
    seen = {*queries(found.train["one"]), *queries(found.held_out)}
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


def test_texts_of_changed_local_data_are_the_new_ones(tmp_path, datasets_cache):
    found = []
    for seed in ("first", "second"):
        write_msmarco(tmp_path, seed=seed)
        (task,) = select_tasks("MSMARCO")
        found.append({text for text in texts_of(with_local_data(task, tmp_path)).judged if seed in text})
    assert [len(texts) for texts in found] == [10, 10]


def test_a_negative_that_a_test_judges_is_taken_from_its_row(tmp_path):
    pairs = [PairExample("who is it?", ("it is nobody",), ("a judged sentence of four words", "another")), *PAIRS]
    overlap = find_overlap({"one": pairs}, [TaskTexts("Task", ["A judged sentence, of four words"])])
    assert overlap.counts == {"Task": {"one": {"negatives": 1}}}
    found = prepared(tmp_path, {"one": pairs}, overlap, rows_per_source=1000, held_out=0)
    assert {row.query: row.negatives for row in read_file(found.train["one"])}["who is it?"] == ("another",)


def test_texts_are_cut_and_a_negative_that_begins_like_the_positive_is_gone(tmp_path):
    pair = PairExample("a b c d", ("one  two three four",), ("one two three five", "six seven"))
    found = prepared(tmp_path, {"one": [pair]}, words=3, held_out=0)
    (row,) = read_file(found.train["one"])
    assert (row.query, row.positives, row.negatives) == ("a b c", ("one two three",), ("six seven",))


COLOURS = [
    PairExample("red apple tree", ("a red apple on a tree",), ("far away from here",)),
    PairExample("red apple", ("the red apple",), ()),
    PairExample("green river stone", ("a stone in the green river",), ("red apple tree in the red garden",)),
]


def test_mined_negatives_are_near_passages_of_other_rows_and_none_nearer_than_the_positive():
    bag = BagOfWords().encode
    first, *_ = mine(COLOURS, bag, count=8, margin=0.05)
    assert "a stone in the green river" in first.negatives and not set(first.negatives) & set(first.positives)
    query, positive = bag([first.query, *first.positives])
    assert all(query @ negative <= 0.95 * (query @ positive) for negative in bag(first.negatives))
    assert "red apple tree in the red garden" in mine(COLOURS, bag, count=8, margin=0.0)[1].negatives
    assert "red apple tree in the red garden" not in first.negatives  # as near as the positive: perhaps another one


def test_negatives_that_people_chose_stay_first():
    kept = mine(COLOURS, BagOfWords().encode, count=2, margin=0.05, keep_own=True)
    assert kept[0].negatives[0] == "far away from here" and len(kept[0].negatives) == 2
    assert kept[2].negatives[0] == "red apple tree in the red garden"


def study_of(folder, data, **changes):
    budget = budget_of("smoke").model_copy(update=changes)
    return Study("model", budget, data, [], [], None, "none", folder, (), False, folder / "results", folder / "work")


def test_negatives_are_mined_once_and_again_when_rows_or_numbers_change(tmp_path, monkeypatch):
    data = prepared(tmp_path / "data", {"one": PAIRS})
    mined = with_mined_negatives(study_of(tmp_path, data), tmp_path / "mined").data
    assert all(len(row.negatives) == 8 for row in read_file(mined.train["one"]))
    assert mined.sources["one"]["rows with 8"] == mined.sources["one"]["trained on"] == 20
    assert mined.sources["one"]["sha256"] != data.sources["one"]["sha256"]
    assert {row.query for row in read_file(mined.held_out)} == {row.query for row in read_file(data.held_out)}
    calls = []
    monkeypatch.setattr(mining, "mine_negatives", lambda *a, **k: calls.append(a) or mine_negatives(*a, **k))
    again = with_mined_negatives(study_of(tmp_path, data), tmp_path / "mined").data
    assert again == mined and not calls
    with_mined_negatives(study_of(tmp_path, data, margin=0.1), tmp_path / "mined")
    assert len(calls) == 2  # the source and what is held out


def test_mining_that_was_killed_goes_on_with_the_source_it_was_in(tmp_path, monkeypatch):
    study = study_of(tmp_path, prepared(tmp_path / "data", {"one": PAIRS, "two": PAIRS[:30]}))
    mined = []

    def dying(rows, *args, **options):
        mined.append(len(rows))
        if len(mined) == 2:
            raise KeyboardInterrupt
        return mine_negatives(rows, *args, **options)

    monkeypatch.setattr(mining, "mine_negatives", dying)
    with pytest.raises(KeyboardInterrupt):
        with_mined_negatives(study, tmp_path / "mined")
    found = with_mined_negatives(study, tmp_path / "mined").data
    assert len(mined) == 4 and set(found.train) == {"one", "two"}  # the first once, the second twice, the held-out


def test_rows_keep_their_own_negatives_where_none_are_mined(tmp_path):
    data = prepared(tmp_path / "data", {"one": PAIRS})
    assert with_mined_negatives(study_of(tmp_path, data, mined=0), tmp_path / "mined").data is data


def test_an_unknown_labelled_source_is_refused(tmp_path):
    data = Prepared({"one": tmp_path}, None, {}, Overlap())
    with pytest.raises(ValueError, match=r"labelled: 'two' is no source; choose from one"):
        with_mined_negatives(study_of(tmp_path, data), tmp_path, ["two"])


def test_a_prompt_set_is_a_name_or_a_file(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("STS: Find the same\n")
    assert (
        prompt_set("task") == "task"
        and prompt_set("wang") == dict(WANG)
        and prompt_set(str(own)) == {"STS": "Find the same"}
    )
    own.write_text("- STS\n")
    with pytest.raises(ValueError, match=r"own.yaml' is no mapping"):
        prompt_set(str(own))
    with pytest.raises(ValueError, match=rf"prompts: 'wan' is no file and no set; .*{', '.join(PROMPT_SETS)}"):
        prompt_set("wan")


def test_every_type_of_task_in_the_tables_has_an_instruction():
    assert set(TYPES) <= WANG.keys()
