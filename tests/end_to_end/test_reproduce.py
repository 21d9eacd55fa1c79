"""``ullme reproduce`` on a tiny model, tiny pairs and tiny tasks: every file, and what a killed run costs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.mteb_folders import write_msmarco, write_sts
from tests.tiny import tiny_folder

from ullme.cli import main
from ullme.eval import evaluate
from ullme.models import ULLME
from ullme.reproduce import jobs as running
from ullme.reproduce.budgets import BUDGETS
from ullme.reproduce.command import reproduce
from ullme.reproduce.options import Options
from ullme.reproduce.rows import ROWS

CONFIGS = Path(__file__).parents[2] / "configs" / "reproduce"
WORDS = "cat dog tree house river stone cloud bread night music road light".split()
SMALL = (
    *("steps=2", "mntp_steps=1", "mined=3", "miner_steps=1", "batch_size=4", "max_length=32", "held_out=4"),
    *("other_seeds=1", "seeds=[0,1]"),
)


def write_pairs(folder):
    folder.mkdir()
    for name in ("first", "second"):
        rows = [
            {
                "query": f"where is the {word} {name} {i}?",
                "positive": f"the {word} that is called {name} {i}",
                "negatives": [f"a {WORDS[k - 3]} under {i}", f"some {WORDS[k - 7]} of number {i}"],
            }
            for k, word in enumerate(WORDS)
            for i in range(2)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (folder / "second.jsonl").open("a") as file:  # this query is one of the retrieval task
        file.write(
            json.dumps({"query": "What is a apple?", "positive": "Something round.", "negatives": ["no"]}) + "\n"
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduce")
    tiny_folder(folder / "tiny")
    write_pairs(folder / "pairs")
    write_sts(folder / "mteb")
    write_msmarco(folder / "mteb")
    return folder


def arguments(place, name, rows, *more):
    options = {
        "model": place / "tiny",
        "data": place / "pairs",
        "mteb-folder": place / "mteb",
        "tasks": "BIOSSES,MSMARCO:default:dev",
        "configs": CONFIGS,
        "results": place / "results",
        "work": place / "work",
        "name": name,
        "rows": rows,
    }
    return ["reproduce", *(f"--{key}={value}" for key, value in options.items()), *SMALL, *more]


@pytest.fixture(scope="module")
def done(place):
    """The folder of a study of four rows, one of them of two seeds."""
    assert main(arguments(place, "whole", "floor,base_causal,llm2vec,grl")) == 0
    return place / "results" / "whole"


def test_every_file_is_there(done):
    folders = {path.name for path in done.iterdir()}
    assert folders == {"manifest.json", "mteb", "plots", "rows", "tables"}
    rows = {path.name for path in (done / "rows").iterdir()}
    assert rows == {"floor.json", "base_causal.json", "llm2vec-seed0.json", "grl-seed0.json", "grl-seed1.json"}
    tables = {path.stem for path in (done / "tables").iterdir()}
    assert {"table2", "table3", "ordering", "against_better_base", "against_bag_of_words"} == tables
    assert {path.name for path in (done / "plots").iterdir()} == {"training.png", "rank_agreement.png"}
    table = (done / "tables" / "table2.md").read_text()
    assert all(f"| {ROWS[name].label} |" in table for name in ("floor", "base_causal", "llm2vec", "grl"))


def test_the_manifest_says_what_the_scores_were_made_with(done):
    manifest = json.loads((done / "manifest.json").read_text())
    assert manifest["study"]["steps"] == 2 and manifest["study"]["model"] == "tiny"
    assert manifest["seeds"] == {"llm2vec": [0], "grl": [0, 1]}
    assert set(manifest["run_files"]) == {"llm2vec_mntp.yaml", "llm2vec.yaml", "grl.yaml"}
    assert manifest["overlap"]["found"] == {"MSMARCO": {"second": {"queries": 1}}}
    assert manifest["data"]["second"]["in a test"] == 1 and len(manifest["data"]["first"]["sha256"]) == 64
    assert {task["name"] for task in manifest["tasks"]} == {"BIOSSES", "MSMARCO"} == set(manifest["prompts"]["tasks"])
    assert manifest["hardware"]["cores"] > 0 and "torch" in manifest["versions"] and "commit" in manifest["commit"]
    assert len(manifest["done"]) == 5


def test_a_score_is_that_of_the_model_which_the_row_left(place, done):
    kept = json.loads((done / "rows" / "grl-seed1.json").read_text())
    model = ULLME.from_pretrained(place / "work" / "whole" / "grl-seed1" / "grl" / "model")
    again = evaluate(model, ["BIOSSES"], prompts="none", data_dir=place / "mteb", results_dir=place / "again")
    assert again.score("BIOSSES") == {s["task"]: s["score"] for s in kept["scores"]}["BIOSSES"]
    assert any("eval_rank_agreement" in entry for entry in kept["history"])


def test_a_trained_row_is_its_run_file_with_the_budget(place, done):
    run = (place / "work" / "whole" / "llm2vec-seed0" / "llm2vec" / "run.yaml").read_text()
    assert "max_steps: 2" in run and "llm2vec-seed0/llm2vec_mntp/model" in run
    assert "beta: 0.1" in (place / "work" / "whole" / "grl-seed0" / "grl" / "run.yaml").read_text()


def test_what_is_done_is_not_done_again_and_more_can_be_added(place, done, monkeypatch):
    before = {path.name: path.read_bytes() for path in (done / "rows").iterdir()}
    trained = []
    monkeypatch.setattr(running, "train", lambda config: trained.append(config))
    assert main(arguments(place, "whole", "floor,grl,base_bidirectional")) == 0
    after = {path.name: path.read_bytes() for path in (done / "rows").iterdir()}
    assert not trained and after.items() > before.items() and set(after) - set(before) == {"base_bidirectional.json"}
    assert "| LLM2Vec |" in (done / "tables" / "table2.md").read_text()  # rows that were not asked for stay
    manifest = json.loads((done / "manifest.json").read_text())
    assert manifest["seeds"] == {"llm2vec": [0], "grl": [0, 1]} and "llm2vec_mntp.yaml" in manifest["run_files"]


def test_a_task_is_added_without_training_again(place, monkeypatch):
    command = arguments(place, "added", "bi_cl", "--seeds=1", f"--data={place / 'pairs' / 'first.jsonl'}")
    assert main([*command, "--tasks=BIOSSES"]) == 0
    file = place / "results" / "added" / "rows" / "bi_cl-seed1.json"
    before = json.loads(file.read_text())
    monkeypatch.setattr(running, "train", None)
    assert main([*command, "--tasks=MSMARCO:default:dev"]) == 0
    after = json.loads(file.read_text())
    assert after["scores"][:1] == before["scores"] and [s["task"] for s in after["scores"]] == ["BIOSSES", "MSMARCO"]
    assert after["model"] == before["model"] and after["seconds"]["training"] == before["seconds"]["training"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["steps=3"], "holds a study with steps=2, and this one has 3"),
        (["trainer.learning_rate=1e-3"], "holds a study with overrides=[]"),
        (["--prompts=task"], "holds a study with prompts='none', and this one has 'task'"),
    ],
)
def test_another_study_is_refused_in_the_same_folder(place, done, capsys, more, message):
    assert main(arguments(place, "whole", "floor", *more)) == 2
    assert message in capsys.readouterr().err


def test_a_row_of_another_run_file_is_refused(place, done, tmp_path, capsys):
    shutil.copytree(CONFIGS, tmp_path / "configs")
    changed = (CONFIGS / "grl.yaml").read_text().replace("beta: 0.1", "beta: 0.2")
    (tmp_path / "configs" / "grl.yaml").write_text(changed)
    assert main(arguments(place, "whole", "grl", f"--configs={tmp_path / 'configs'}")) == 2
    assert "grl-seed0.json' was made with another" in capsys.readouterr().err


def test_a_killed_run_goes_on_with_the_row_it_was_in(place, monkeypatch):
    real, calls = running.evaluate, []

    def dying(model, *args, **options):
        calls.append(model)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(model, *args, **options)

    monkeypatch.setattr(running, "evaluate", dying)
    command = arguments(place, "killed", "floor,bi_cl", "--seeds=1")
    assert main(command) == 130
    results = place / "results" / "killed"
    assert [path.name for path in (results / "rows").iterdir()] == ["floor.json"]
    weights = place / "work" / "killed" / "bi_cl-seed1" / "bi_cl" / "model" / "adapter_model.safetensors"
    trained = weights.read_bytes()
    assert main(command) == 0
    assert len(calls) == 3 and weights.read_bytes() == trained
    row = json.loads((results / "rows" / "bi_cl-seed1.json").read_text())
    took = json.loads((weights.parents[1] / "calls.json").read_text())["calls"]
    assert len(took) == 2 and row["seconds"]["training"] == pytest.approx(sum(call["seconds"] for call in took))


@pytest.fixture(scope="module")
def released(place, done):
    """A release of the better of two seeds."""
    folder = place / "models" / "tiny-grl"
    assert main(arguments(place, "whole", "floor,base_causal,grl", f"--release={folder}")) == 0
    return folder


def test_the_best_row_and_seed_is_released_in_bfloat16(place, released):
    said = json.loads((released / "scores.json").read_text())
    manifest = json.loads((place / "results" / "whole" / "manifest.json").read_text())
    averages = {entry["seed"]: entry["average"] for entry in manifest["done"] if entry["row"] == "grl"}
    assert len(averages) == 2 and averages[said["seed"]] == max(averages.values())
    trained = place / "work" / "whole" / f"grl-seed{said['seed']}" / "grl" / "model"
    before, weights = (load_file(folder / "adapter_model.safetensors") for folder in (trained, released))
    assert weights.keys() == before.keys()
    assert all(torch.equal(weights[name], before[name].to(torch.bfloat16)) for name in before)


def test_the_stated_scores_are_those_of_the_released_folder(place, released, tmp_path):
    said = {s["task"]: s["score"] for s in json.loads((released / "scores.json").read_text())["scores"]}
    model = ULLME.from_pretrained(released)
    again = evaluate(model, ["BIOSSES"], prompts="none", data_dir=place / "mteb", results_dir=tmp_path)
    assert again.score("BIOSSES") == pytest.approx(said["BIOSSES"], abs=1e-6) and "MSMARCO" in said


def test_the_card_says_what_the_model_was_made_of(released):
    card = (released / "README.md").read_text()
    for score in json.loads((released / "scores.json").read_text())["scores"]:
        assert f"| {score['task']} | {score['task_type']} | {score['metric']} | {score['score']:.2f} |" in card
    assert "| second | 25 | 1 | " in card and "temperature: 0.05" in card and "Bag of words:" in card
    assert card.startswith("---\nbase_model: ") and "model-index:" in card
    assert (
        "--name whole \\\n    --data pairs \\\n    --mteb-folder mteb \\\n" in card and "steps=2 mntp_steps=1" in card
    )


def test_a_row_without_training_is_not_released(place, tmp_path, capsys):
    assert main(arguments(place, "unreleased", "floor", f"--release={tmp_path / 'model'}")) == 2
    assert "release: none of the rows asked for is trained in one stage" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_a_trained_model_that_is_gone_is_named_with_the_cure(place, released, tmp_path, capsys):
    kept = [path.rename(tmp_path / path.name) for path in (place / "work" / "whole").glob("grl-seed*")]
    assert len(kept) == 2 and main(arguments(place, "whole", "grl", f"--release={tmp_path / 'model'}")) == 2
    said = capsys.readouterr().err
    assert "work: the model of grl, seed " in said and "delete its file" in said


@pytest.mark.slow
def test_the_smoke_budget_on_a_fresh_checkout_ends_with_every_file(tmp_path, real_model):
    """The acceptance run: a real LLM, the documentation of this machine, every row; minutes."""
    tables = reproduce(Options(configs=CONFIGS, results=tmp_path / "results", work=tmp_path / "work"))
    results = tmp_path / "results" / f"{real_model}-smoke"
    seeds = sum(len(BUDGETS["smoke"].seeds_of(row.name)) if row.trained else 1 for row in ROWS.values())
    assert len(list((results / "rows").iterdir())) == seeds
    assert len(tables["table2"].rows) == len(ROWS)
    assert len(list((results / "plots").iterdir())) == 3
    assert list((results / "mteb").rglob("DocumentationRetrieval.json"))
