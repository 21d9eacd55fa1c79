"""A BEIR folder or a file of pairs is scored as a retrieval task of mteb's, beside the public ones."""

from __future__ import annotations

import json

import datasets
import pytest

from tests.evaluation import Recorder
from tests.mteb_folders import WORDS, write_jsonl, write_msmarco
from ullme.cli import main
from ullme.data import load_pairs
from ullme.eval import evaluate, select_tasks
from ullme.eval.own import content_hash, own_tasks


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return {"results_dir": tmp_path / "results", "show_progress_bar": False, "prompts": "none"}


def write_beir(folder, splits=("test",), wrong=0):
    """Ten passages, five queries; the first ``wrong`` of them are said to be answered by a passage that does not."""
    write_jsonl(
        folder / "corpus.jsonl",
        ({"_id": f"d{i}", "title": w.title(), "text": f"A passage about the {w}."} for i, w in enumerate(WORDS)),
    )
    write_jsonl(
        folder / "queries.jsonl", ({"_id": f"q{i}", "text": f"What is a {w}?"} for i, w in enumerate(WORDS[:6]))
    )
    (folder / "qrels").mkdir()
    lines = [f"q{i}\td{i + 5 if i < wrong else i}\t1" for i in range(5)]
    for split in splits:
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines, ""]))
    return folder


def write_pairs(path, count=5):
    rows = [
        {"query": f"What is a {w}?", "positive": f"The {w} is here.", "negatives": [f"No {WORDS[i + 1]}."]}
        for i, w in enumerate(WORDS[:count])
    ]
    write_jsonl(path, rows)
    return path


def test_own_and_public_tasks_stand_in_one_table(tmp_path, options):
    write_msmarco(tmp_path / "mteb")
    folder, pairs = write_beir(tmp_path / "handbook", wrong=1), write_pairs(tmp_path / "faq.jsonl")
    found = evaluate(Recorder(), ["MSMARCO", str(folder), pairs], data_dir=tmp_path / "mteb", **options)
    assert [(s.task, s.task_type, s.language) for s in found.scores] == [
        (name, "Retrieval", "eng") for name in ("MSMARCO", "handbook", "faq")
    ]
    assert found.score("faq") == 100
    assert found.score("MSMARCO") == 100
    assert 80 <= found.score("handbook") < 100
    table = found.to_markdown()
    assert all(f"| {name} | Retrieval |" in table for name in ("MSMARCO", "handbook", "faq"))
    assert "3 datasets" in table


def test_the_same_data_as_a_hub_folder_and_as_a_beir_folder_give_the_same_score(tmp_path, options):
    hub = write_msmarco(tmp_path / "mteb")
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    for part in ("corpus", "queries"):
        (folder / f"{part}.jsonl").write_text((hub / part / f"{part}.jsonl").read_text())
    rows = [json.loads(line) for line in (hub / "default" / "dev.jsonl").read_text().splitlines()]
    rows[0]["corpus-id"] = "p7"
    write_jsonl(hub / "default" / "dev.jsonl", rows)
    write_jsonl(folder / "qrels" / "dev.jsonl", rows)
    found = evaluate(Recorder(), ["MSMARCO", str(folder)], data_dir=tmp_path / "mteb", **options)
    assert found.score("beir") == found.score("MSMARCO") < 100
    own, public = ({k: v for k, v in r.scores["dev"][0].items() if "ndcg" in k} for r in found.task_results[::-1])
    assert own == public


def test_own_data_are_scored_beside_several_languages(tmp_path):
    path = str(write_pairs(tmp_path / "faq.jsonl"))
    assert [t.metadata.name for t in select_tasks(["STS22", path], languages=["eng", "deu"])] == ["STS22", "faq"]


def test_a_kept_score_counts_for_the_language_asked_for_now(tmp_path, options):
    path = str(write_pairs(tmp_path / "faq.jsonl"))
    scores = [evaluate(Recorder(), path, languages=[code], **options).scores for code in ("eng", "deu")]
    assert [(s.language, s.score) for found in scores for s in found] == [("eng", 100), ("deu", 100)]


def test_a_kept_score_belongs_to_the_content(tmp_path, options):
    folder, model = write_beir(tmp_path / "mine"), Recorder()
    first = evaluate(model, str(folder), **options)
    calls = len(model.calls)
    assert evaluate(model, str(folder), **options).scores == first.scores
    assert len(model.calls) == calls
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td9\t1\n")
    again = evaluate(model, str(folder), **options)
    assert again.score("mine") < first.score("mine") and len(model.calls) > calls


def test_public_data_of_one_name_are_not_mistaken_for_each_other(tmp_path, options):
    scores = []
    for name in "ab":
        qrels = write_msmarco(tmp_path / name) / "default" / "dev.jsonl"
        if name == "b":
            qrels.write_text(qrels.read_text().replace('"p0"', '"p9"'))
        scores.append(evaluate(Recorder(), "MSMARCO", data_dir=tmp_path / name, **options).score("MSMARCO"))
    assert scores[0] == 100 > scores[1]


def test_a_passage_is_its_title_and_text(tmp_path, options):
    model = Recorder()
    evaluate(model, str(write_beir(tmp_path / "mine")), **options)
    assert any(f"{WORDS[0].title()} A passage about the {WORDS[0]}." in texts for texts, _ in model.calls)
    asked = next(texts for texts, _ in model.calls if f"What is a {WORDS[0]}?" in texts)
    assert f"What is a {WORDS[5]}?" not in asked, "nobody judged it"


def test_a_passage_may_be_empty_as_in_known_collections(tmp_path, options):
    folder = write_beir(tmp_path / "mine")
    with (folder / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "d99", "title": "", "text": ""}\n')
    assert evaluate(Recorder(), str(folder), **options).score("mine") == 100
    with (folder / "qrels" / "train.tsv").open("w") as file:
        file.write("q0\td0\t1\nq0\td99\t0\n")
    with pytest.raises(ValueError, match="judged query 1: negatives.0.: empty text ''"):
        load_pairs(str(folder))


def test_a_folder_of_tasks_is_a_benchmark(tmp_path, options):
    home = tmp_path / "ours"
    home.mkdir()
    write_beir(home / "a")
    write_pairs(home / "b.jsonl")
    assert [t.metadata.name for t in select_tasks(benchmarks=str(home))] == ["a", "b"]
    assert {s.task for s in evaluate(Recorder(), benchmarks=str(home), **options).scores} == {"a", "b"}


def test_splits_and_language_can_be_chosen(tmp_path):
    folder = str(write_beir(tmp_path / "mine", ("train", "dev")))
    tasks = select_tasks(folder, eval_splits=["dev", "train"], languages=["deu"])
    assert [(t.metadata.name, t.eval_splits, t.languages) for t in tasks] == [("mine", ["dev", "train"], ["deu"])]
    with pytest.raises(ValueError, match="none is called 'test', and more than one is there; it has dev, train; name"):
        select_tasks(folder)
    with pytest.raises(ValueError, match="split: 'tset'; it has dev, train; name one"):
        select_tasks(folder, eval_splits=["tset"])


def test_names_are_told_apart(tmp_path):
    write_pairs(tmp_path / "SciFact.jsonl")
    (tmp_path / "other").mkdir()
    write_pairs(tmp_path / "other" / "faq.jsonl")
    write_pairs(tmp_path / "faq.jsonl", 3)
    assert [t.metadata.name for t in select_tasks(str(tmp_path / "SciFact.jsonl"))] == ["SciFact-own"]
    with pytest.raises(ValueError, match="is called 'faq' as another one is; rename it"):
        select_tasks([str(tmp_path / "faq.jsonl"), str(tmp_path / "other" / "faq.jsonl")])


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("corpus.jsonl", '{"_id": "d0", "text": 5}\n', "corpus.jsonl, line 1: text: 5 is no text"),
        ("queries.jsonl", '{"_id": "q0", "text": ""}\n', "queries.jsonl, line 1: text: '' is no text"),
        ("corpus.jsonl", '{"_id": "d0", "text": "a"}\n' * 2, "corpus.jsonl, line 2: id: 'd0' stands in an earlier row"),
        ("queries.jsonl", "{\n", "queries.jsonl, line 1, column 2: broken JSON"),
        ("qrels/test.tsv", "q0\tnowhere\t1\n", "test.tsv, line 1: there is no passage 'nowhere'; add it"),
        ("qrels/test.tsv", "q0\td0\tyes\n", "test.tsv, line 1: score: 'yes' is no whole number"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", "no judgement in the qrels of 'test'"),
    ],
)
def test_what_is_wrong_with_the_data_is_one_line(tmp_path, options, file, content, said):
    folder = write_beir(tmp_path / "mine")
    (folder / file).write_text(content)
    with pytest.raises(ValueError) as caught:
        evaluate(Recorder(), str(folder), **options)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_the_command_scores_a_folder(tmp_path, capsys, tiny_models):
    from tests.tiny import tiny_folder

    folder = write_beir(tmp_path / "mine")
    model = tiny_folder(tiny_models / "own")
    assert main(["eval", str(model), "--task", str(folder), "--results-dir", str(tmp_path / "results")]) == 0
    assert "| mine | Retrieval |" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert main(["eval", str(model), "--benchmark", str(tmp_path / "empty")]) == 2
    assert "no retrieval task is here" in capsys.readouterr().err


def write_splits(folder, splits=("train", "dev")):
    """A folder of MS MARCO's: ten passages, of which each split judges the next two."""
    folder.mkdir()
    (folder / "collection.tsv").write_text("".join(f"{i}\tThe {w} is here.\n" for i, w in enumerate(WORDS)))
    for k, split in enumerate(splits):
        asked = list(enumerate(WORDS))[2 * k : 2 * k + 2]
        (folder / f"queries.{split}.tsv").write_text("".join(f"{i}\tWhat is a {w}?\n" for i, w in asked))
        (folder / f"qrels.{split}.tsv").write_text("".join(f"{i}\t0\t{i}\t1\n" for i, _ in asked))
    return folder


def save_splits(folder, splits=("train", "test")):
    """What ``datasets`` saves of two splits that share no text."""
    rows = {
        split: [{"query": f"What is a {w}?", "positive": f"The {w} is here."} for w in WORDS[2 * k : 2 * k + 2]]
        for k, split in enumerate(splits)
    }
    datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in rows.items()}).save_to_disk(str(folder))
    return folder


def loaded(path, splits=None):
    """The splits that a path's task has, each with the words of its queries and its corpus."""
    (task,) = own_tasks(str(path), "eng", splits)
    task.load_data()
    words = {
        split: tuple([w for text in data[part]["text"] for w in WORDS if w in text] for part in ("queries", "corpus"))
        for split, data in task.dataset["default"].items()
    }
    assert list(words) == list(task.eval_splits)
    return words


def test_the_split_of_saved_datasets_is_the_one_asked_for(tmp_path):
    saved = save_splits(tmp_path / "saved")
    train, test = list(WORDS[:2]), list(WORDS[2:4])
    assert loaded(saved) == loaded(saved, ["test"]) == {"test": (test, test)}
    assert loaded(saved, ["train", "test"]) == {"train": (train, train), "test": (test, test)}
    with pytest.raises(ValueError, match="saved: split: 'tset'; it has train, test; name one; did you mean 'test'"):
        loaded(saved, ["tset"])
    assert loaded(save_splits(tmp_path / "one", ["dev"])) == {"dev": (train, train)}
    with pytest.raises(ValueError, match="none is called 'test', and more than one is there; it has a, b; name one"):
        loaded(save_splits(tmp_path / "two", ["a", "b"]))
    (saved / "dataset_dict.json").write_text("{")
    with pytest.raises(ValueError, match=r"dataset_dict.json: names no splits; save it again"):
        loaded(saved)


def test_the_split_of_an_ms_marco_folder_is_the_one_asked_for_and_its_corpus_the_collection(tmp_path):
    folder = write_splits(tmp_path / "marco")
    assert loaded(folder, ["dev"]) == {"dev": (list(WORDS[2:4]), list(WORDS))}
    assert loaded(folder, ["train"]) == {"train": (list(WORDS[:2]), list(WORDS))}
    with pytest.raises(ValueError, match="split: 'nonsense'; it has dev, train; name one"):
        loaded(folder, ["nonsense"])
    with pytest.raises(ValueError, match="none is called 'test', and more than one is there; it has dev, train"):
        loaded(folder)
    (folder / "queries.eval.tsv").write_text("7\tNobody judged it\n")
    with pytest.raises(ValueError, match="split: 'eval'; it has dev, train"):
        loaded(folder, ["eval"])
    assert loaded(write_splits(tmp_path / "tested", ["train", "test"])) == {"test": (list(WORDS[2:4]), list(WORDS))}


def test_an_ms_marco_collection_scores_as_the_same_data_in_a_beir_folder(tmp_path, options):
    marco, beir = write_splits(tmp_path / "marco", ["test"]), tmp_path / "beir"
    (beir / "qrels").mkdir(parents=True)
    write_jsonl(beir / "corpus.jsonl", ({"_id": str(i), "text": f"The {w} is here."} for i, w in enumerate(WORDS)))
    write_jsonl(beir / "queries.jsonl", ({"_id": str(i), "text": f"What is a {w}?"} for i, w in enumerate(WORDS[:2])))
    (marco / "qrels.test.tsv").write_text("0\t0\t0\t1\n1\t0\t9\t1\n")
    (beir / "qrels" / "test.tsv").write_text("0\t0\t1\n1\t9\t1\n")
    found = evaluate(Recorder(), [str(marco), str(beir)], **options)
    assert found.score("marco") == found.score("beir") < 100


def test_a_table_without_splits_has_one_split_of_any_name(tmp_path):
    pairs = write_pairs(tmp_path / "faq.jsonl")
    datasets.Dataset.from_list([{"query": "a", "positive": "b"}]).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "triples.tsv").write_text("a\tb\tc\n")
    for path in (pairs, tmp_path / "saved", tmp_path / "triples.tsv"):
        assert list(loaded(path)) == ["test"] and list(loaded(path, ["dev"])) == ["dev"]
        with pytest.raises(ValueError, match=r"split: 'dev', 'test' are 2, and its rows are one; name one"):
            loaded(path, ["dev", "test"])


@pytest.mark.parametrize("write", [save_splits, write_splits])
def test_rows_of_the_test_split_are_found_by_data_check(tmp_path, write, capsys):
    test = write(tmp_path / "ours", ["train", "test"])
    rows = [{"query": f"Tell me what is a {w}", "positive": f"It is: the {w} is here."} for w in WORDS[::2]]
    rows += [{"query": f"What is a {WORDS[2]}?", "positive": "Something that training brings."}]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    report = tmp_path / "report.jsonl"
    assert main(["data", "check", str(tmp_path / "pairs.jsonl"), "--against", str(test), "--report", str(report)]) == 1
    found = [json.loads(line) for line in report.read_text().splitlines()]
    assert [f["said"].split(": ")[0].rsplit(":")[-1] for f in found if f["kind"] == "test text"] == ["6"]
    capsys.readouterr()


def write_arguments(root, texts, named=str, right=None):
    """A dataset ``mteb/arguana`` and the same rows as a BEIR folder: queries ``named(i)``, passages 0..n.

    ``right(i)`` is the number of the passage that answers query i; as in ArguAna the next one, where not said.
    """
    hub, beir = root / "mteb" / "arguana", root / "beir"
    right = right or (lambda i: (i + 1) % len(WORDS))
    parts = {
        "corpus": [
            {"_id": str(i), "title": "Debate", "text": f"The {w}, and the {WORDS[(i + 1) % len(WORDS)]}."}
            for i, w in enumerate(WORDS)
        ],
        "queries": [{"_id": named(i), "text": text} for i, text in enumerate(texts)],
    }
    qrels = [{"query-id": named(i), "corpus-id": str(right(i)), "score": 1} for i in range(len(texts))]
    configs = ""
    for name, rows in {**parts, "default": qrels}.items():
        split = "test" if name == "default" else name
        write_jsonl(hub / name / f"{split}.jsonl", rows)
        configs += f"- config_name: {name}\n  data_files:\n  - split: {split}\n    path: {name}/{split}.jsonl\n"
        write_jsonl(beir / ("qrels/test.jsonl" if name == "default" else f"{name}.jsonl"), rows)
    (hub / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return beir


def argument(i):
    """The text of passage i, with other blanks and capitals."""
    return f"the {WORDS[i]},  and the {WORDS[(i + 1) % len(WORDS)]}. "


def ignores(folder):
    (task,) = own_tasks(str(folder))
    task.load_data()
    return task.ignore_identical_ids


def test_a_query_that_is_a_passage_does_not_find_itself_as_in_mteb(tmp_path, options):
    beir = write_arguments(tmp_path, [argument(i) for i in range(5)])
    found = evaluate(Recorder(), ["ArguAna", str(beir)], data_dir=tmp_path, **options)
    own, public = ({k: v for k, v in r.scores["test"][0].items() if "nauc" not in k} for r in found.task_results[::-1])
    del own["languages"], public["languages"]
    assert own == public and found.score("beir") > 80
    assert ignores(beir)


def test_ids_that_coincide_by_number_alone_keep_every_passage(tmp_path, options):
    """Both sides are numbered from 0: passage 0 is no copy of query 0, and may be the answer to it."""
    texts = [f"What is a {WORDS[i]}, and a {WORDS[(i + 1) % len(WORDS)]}?" for i in range(5)]
    scores = []
    for name, named in (("numbers", str), ("names", lambda i: f"q{i}")):
        beir = write_arguments(tmp_path / name, texts, named, right=lambda i: i)
        scores.append(evaluate(Recorder(), str(beir), **options).score("beir"))
        assert not ignores(beir)
    assert scores[0] == scores[1] > 90


@pytest.mark.parametrize("case", ["judged right", "another text", "another text, not judged"])
def test_one_pair_of_equal_ids_that_is_no_copy_keeps_all(tmp_path, case):
    beir = write_arguments(tmp_path, [argument(i) for i in range(5)])
    assert ignores(beir)
    if case == "judged right":
        with (beir / "qrels" / "test.jsonl").open("a") as file:
            file.write('{"query-id": "3", "corpus-id": "3", "score": 1}\n')
    else:
        queries = (beir / "queries.jsonl").read_text()
        changed = queries.replace("violin", "oboe") if case == "another text" else queries + '{"_id": "7", "text": "x"}'
        (beir / "queries.jsonl").write_text(changed)
    assert not ignores(beir)


def test_a_pair_judged_wrong_may_be_a_copy(tmp_path):
    beir = write_arguments(tmp_path, [argument(i) for i in range(5)])
    with (beir / "qrels" / "test.jsonl").open("a") as file:
        file.write('{"query-id": "3", "corpus-id": "3", "score": 0}\n')
    assert ignores(beir)


def test_scores_kept_before_a_change_of_the_rules_are_not_taken(tmp_path):
    (task,) = own_tasks(str(write_beir(tmp_path / "mine")))
    assert task.metadata.dataset["revision"] == f"local-2-{content_hash(tmp_path / 'mine')}"
