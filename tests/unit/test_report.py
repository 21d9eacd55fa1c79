"""``ullme report``: every fact in the page is the run's, it loads nothing, and no text of a run is markup in it."""

import json
import shutil

import numpy as np
import pytest
import yaml

from tests.pages import HOSTILE, checked
from tests.tiny import tiny_folder
from ullme.apps.environment import hardware
from ullme.apps.report import report
from ullme.apps.report_examples import Comparison, Found, ask, question_of, ranks
from ullme.apps.report_files import read_run
from ullme.cli import main
from ullme.cli.export import _recipe
from ullme.data import PairDataset
from ullme.models import ULLME
from ullme.types import PairExample


def row(i):
    word, other = ("cat dog tree house river stone cloud bread".split()[(i + k) % 8] for k in (0, 3))
    query = f"{word} {i}? {HOSTILE if i == 0 else ''}"
    return {"query": query, "positive": f"the {word} that is called {i}", "negatives": [f"a {other} of {i}"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A finished run of six steps, with held-out rows and a score."""
    folder = tmp_path_factory.mktemp("report")
    tiny_folder(folder / "base")
    for name, rows in (("pairs", range(20)), ("held_out", range(30))):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in rows))
    run = {
        "model": {"name_or_path": str(folder / "base"), "lora": {"r": 3, "alpha": 7}, "max_length": 48},
        "data": {"train": [{"path": str(folder / "pairs.jsonl")}], "eval": [{"path": str(folder / "held_out.jsonl")}]},
        "objectives": [{"type": "contrastive", "temperature": 0.07}, {"type": "sft", "weight": 0.25}],
        "trainer": {
            "output_dir": str(folder / "run"),
            "max_steps": 6,
            "per_device_train_batch_size": 5,
            "learning_rate": 3e-3,
            "save_steps": 3,
            "logging_steps": 1,
            "seed": 17,
            "report_to": "none",
            "use_cpu": True,
        },
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    assert main(["train", str(folder / "run.yaml")]) == 0
    (folder / "run" / "scores.md").write_text(
        "| Dataset | Type | eng |\n| --- | --- | ---: |\n| MSMARCO | Retrieval | 12.34 |\n"
        "| **Average** | 1 datasets | 12.34 |\n"
    )
    return folder


@pytest.fixture(scope="module")
def page(place):
    return checked(report(place / "run", place / "out" / "report.html").place)


def test_what_was_trained_on_what_is_the_run_files(place, page):
    facts = [
        *(str(place / "base"), "LoRA, rank 3, alpha 7, on all-linear", "bidirectional", "mean", "48 tokens"),
        *("6 of 6", "5 queries", "0.003, linear, 0 warm-up steps", "17", "pairs.jsonl", "held_out.jsonl", "20", "30"),
    ]
    assert not [fact for fact in facts if fact not in page.texts]
    assert any(text.startswith("loss NTXentLoss, temperature 0.07") for text in page.texts)
    assert page.texts[page.texts.index("sft") + 1] == "0.25"


def test_machine_and_versions_are_those_recorded_when_it_was_trained(place, page):
    call = json.loads((place / "run" / "calls.json").read_text())["calls"]
    assert len(call) == 1 and call[0]["hardware"] == hardware() and call[0]["seconds"] > 0
    assert all(version in page.texts for version in call[0]["versions"].values())


def test_losses_and_scores_are_those_that_were_logged(place, page):
    history = json.loads((place / "run" / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    held_out = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert f"{losses[-1]:.3f}" in page.texts and f"from {losses[0]:.3f}" in page.texts
    assert f"{held_out[-1]:.3f}" in page.texts and "12.34" in page.texts
    assert "svg" in page.tags and "eval sft loss" in page.texts
    assert "35.8" in page.texts and "Mistral-7B-v0.1, Listing 3" in page.texts


def test_texts_of_a_run_are_text_in_its_page(place, tmp_path):
    """Every row that moved is shown, so that the hostile one is among them or stands first for another."""
    page = checked(report(place / "run", tmp_path / "all.html", examples=30).place)
    assert any(HOSTILE in text for text in page.texts)


def test_examples_are_the_rows_that_moved_most_by_ranks_computed_here(place, page):
    """Ranks by hand: cosine of plain ``encode``, places above the positive counted one by one."""
    rows = [row(i) for i in range(30)]
    passages = list(dict.fromkeys(p for r in rows for p in (r["positive"], *r["negatives"])))

    def by_hand(model, attention):
        q, p = (model.encode(t, attention=attention) for t in ([r["query"] for r in rows], passages))
        cosine = (q @ p.T) / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(p, axis=1)
        return [1 + sum(s > c[passages.index(r["positive"])] for s in c) for r, c in zip(rows, cosine, strict=True)]

    base, trained = ULLME(str(place / "base"), max_length=48), ULLME.from_pretrained(place / "run" / "model")
    before = max((by_hand(base, a) for a in ("causal", "bidirectional")), key=lambda r: np.mean(1 / np.array(r)))
    after = by_hand(trained, None)
    gains = sorted((b - a for b, a in zip(before, after, strict=True) if b > a), reverse=True)
    shown = [
        tuple(map(int, t.removeprefix("rank ").split(" → "))) for t in page.texts if t.startswith("rank ") and "→" in t
    ]
    better, worse = [b - a for b, a in shown if b > a], [b - a for b, a in shown if b < a]
    assert better == gains[:5] and worse == sorted(b - a for b, a in zip(before, after, strict=True) if b < a)[:5]
    assert set(shown) <= set(zip(before, after, strict=True))
    assert f"Improved: {len(gains)} of 30 queries" in page.texts
    assert f"{100 * np.mean(np.array(after) == 1):.1f}" in page.texts


def test_ranks_count_what_scores_as_the_nearest_positive_or_higher():
    score_QP = np.array([[0.9, 0.5, 0.7, 0.1], [0.2, 0.2, 0.1, 0.3], [0.4, 0.4, 0.4, 0.4]])
    assert ranks(score_QP, [{1, 3}, {0}, {0, 2}]) == [3, 3, 3]  # a model that tells nothing apart is not first


def test_a_run_that_is_to_go_on_has_no_model_or_scores_yet(place, tmp_path):
    """More steps were asked for than its model has: what lies there is of its earlier end."""
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    assert _recipe(run / "model") is not None
    stated = run / "run.yaml"
    stated.write_text(stated.read_text().replace("max_steps: 6", "max_steps: 8"))
    kept = read_run(run)
    assert kept.model is None and kept.scores is None and "(step 6 of 6)" in kept.missing[0]
    assert _recipe(run / "model") is None


def test_examples_say_what_was_found_instead():
    question = question_of(PairDataset.from_examples([PairExample(f"q{i}", (f"p{i}",)) for i in range(3)]))
    base, trained = Found("base, causal", [3, 1, 2], [1, 1, 2]), Found("trained", [1, 2, 2], [0, 0, 2])
    better, worse = Comparison(question, {}, base, trained).examples(5)
    assert [(e.query, e.ranks, e.first, e.first_right) for e in better.items] == [
        ("q0", (3, 1), ("p1", "p0"), (False, True))
    ]
    assert [(e.query, e.ranks) for e in worse.items] == [("q1", (1, 2))]
    assert "1 as before" in worse.title


def test_an_instruction_stands_before_the_query_as_in_training(tmp_path):
    model = ULLME(str(tiny_folder(tmp_path / "base")))
    rows = [PairExample("a", ("b", "c"), ("d",), "Find it."), PairExample("e", ("f",))]
    found = ask(model, question_of(PairDataset.from_examples(rows)), "x", None, prompts={}, bf16=False)
    vectors = model.encode(["b", "c", "d", "f"], normalize_embeddings=True)
    query = model.encode("a", prompt="Instruct: Find it.\nQuery: ", normalize_embeddings=True)
    assert found.first_Q[0] == int((vectors @ query).argmax())


def test_an_unfinished_run_is_reported_with_what_it_lacks(place, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.yaml").write_text((place / "run" / "run.yaml").read_text())
    assert main(["report", str(tmp_path / "run")]) == 0
    shown = " ".join(checked(tmp_path / "run" / "report.html").texts)
    assert "The run has not ended (no checkpoint yet), so there is no model" in shown
    assert "did not record on which machine" in shown and "svg" not in checked(tmp_path / "run" / "report.html").tags
    assert "not in the report: The run has not ended" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.yaml", "model: [", "run.yaml: is no YAML"),
        ("checkpoint-6/trainer_state.json", '{"log_history": [', "remove this checkpoint's folder"),
        (
            "checkpoint-6/trainer_state.json",
            '{"global_step": 1, "max_steps": 1, "log_history": [{}]}',
            "log_history.step",
        ),
        ("calls.json", '{"rows": {}, "calls": [{}]}', "it lacks calls.started"),
        ("scores.md", "| a |\n", "no whole table in it"),
    ],
)
def test_a_damaged_file_is_named_with_a_cure(place, tmp_path, capsys, name, content, message):
    folder = tmp_path / "run"
    (folder / "checkpoint-6").mkdir(parents=True)
    for kept in ("run.yaml", "calls.json", "scores.md", "checkpoint-6/trainer_state.json"):
        (folder / kept).write_text((place / "run" / kept).read_text())
    (folder / name).write_text(content)
    assert main(["report", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error and name in error


def test_what_is_no_run_is_refused_with_what_to_give(place, tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no run; give the folder that ullme train" in capsys.readouterr().err
    assert main(["report", str(place / "run" / "model")]) == 2
    assert f"is inside a run and not one itself; give '{place / 'run'}'" in capsys.readouterr().err


def test_no_examples_loads_no_model(place, tmp_path, monkeypatch):
    monkeypatch.setattr("ullme.apps.report.compare", lambda *a: pytest.fail("loaded a model"))
    found = report(place / "run", tmp_path / "r.html", examples=0)
    assert found.missing == ["Examples: left out, as asked for; --examples 5 loads both models and shows them."]
