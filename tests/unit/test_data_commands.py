"""``ullme data``: what check finds and where, what stats count, what mine keeps."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from tests.corpora import tree
from tests.tiny import tiny_folder, tiny_tokenizer
from tests.unit.data_samples import write_lines
from ullme.apps import data_check
from ullme.apps.data_check import EvaluationTexts, Length, check_data
from ullme.apps.data_mine import Miner, mine_data
from ullme.apps.data_stats import data_stats, percentile
from ullme.cli import main
from ullme.data import DataSource, load_pairs

ROWS = [
    {"query": "what purrs at night", "positive": "a small cat purrs at night", "negatives": ["a dog barks"]},
    {"query": "what barks", "positive": "a dog barks", "negatives": ["a cat purrs", "a cat purrs"]},
    {"query": "what purrs at night", "positive": "a small cat purrs at night", "negatives": []},
    {"query": "what is long", "positive": "word " * 30 + "end", "negatives": []},
]


@pytest.fixture
def rows(tmp_path):
    return write_lines(tmp_path / "rows.jsonl", ROWS)


def test_check_names_every_kind_by_its_line(rows, tmp_path, capsys):
    with rows.open("a") as file:
        file.write('{"query": "q"}\n{\n')
    tests = {"query": "Do YOU know: what barks?", "positive": "No small cat purrs here"}
    other = write_lines(tmp_path / "held.jsonl", [tests, {**tests, "query": "A small cat, purrs (at night)!"}])
    report = tmp_path / "report.jsonl"
    options = ["--longest", "20", "--against", str(other), "--report", str(report)]
    assert main(["data", "check", str(rows), *options]) == 1
    found = [json.loads(line) for line in report.read_text().splitlines()]
    assert [(f["kind"], f["said"].split(": ")[0].removeprefix(str(rows))) for f in found] == [
        ("test text", ":1"),
        ("repeated text", ":2"),
        ("duplicate", ":3"),
        ("test text", ":3"),
        ("too long", ":4"),
        ("malformed", ", line 5"),
        ("malformed", ", line 6, column 2"),
    ]
    assert "stands in held" in found[0]["said"] and f"{rows}:1 too" in found[2]["said"]
    assert "31 words, more than 20" in found[4]["said"]
    assert "4 good rows" in capsys.readouterr().out


def test_good_data_pass(tmp_path, capsys):
    assert main(["data", "check", str(write_lines(tmp_path / "a.jsonl", ROWS[:1]))]) == 0
    assert "1 good rows" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "none.jsonl")]) == 1
    assert main(["data", "check", str(tmp_path / "a.jsonl"), "--against", "NoSuchTask"]) == 2
    assert "'NoSuchTask' is unknown" in capsys.readouterr().err


def test_a_text_that_is_judged_weighs_more_than_one_that_is_searched(rows):
    searched = EvaluationTexts("searched", (), ["a small cat purrs at night"])
    judged = EvaluationTexts("judged", ["what purrs at night"], ["what purrs at night"])
    source = DataSource(path=str(rows))
    only = check_data([source], [searched])
    assert only.good and only.counts["passage of a test"] == 2 and not only.counts["test text"]
    both = check_data([source], [searched, judged])
    assert not both.good and both.counts["test text"] == 2 and both.counts["passage of a test"] == 2


def test_stats_count_every_text(rows, tmp_path, capsys):
    found = data_stats([DataSource(path=str(rows))], tokens=lambda text: 2 * len(text.split()))
    assert found.lengths["query", "words"] == {4: 2, 2: 1, 3: 1}
    assert found.lengths["query", "tokens"] == {8: 2, 4: 1, 6: 1}
    assert found.lengths["negatives", "characters"] == {11: 3}
    assert found.negatives == {0: 2, 1: 1, 2: 1}
    assert dict(found.counts) == {
        "rows": 4,
        "rows there before": 1,
        "queries there before": 1,
        "passages there before": 3,
    }
    assert main(["data", "stats", str(rows), "--plots", str(tmp_path / "plots")]) == 0
    assert "rows with 2 negatives" in capsys.readouterr().out
    pictures = sorted((tmp_path / "plots").iterdir())
    assert [p.name for p in pictures] == ["lengths-characters.png", "lengths-words.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in pictures)


def test_tokens_are_those_of_the_model(rows, tmp_path, capsys):
    model = tiny_folder(tmp_path / "tiny")
    assert main(["data", "stats", str(rows), "--model", str(model)]) == 0
    assert "tokens" in capsys.readouterr().out
    assert main(["data", "check", str(rows), "--model", str(model), "--longest", "10"]) == 0
    assert "too long" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["你好世界" * 45, "🙂" * 60, "e\u0301" * 80], ids=["Chinese", "emoji", "accents"])
def test_a_text_of_more_tokens_than_characters_is_too_long(tmp_path, capsys, text):
    model = tiny_folder(tmp_path / "tiny")
    path = write_lines(tmp_path / "rows.jsonl", [{"query": "short", "positive": text}])
    tokens = len(tiny_tokenizer()(text)["input_ids"])
    assert len(text) <= 200 < tokens
    report = tmp_path / "report.jsonl"
    assert main(["data", "check", str(path), "--model", str(model), "--longest", "200", "--report", str(report)]) == 0
    assert [json.loads(line)["said"] for line in report.read_text().splitlines()] == [
        f"{path}:1: positives[0]: {tokens} tokens, more than 200"
    ]


def test_special_tokens_count_towards_the_length(rows):
    found = check_data([DataSource(path=str(rows))], length=Length("tokens", lambda text: len(text) + 300, 200))
    assert found.counts["too long"] == sum(1 + 1 + len(row["negatives"]) for row in ROWS)


# ---- the report of check ----


def beir(folder):
    (folder / "qrels").mkdir(parents=True)
    write_lines(folder / "corpus.jsonl", [{"_id": "a", "text": "a dog barks at the moon"}])
    write_lines(folder / "queries.jsonl", [{"_id": "q", "text": "what barks at the moon"}])
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq\ta\t1\n")
    return folder


OWN_INPUTS = {
    "the file": (["pairs.jsonl"], "pairs.jsonl"),
    "by another path": (["pairs.jsonl"], "more/../pairs.jsonl"),
    "by a link": (["pairs.jsonl"], "link.jsonl"),
    "the file behind a link": (["link.jsonl"], "pairs.jsonl"),
    "the second file": (["pairs.jsonl", "more/b.jsonl"], "more/b.jsonl"),
    "of a pattern": (["more/*.jsonl"], "more/b.jsonl"),
    "of a folder": (["beir"], "beir/corpus.jsonl"),
    "of a folder's folder": (["beir"], "beir/qrels/train.tsv"),
    "new in a folder": (["beir"], "beir/report.jsonl"),
    "linked from a folder": (["linked"], "pairs.jsonl"),
    "a test's file": (["pairs.jsonl", "--against", "held.jsonl"], "held.jsonl"),
    "a test's folder": (["pairs.jsonl", "--against", "beir"], "beir/queries.jsonl"),
    "a task's local data": (
        ["pairs.jsonl", "--against", "SciFact", "--data-dir", "tasks"],
        "tasks/mteb/scifact/corpus.jsonl",
    ),
}


@pytest.mark.parametrize("case", OWN_INPUTS)
def test_a_report_over_what_is_read_is_refused_before_it_is_read(tmp_path, monkeypatch, capsys, case):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "pairs.jsonl", ROWS)
    write_lines(tmp_path / "held.jsonl", ROWS)
    for name in ("more", "linked", "tasks/mteb/scifact"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("more/a.jsonl", "more/b.jsonl", "tasks/mteb/scifact/corpus.jsonl"):
        write_lines(tmp_path / name, ROWS)
    for name in ("link.jsonl", "linked/train.jsonl"):
        os.symlink(tmp_path / "pairs.jsonl", tmp_path / name)
    beir(tmp_path / "beir")
    before = tree(tmp_path)
    monkeypatch.setattr(data_check, "check_data", None)
    arguments, report = OWN_INPUTS[case]
    assert main(["data", "check", *arguments, "--report", report]) == 2
    error = capsys.readouterr().err
    assert f"report: {report!r} " in error and "name another file" in error and error.count("\n") == 1
    assert tree(tmp_path) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("broken"), OSError("no room")])
def test_a_check_that_fails_leaves_the_report_of_before(rows, tmp_path, monkeypatch, error):
    def failing(*sources, tell, **options):
        tell(data_check.Finding("malformed", "the first of many"))
        raise error

    report = tmp_path / "report.jsonl"
    report.write_text("the report of before\n")
    before = tree(tmp_path)
    monkeypatch.setattr(data_check, "check_data", failing)
    assert main(["data", "check", str(rows), "--report", str(report)]) != 0
    assert tree(tmp_path) == before
    monkeypatch.undo()
    assert main(["data", "check", str(rows), "--report", str(report)]) == 0
    assert "duplicate" in report.read_text() and sorted(tree(tmp_path)) == ["report.jsonl", "rows.jsonl"]


def test_a_report_may_be_a_link_or_a_device_which_stays_one(rows, tmp_path):
    (tmp_path / "old.jsonl").write_text("the report of before\n")
    os.symlink(tmp_path / "old.jsonl", tmp_path / "link.jsonl")
    assert main(["data", "check", str(rows), "--report", str(tmp_path / "link.jsonl")]) == 0
    assert (tmp_path / "link.jsonl").is_symlink() and "duplicate" in (tmp_path / "old.jsonl").read_text()
    os.symlink("/dev/null", tmp_path / "null")
    assert main(["data", "check", str(rows), "--report", str(tmp_path / "null")]) == 0
    assert (tmp_path / "null").is_symlink() and not os.path.isfile("/dev/null")


@pytest.mark.parametrize(("name", "said"), [("folder", "is a folder"), ("none/report.jsonl", "there is no folder")])
def test_a_report_that_cannot_be_written_is_refused(rows, tmp_path, capsys, name, said):
    (tmp_path / "folder").mkdir()
    assert main(["data", "check", str(rows), "--report", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: report: {str(tmp_path / name)!r}") and said in error


def test_no_other_output_of_data_is_put_over_what_is_read(rows, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    for name in ("passages.jsonl", "queries-0.jsonl", "out-embeddings/passages.jsonl", "corpus/passages.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_lines(tmp_path / name, [{"query": "what barks", "positive": "a dog", "text": "a dog"}])
    before = tree(tmp_path)
    mine = ["data", "mine", "no-model"]
    for command, said in (
        (["data", "convert", "rows.jsonl", "rows.jsonl"], "is there already"),
        ([*mine, "rows.jsonl", "rows.jsonl"], "is there already"),
        ([*mine, "passages.jsonl", "out.jsonl", "--embeddings", "."], "embeddings: '.' "),
        ([*mine, "queries-0.jsonl", "out.jsonl", "--embeddings", str(tmp_path)], "embeddings: "),
        ([*mine, "rows.jsonl", "out.jsonl", "--corpus", "passages.jsonl", "--embeddings", "."], "embeddings: "),
        ([*mine, "rows.jsonl", "out.jsonl", "--corpus", "corpus", "--embeddings", "corpus"], "embeddings: "),
        ([*mine, "out-embeddings/passages.jsonl", "out.jsonl"], "embeddings: 'out-embeddings' "),
    ):
        assert main(command) == 2
        assert said in capsys.readouterr().err
        assert tree(tmp_path) == before
    assert main(["data", "stats", "rows.jsonl", "--plots", "."]) == 0
    assert {name: tree(tmp_path)[name] for name in before} == before


def test_percentiles_are_values_that_occur():
    counted = {1: 50, 2: 45, 100: 5}
    assert [percentile(counted, p) for p in (50, 51, 95, 96, 100)] == [1, 2, 2, 100, 100]


# ---- mine ----

WORDS = ("cat", "dog", "cow", "owl")
PAIRS = [
    {"query": f"which {w}", "positive": f"the {w}", "instruction": "Name it" if w == "owl" else None} for w in WORDS
]
CORPUS = [f"{w} number {i}" for w in WORDS for i in range(3)]


class Counting:
    """Texts are near each other by the words that they share; remembers what it embedded."""

    prompts = {"document": "D: "}

    def __init__(self):
        self.seen = []

    def encode(self, texts, prompt="", **options):
        self.seen += [prompt + text for text in texts]
        return np.array([[float(w in t) for w in WORDS] + [0.6 * t.count("number")] for t in texts], dtype=np.float32)


@pytest.fixture
def mining(tmp_path):
    model = Counting()
    miner = Miner("counting", lambda device: model, lambda loaded: "counting")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(CORPUS) + "\n")
    source = DataSource(path=str(write_lines(tmp_path / "pairs.jsonl", PAIRS)))

    def mine(name, **options):
        return mine_data(source, tmp_path / name, miner, kept=tmp_path / "kept", corpus=corpus, **options)

    return mine, model


def negatives(path):
    data = load_pairs(str(path))
    return {data[i].query: data[i].negatives for i in range(len(data))}


def test_mined_negatives_are_near_and_within_the_margin(mining, tmp_path):
    mine, _ = mining
    assert mine("out.jsonl", count=2) == (4, 0, 8)
    assert all(
        text in CORPUS and query.split()[1] in text
        for query, two in negatives(tmp_path / "out.jsonl").items()
        for text in two
    )
    assert mine("far.jsonl", count=2, max_score=0.5) == (4, 0, 8)
    for query, two in negatives(tmp_path / "far.jsonl").items():
        assert all(query.split()[1] not in text for text in two)


def test_another_margin_embeds_nothing_again(mining, tmp_path):
    mine, model = mining
    mine("a.jsonl")
    first = list(model.seen)
    assert len({*first}) >= len(CORPUS) + 2 * len(PAIRS)
    mine("b.jsonl", relative_margin=0.2, range_min=1)
    assert [text for text in model.seen[len(first) :] if text != "a"] == [], "only asked how wide an embedding is"


def test_prompts_are_the_rows_and_the_models(mining):
    mine, model = mining
    mine("a.jsonl")
    assert "D: the cat" in model.seen and "which cat" in model.seen
    assert "Instruct: Name it\nQuery: which owl" in model.seen


def test_scores_are_written_on_request(mining, tmp_path):
    mine, _ = mining
    mine("a.jsonl", count=2, keep_scores=True)
    row = load_pairs(str(tmp_path / "a.jsonl"))[0]
    assert len(row.scores) == 3 and row.scores[0] == pytest.approx(1) and row.scores[0] > row.scores[1] >= row.scores[2]


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_embedded(mining, tmp_path):
    mine, model = mining
    for name, to, message in (("a.csv", None, "tells no format"), ("pairs.jsonl", None, "is there already")):
        with pytest.raises(ValueError, match=message):
            mine(name, to=to)
    assert model.seen == []


def test_rows_that_no_candidate_fits_are_counted_with_the_option_that_looks_further(tmp_path, capsys):
    model, source = tiny_folder(tmp_path / "model"), write_lines(tmp_path / "pairs.jsonl", PAIRS)
    for name, more in (("a.jsonl", []), ("b.jsonl", ["--range-max", "5"])):
        strict = ["--max-score", "-1", *more]
        assert main(["data", "mine", str(model), str(source), str(tmp_path / name), *strict]) == 0
        said = capsys.readouterr().out
        assert f"{len(PAIRS)} rows have none" in said and ("--range-max" in said) is not bool(more)


def test_a_cross_encoders_scores_decide(tmp_path, capsys):
    """A random cross-encoder: bounds hold for its scores, and these are what is written."""
    from sentence_transformers import CrossEncoder

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=384, max_position_embeddings=64, num_labels=1, initializer_range=0.5, **sizes)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "cross")
    tiny_tokenizer().save_pretrained(tmp_path / "cross")
    model = tiny_folder(tmp_path / "model")
    source = write_lines(tmp_path / "pairs.jsonl", PAIRS[:3])
    (tmp_path / "corpus.txt").write_text("\n".join(CORPUS) + "\n")
    judge = CrossEncoder(str(tmp_path / "cross"))
    middle = float(np.median(judge.predict([(row["query"], text) for row in PAIRS[:3] for text in CORPUS])))

    def mined(name, *more):
        options = [
            "--corpus",
            str(tmp_path / "corpus.txt"),
            "--count",
            "2",
            "--relative-margin",
            "-1",
            "--scores",
            *more,
        ]
        assert main(["data", "mine", str(model), str(source), str(tmp_path / name), *options]) == 0
        data = load_pairs(str(tmp_path / name))
        return [data[i] for i in range(3) if data[i].negatives]

    for row in (found := mined("a.jsonl", "--cross-encoder", str(tmp_path / "cross"), "--max-score", f"{middle}")):
        scores = judge.predict([(row.query, text) for text in (*row.positives, *row.negatives)])
        np.testing.assert_allclose(scores, row.scores, rtol=1e-4, atol=1e-6)
        assert max(row.scores[1:]) <= middle
    assert found and [row.scores for row in found] != [row.scores for row in mined("b.jsonl")]
    assert "negatives for 3 rows" in capsys.readouterr().out
    missing = ["--cross-encoder", str(tmp_path / "none")]
    assert main(["data", "mine", str(model), str(source), str(tmp_path / "c.jsonl"), *missing]) == 2
    assert "cross-encoder" in capsys.readouterr().err
