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
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", "no judgement in qrels/test"),
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
