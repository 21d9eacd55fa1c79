"""The demo's logic: both scores against a hand computation, indexes on disk, what is shown, what is refused."""

import shutil
import socket
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny import tiny_folder
from ullme.apps import demo_page
from ullme.apps.demo import (
    LEAST_BAR,
    PassageSource,
    SearchedModel,
    Shown,
    agreement,
    bars,
    read_corpus,
    under,
)
from ullme.apps.demo_html import Column, answer_html, note_html
from ullme.cli import main
from ullme.models import ULLME

QUERY = "how is a date parsed"
PASSAGES = [
    "Parse a date from a string and return it.",
    "The cat sat on the mat and looked out of the window.",
    "Return the number of rows in the table, or -1 where nobody has counted them.",
    "Open a file for writing.",
    "A query asks for a passage; the passage answers the query.",
]


@pytest.fixture(scope="module")
def folder(tiny_models):
    path = tiny_models / "demo-llama"
    return path if path.exists() else tiny_folder(path, "llama", seed=3)


@pytest.fixture(scope="module")
def model(folder):
    return ULLME(str(folder), max_length=64).eval()


@pytest.fixture
def corpus_file(tmp_path):
    path = tmp_path / "passages.txt"
    path.write_text("\n\n".join(PASSAGES) + "\n\n")
    return path


def searched(model, corpus_file, folder, name="tiny"):
    return SearchedModel(name, model, read_corpus(PassageSource(corpus_file)), folder)


def mean_log_likelihood(folder, passage):
    """s_gen by hand: Transformers' own model and tokenizer, one passage, no padding."""
    tokenizer, llm = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    before = tokenizer(f"Query: {QUERY}\nPassage:\n", add_special_tokens=False)["input_ids"]
    after = [*tokenizer(passage, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        logits_TV = llm(torch.tensor([before + after])).logits[0]
    logp_TV = torch.log_softmax(logits_TV[len(before) - 1 : -1], dim=-1)
    return float(np.mean([logp_TV[i, token] for i, token in enumerate(after)]))


def by_hand_cosine(view, passage):
    a, b = view.encode_query(QUERY), view.encode_document(passage)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_both_scores_equal_a_computation_by_hand(model, folder, corpus_file, tmp_path, attention):
    shown = searched(model, corpus_file, tmp_path / "index").search(QUERY, 3, attention)
    by_hand = ULLME(str(folder), max_length=64, attention=attention).eval()
    cosine = {passage: by_hand_cosine(by_hand, passage) for passage in PASSAGES}
    assert [s.text for s in shown] == sorted(PASSAGES, key=lambda p: -cosine[p])[:3]
    for passage in shown:
        assert passage.s_rt == pytest.approx(cosine[passage.text], abs=1e-5)
        assert passage.s_gen == pytest.approx(mean_log_likelihood(folder, passage.text), abs=1e-4)


def test_the_attention_mode_changes_the_cosine_and_not_the_likelihood(model, corpus_file, tmp_path):
    both = searched(model, corpus_file, tmp_path / "index")
    found = {a: {s.id: s for s in both.search(QUERY, 5, a)} for a in ("bidirectional", "causal")}
    for passage in found["causal"].values():
        other = found["bidirectional"][passage.id]
        assert abs(passage.s_rt - other.s_rt) > 1e-3 and passage.s_gen == pytest.approx(other.s_gen, abs=1e-5)
    assert model.attention == "bidirectional" and under(model, "causal").causal_lm is model.causal_lm


def test_s_gen_is_computed_of_the_shown_passages_alone(model, corpus_file, tmp_path, monkeypatch):
    scored = []
    score = ULLME.score_texts
    monkeypatch.setattr(ULLME, "score_texts", lambda self, texts: scored.append(len(texts)) or score(self, texts))
    searched(model, corpus_file, tmp_path / "index").search(QUERY, 2, "bidirectional")
    assert scored == [2]


def test_an_index_is_made_once_and_anew_for_another_corpus_or_model(model, corpus_file, tmp_path, monkeypatch):
    index = tmp_path / "index"
    first = searched(model, corpus_file, index).search(QUERY, 5, "bidirectional")
    embedded = []
    embed = ULLME.embed_texts
    monkeypatch.setattr(
        ULLME, "embed_texts", lambda self, texts, *a: embedded.append(len(texts)) or embed(self, texts, *a)
    )
    assert searched(model, corpus_file, index).search(QUERY, 5, "bidirectional") == first
    assert embedded == [1], "more than the query was embedded again"
    changed = searched(model, corpus_file, index)
    corpus_file.write_text("One other passage.\n")
    with pytest.raises(ValueError, match=r"passages\.txt: has changed meanwhile; start ullme demo again"):
        changed.search(QUERY, 5, "bidirectional")
    assert [s.text for s in searched(model, corpus_file, index).search(QUERY, 5, "bidirectional")] == [
        "One other passage."
    ]
    cls = ULLME(model.settings.model_name_or_path, max_length=64, pooling="cls").eval()
    searched(cls, corpus_file, index).index("bidirectional")
    assert len(list(index.iterdir())) == 3


def test_an_index_is_a_corpus_of_ullme_search(folder, corpus_file, tmp_path, capsys):
    short = ULLME(str(folder), max_length=16).eval()
    searched(short, corpus_file, tmp_path / "index", name=str(folder)).index("causal")
    (index,) = (tmp_path / "index").iterdir()
    assert main(["search", str(index), PASSAGES[3], "--top-k", "1"]) == 0
    assert PASSAGES[3] in capsys.readouterr().out


def test_blank_lines_of_a_text_file_are_no_passages_and_an_id_is_a_line(corpus_file):
    rows = list(PassageSource(corpus_file).rows())
    assert [(row.id, row.text) for row in rows] == [(str(2 * i + 1), text) for i, text in enumerate(PASSAGES)]


def test_full_bars_are_the_best_of_the_list_and_every_bar_is_seen():
    assert bars([-3.0, -1.0, -2.0]) == [LEAST_BAR, 1.0, pytest.approx((1 + LEAST_BAR) / 2)]
    assert bars([0.5, 0.5]) == [1.0, 1.0] and bars([]) == []


def test_agreement_is_one_where_both_scores_rank_alike():
    def shown(*pairs):
        return [Shown(str(i), "text", *pair) for i, pair in enumerate(pairs)]

    assert agreement(shown((0.9, -1.0), (0.8, -2.0), (0.1, -9.0))) == 1
    assert agreement(shown((0.9, -9.0), (0.8, -2.0), (0.1, -1.0))) == -1
    assert agreement(shown((0.9, -1.0))) is None


def test_what_a_passage_holds_is_shown_as_text():
    hostile = "<script>alert(1)</script> ${1+1} {{value}} \"quoted\" 'too' &amp;"
    page = answer_html([Column("a/model", "causal", (Shown("<i>", hostile, 0.5, -1.25),))])
    assert "<script" not in page and "<i>" not in page.replace("<i style", "") and "${" not in page and "{{" not in page
    assert "0.500" in page and "−1.250" in page and "&amp;amp;" in page
    assert "<b>" not in note_html("a <b>", "error")


def test_each_column_says_where_the_other_has_a_passage():
    one, two, three = (Shown(name, name, 0.5, -1.0) for name in "abc")
    page = answer_html([Column("left", "causal", (one, two)), Column("right", "causal", (three, one))])
    assert page.count("right: not shown") == 1 and page.count("right: #2") == 1 and page.count("left: #1") == 1


# ---- The command ----


@pytest.fixture
def command(monkeypatch, tmp_path):
    """``ullme demo`` without its page: what the page would have been given."""
    given = {}
    monkeypatch.setattr(demo_page, "require_gradio", lambda: None)
    monkeypatch.setattr(demo_page, "demo_page", lambda *page: given.update(page=page))
    monkeypatch.setattr(demo_page, "serve", lambda *where: None)

    def run(*arguments):
        code = main(["demo", "--index", str(tmp_path / "index"), "--port", str(free_port()), *map(str, arguments)])
        return code, given

    return run


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_ten_thousand_lines_are_indexed_and_searched_from_one_command(command, tmp_path, tiny_models):
    lines = [f"entry {i}: {i * 7919 % 10007} apples" for i in range(10_000)]
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    small = tiny_models / "demo-small"
    if not small.exists():
        tiny_folder(small, "llama", num_hidden_layers=1)
    code, given = command("--model", small, "--corpus", tmp_path / "lines.txt", "--max-length", 32)
    assert code == 0
    (model,), about, run = given["page"]
    assert about.startswith("10,000 passages of ") and run is None
    shown = model.search(lines[6789], 5, "bidirectional")
    assert shown[0].text == lines[6789] and shown[0].s_rt == pytest.approx(1, abs=1e-5) and len(shown) == 5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--corpus": "none.txt"}, "none.txt: no such file"),
        ({"--corpus": "empty.txt"}, "empty.txt: no passages; write one per line"),
        ({"--corpus": "broken.jsonl"}, "broken.jsonl, line 2"),
        ({"--corpus": "latin.txt"}, "latin.txt, row 1: is not UTF-8"),
        ({"--model": "./no-such-model"}, "model folder './no-such-model' does not exist"),
        ({"--model": "encoder"}, "is a sentence-transformers model, which gives no likelihoods"),
        ({"--port": "99999"}, "port: 99999 is no port; give a number from 1 to 65535"),
        ({"--port": "taken"}, "cannot be used"),
        ({"--run": "none"}, "run: 'none' is no folder"),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else None,
)
def test_a_mistake_is_one_line_before_a_model_is_loaded(
    command, folder, corpus_file, tmp_path, monkeypatch, capsys, changes, said
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ullme.cli.model_options.embedder", lambda *_: pytest.fail("a model was loaded"))
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    shutil.copytree(folder, tmp_path / "encoder")
    (tmp_path / "encoder" / "modules.json").write_text("[]")
    with socket.create_server(("127.0.0.1", 0)) as server:
        given = {"--corpus": str(corpus_file), **changes}
        if given.get("--port") == "taken":
            given["--port"] = str(server.getsockname()[1])
        code, _ = command("--model", folder, *(part for pair in given.items() for part in pair))
    error = capsys.readouterr().err
    assert code == 2 and said in error and error.startswith("error: ") and error.count("\n") == 1


def test_without_gradio_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr(demo_page, "find_spec", lambda name: None)
    assert main(["demo", "--model", "none", "--corpus", "none.txt"]) == 2
    assert capsys.readouterr().err.endswith("run: pip install 'ullme[ui]'\n")


def test_a_model_without_likelihoods_is_refused_before_it_indexes(
    command, model, folder, corpus_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(model, "switch", replace(model.switch, head_reproduced=False))
    monkeypatch.setattr("ullme.cli.model_options.embedder", lambda *_: model)
    code, _ = command("--model", folder, "--corpus", corpus_file)
    assert code == 2 and "its likelihoods do not follow" in capsys.readouterr().err
    assert not (tmp_path / "index").exists()
