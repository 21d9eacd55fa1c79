"""``ullme data``: what check finds and where, what stats count, what mine keeps."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from tests.tiny import tiny_folder, tiny_tokenizer
from tests.unit.data_samples import write_lines
from ullme.apps.data_check import EvaluationTexts, check_data
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
