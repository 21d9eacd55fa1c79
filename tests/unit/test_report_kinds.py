"""``ullme report`` of a quickstart and of a study, and the parts of a page, most of them on files written by hand."""

import json
from functools import partial

import pytest

from tests.pages import HOSTILE, Checked, checked
from tests.tiny import tiny_folder
from ullme.apps.environment import hardware, versions
from ullme.apps.report import report
from ullme.apps.report_examples import compare, question_of
from ullme.apps.report_page import Bars, Example, Examples, Facts, Grid, Page, Picture, Section, Text, render
from ullme.apps.report_pictures import inline_svg
from ullme.apps.report_scores import PUBLISHED, base_scores, published, task_scores
from ullme.cli import main
from ullme.config import RunConfig
from ullme.data import PairDataset
from ullme.eval import evaluate
from ullme.models import ULLME
from ullme.reproduce.results import RowResult, TaskScore
from ullme.reproduce.rows import ROWS
from ullme.reproduce.tables import write_tables
from ullme.trainer.plots import plot_curves
from ullme.types import PairExample

HISTORY = [{"step": s, "loss": 3.0 - s, "grl_loss": 2.5 - s, "eval_loss": 3.5 - s} for s in (1, 2)]


def test_nothing_that_a_page_is_given_becomes_markup():
    example = Example(HOSTILE, HOSTILE, HOSTILE, (2, 1), (HOSTILE + "1", HOSTILE + "2"), (False, True))
    svg = inline_svg(partial(plot_curves, [{"step": 1, "loss": 2.0, f"{HOSTILE}$x_loss": 1.0}]), "p")
    blocks = [
        *(Facts([(HOSTILE, HOSTILE)], HOSTILE), Grid([HOSTILE], [[HOSTILE]], HOSTILE), Text(HOSTILE)),
        *(Bars([(HOSTILE, 200.0)], HOSTILE, HOSTILE), Picture(svg, HOSTILE)),
        Examples(HOSTILE, [example], True, (HOSTILE, HOSTILE)),
    ]
    page = Page(HOSTILE, HOSTILE, HOSTILE, [(HOSTILE,) * 3], [Section(HOSTILE, blocks, HOSTILE)], [HOSTILE], HOSTILE)
    read = Checked(render(page))
    assert sum(HOSTILE in text for text in read.texts) == 30 and "script" not in read.tags
    assert any(text.startswith(HOSTILE) and text.endswith("$x loss") for text in read.texts), "the picture's legend"


@pytest.fixture
def quickstart(tmp_path):
    """A quickstart's folder, after it trained and before its model was saved."""
    folder = tmp_path / "quick"
    (folder / "run" / "checkpoint-2").mkdir(parents=True)
    values = {
        "model": {"name_or_path": "some-model", "lora": {"r": 16}},
        "data": {"train": [{"path": "data/train.jsonl"}]},
        "objectives": "grl",
        "trainer": {"output_dir": "run", "max_steps": 4},
    }
    RunConfig.model_validate(values).save(folder / "run" / "run.yaml")
    state = {"global_step": 2, "max_steps": 4, "log_history": HISTORY}
    (folder / "run" / "checkpoint-2" / "trainer_state.json").write_text(json.dumps(state))
    models = {"base_causal": 0.2, "base_bidirectional": 0.1, "fine_tuned": 0.456}
    scores = {
        name: dict.fromkeys(("ndcg@10", "recall@10", "recall@100", "mrr"), value) for name, value in models.items()
    }
    (folder / "scores.json").write_text(json.dumps({**scores, "gain": 2.28}))
    return folder


def test_a_quickstart_is_reported_with_its_scores_against_both_bases(quickstart):
    place, missing = report(quickstart)
    texts = checked(place).texts
    assert place == quickstart / "report.html" and "Quickstart" in texts and "quick" in texts
    assert texts[texts.index("nDCG@10") + 1] == "45.6" and "from 20.0 of the better base" in texts
    assert texts.count("+25.6") == 4 and {"20.0", "10.0"} <= set(texts)
    assert "The run has not ended (step 2 of 4)" in missing[0]


def test_a_damaged_scores_file_is_named(quickstart, capsys):
    (quickstart / "scores.json").write_text('{"base_causal": 1, "base_bidirectional": 2, "fine_tuned": 3}')
    assert main(["report", str(quickstart)]) == 2
    assert "scores.json: is damaged" in capsys.readouterr().err


@pytest.fixture
def study(tmp_path):
    """A study's results folder: two rows done, one of them trained, one seed to do."""
    folder = tmp_path / "mine"
    results = [
        RowResult(
            name, ROWS[name].label, seed, name, tuple(TaskScore(t, "STS", s + i, "x", "r") for i, t in tasks), "m"
        )
        for name, seed, s, tasks in (
            ("floor", None, 40.25, list(enumerate(("STS13", "BIOSSES")))),
            ("bi_cl", 0, 50.25, list(enumerate(("STS13", "BIOSSES")))),
            ("grl", 0, 51.5, list(enumerate(("STS13", "BIOSSES")))),
        )
    ]
    for result in results:
        result.history.extend([] if result.seed is None else HISTORY)
        result.save(folder)
    write_tables(results, folder / "tables")
    done = [{"row": r.row, "seed": r.seed, "average": r.average, "seconds": {"training": 75.0}} for r in results]
    manifest = {
        "study": {"model": HOSTILE, "steps": 5, "batch_size": 8, "data.a": "0f", "seeds": [0, 1]},
        "commit": {"commit": "0123456789abcdef", "changed": True},
        "versions": versions(),
        "hardware": hardware(),
        "seeds": {"grl": [0, 1]},
        "data": {"a": {"rows": 1234, "in a test": 5, "held out": 6, "trained on": 789}},
        "overlap": {"found": {"STS13": {"a": {"queries": 5}}}, "rule": "left out: such rows"},
        "tasks": [{"name": "STS13", "type": "STS"}, {"name": "BIOSSES", "type": "STS"}],
        "tasks_not_in_the_folder": ["SciFact"],
        "done": done,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_study_is_reported_with_its_tables_pictures_data_and_what_it_lacks(study, capsys):
    assert main(["report", str(study), "--output", str(study.parent / "r.html")]) == 0
    page = checked(study.parent / "r.html")
    lacking = capsys.readouterr().err
    assert "Not trained yet: grl, seed 1" in lacking and "SciFact" in lacking
    wanted = ["Bag of words", "Bi + CL", "GRL", "40.25", "41.25", "40.75", "1,234", "789", "5 queries", "1 min 15 s"]
    assert not [text for text in wanted if text not in page.texts]
    assert "0123456789ab and changes" in page.texts and page.tags.count("svg") >= 2
    assert "Left out: such rows." in page.texts and f"{HOSTILE}, 5 steps of batch 8" in " ".join(page.texts)


def test_a_study_of_which_nothing_is_done_is_reported(study):
    manifest = json.loads((study / "manifest.json").read_text())
    (study / "manifest.json").write_text(json.dumps({**manifest, "done": []}))
    for table in (study / "tables").iterdir():
        table.unlink()
    place, missing = report(study)
    assert "No row is done" in " ".join(missing) and "table" in checked(place).tags


@pytest.mark.parametrize(("name", "content"), [("manifest.json", '{"study": {}}'), ("tables/table2.csv", "a,b\n1\n")])
def test_a_damaged_file_of_a_study_is_named(study, capsys, name, content):
    (study / name).write_text(content)
    assert main(["report", str(study)]) == 2
    error = capsys.readouterr().err
    assert name in error and "the same ullme reproduce command writes it again" in error and error.count("\n") == 1


def test_only_known_figures_of_the_paper_are_shown():
    grid, _ = published(["MSMARCO", "STS13"], ["eng"])
    assert grid.rows == [["MSMARCO", "eng", "35.8", "Mistral-7B-v0.1, Listing 3"]] and list(PUBLISHED) == ["MSMARCO"]
    (text,) = published(["STS13"], ["eng"])
    assert "none is known" in text.text


def test_differences_are_marked_by_their_sign_and_zero_is_not():
    grid = Grid(["", "difference"], [])
    assert [grid.sort_of(1, cell) for cell in ("+1.2", "-0.1", "+0.0")] == ["number up", "number down", "number"]


def test_a_score_stands_between_that_of_the_base_and_the_difference():
    now = [["Dataset", "Type", "eng", "deu"], ["STS13", "STS", "61.50", "-"], ["Average", "1 datasets", "61.50", "-"]]
    before = [now[0], ["STS13", "STS", "62.25", "40.00"], ["Average", "1 datasets", "62.25", "40.00"]]
    grid, *_ = task_scores(now, before)
    assert grid.head[2:] == [f"{code}, {side}" for code in ("eng", "deu") for side in ("base", "trained", "difference")]
    assert grid.rows[0] == ["STS13", "STS", "62.25", "61.50", "-0.75", "40.00", "-", "-"]
    assert grid.sort_of(4, "-0.75") == "number down" and grid.sort_of(2, "-0.75") == "number"


def test_means_over_other_numbers_of_datasets_are_not_compared():
    now = [["Dataset", "Type", "eng"], ["Average", "2 datasets", "50.00 (of 1)"], ["STS", "2 datasets", "61.00 (of 1)"]]
    before = [now[0], ["Average", "2 datasets", "40.00"], ["STS", "2 datasets", "60.00 (of 1)"]]
    grid, *_ = task_scores(now, before)
    assert [row[-1] for row in grid.rows] == ["-", "+1.00"]


def test_a_first_token_pooling_is_compared_under_the_attention_that_it_has(tmp_path, data):
    model = {"name_or_path": str(tiny_folder(tmp_path / "base")), "pooling": "cls", "max_length": 32}
    scored = {"tasks": ["BIOSSES"], "languages": ["eng"], "prompts": "none", "data_dir": data}
    rows = {"train": [{"path": "none.jsonl"}]}
    run = {"model": model, "data": rows, "trainer": {"output_dir": tmp_path / "run"}}
    config = RunConfig.model_validate(run | {"eval": scored | {"results_dir": tmp_path / "kept"}})
    assert base_scores(config)[1][0] == "BIOSSES"
    ULLME(**config.model.settings().to_dict()).save_pretrained(tmp_path / "model")
    question = question_of(PairDataset.from_examples([PairExample("a", ("b",)), PairExample("c", ("d",))]))
    assert list(compare(config, tmp_path / "model", question).models) == ["base, bidirectional", "trained"]


def test_the_base_is_scored_without_the_adapter_under_the_attention_that_scores_more(tmp_path, data):
    model = {"name_or_path": str(tiny_folder(tmp_path / "base")), "lora": {"r": 2}, "max_length": 32}
    scored = {"tasks": ["BIOSSES"], "languages": ["eng"], "prompts": "none", "data_dir": data}
    scored["results_dir"] = tmp_path / "kept"
    rows = {"train": [{"path": "none.jsonl"}]}
    config = RunConfig.model_validate(
        {"model": model, "data": rows, "trainer": {"output_dir": tmp_path / "run"}, "eval": scored}
    )
    plain = [ULLME(model["name_or_path"], max_length=32, attention=a) for a in ("causal", "bidirectional")]
    by_hand = [evaluate(m, **{**scored, "results_dir": tmp_path / "mine"}).score("BIOSSES") for m in plain]
    assert abs(by_hand[0] - by_hand[1]) > 0 and base_scores(config)[1] == ["BIOSSES", "STS", f"{max(by_hand):.2f}"]
