"""A study that is added to: which kept scores still count, and what makes two rows the same experiment."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.mteb_folders import write_jsonl, write_msmarco, write_sts
from ullme.apps.doc_pairs import DocPairs
from ullme.reproduce import jobs as running
from ullme.reproduce.budgets import budget_of
from ullme.reproduce.command import report
from ullme.reproduce.data import Prepared
from ullme.reproduce.floor import BagOfWords
from ullme.reproduce.jobs import finished, run, with_current_data
from ullme.reproduce.overlap import Overlap
from ullme.reproduce.results import RowResult, TaskScore, file_of, load_result
from ullme.reproduce.rows import ROWS, chosen_rows, shipped_configs
from ullme.reproduce.study import Job, Study, made_of, model_identity
from ullme.reproduce.tasks import DocumentationRetrieval, named_task, write_documentation

FLOOR, GRL = Job(ROWS["floor"], None), Job(ROWS["grl"], 0)


def study_in(folder):
    """A study of one of the two tasks that its folder has; no data is read."""
    write_sts(folder / "mteb")
    write_msmarco(folder / "mteb")
    return Study(
        model="smollm2-135m-instruct",
        budget=budget_of("smoke"),
        data=Prepared({"pairs": folder / "pairs.jsonl"}, None, {"pairs": {"sha256": "x"}}, Overlap()),
        tasks=[named_task("BIOSSES")],
        left_out=[],
        task_folder=folder / "mteb",
        prompts="none",
        configs=shipped_configs(),
        overrides=(),
        bf16=False,
        results=folder / "results",
        work=folder / "work",
    )


@pytest.fixture
def study(tmp_path):
    return study_in(tmp_path)


@pytest.fixture
def trained(monkeypatch):
    """The runs that were trained; each leaves a model that embeds as the floor does."""
    configs = []

    def train(config):
        configs.append(config)
        folder = config.trainer.output_dir / "model"
        folder.mkdir(parents=True)
        return SimpleNamespace(folder=folder, history=[{"loss": 1.0}])

    monkeypatch.setattr(running, "train", train)
    monkeypatch.setattr(running, "_scored_model", lambda *_: BagOfWords())
    return configs


def other_tasks(study):
    return replace(study, tasks=[named_task("MSMARCO:default:dev")])


def kept(study, job, **scores):
    """Keep a result of a job by hand, on the hub's data."""
    listed = tuple(TaskScore(task, "STS", score, "m", "r") for task, score in scores.items())
    result = RowResult(job.row.name, job.row.label, job.seed, made_of(study, job), listed)
    result.save(study.results)
    return result


def test_scores_of_other_tasks_stay_and_nothing_is_trained_again(study, trained):
    first = run(study, GRL)
    assert finished(study, GRL) == first and finished(other_tasks(study), GRL) is None
    both = run(other_tasks(study), GRL)
    assert both.by_task == {**first.by_task, "MSMARCO": both.by_task["MSMARCO"]}
    assert finished(study, GRL) == finished(other_tasks(study), GRL) == both
    assert len(trained) == 1 and both.history == first.history


def test_a_row_whose_model_is_gone_is_not_trained_again_for_another_task(study, trained):
    run(study, GRL)
    shutil.rmtree(study.work)
    assert finished(study, GRL) is not None
    with pytest.raises(
        ValueError, match=r"work: the model of grl, seed 0 is not in .*delete its file '.*grl-seed0.json"
    ):
        finished(other_tasks(study), GRL)
    assert len(trained) == 1


def test_a_score_on_data_that_have_changed_is_replaced(study):
    before = run(study, FLOOR)
    assert finished(study, FLOOR) == before
    path = study.task_folder / "mteb" / "biosses-sts" / "test.jsonl"
    write_jsonl(path, [json.loads(line) for line in path.read_text().splitlines()][:8])
    now = replace(study)
    assert finished(now, FLOOR) is None
    after = run(now, FLOOR)
    assert finished(now, FLOOR) == after and len(after.scores) == 1
    assert after.scores[0].revision != before.scores[0].revision and after.by_task != before.by_task


def test_a_score_on_data_that_have_changed_is_in_no_table(study):
    run(study, FLOOR)
    write_jsonl(study.task_folder / "mteb" / "biosses-sts" / "more.jsonl", [{}])
    results, tables, others = report(replace(study), [ROWS["grl"]])
    assert (results, tables, others) == ([], {}, ["floor.json"])


def test_the_documentation_task_is_told_apart_by_its_passages(study, tmp_path):
    def asked(count):
        corpus = {f"p{i}": f"what {i} goes on to say" for i in range(count)}
        pairs = DocPairs(train=[], corpus=corpus, queries={"q": "what 1 says"}, qrels={"q": {"p1": 1}})
        folder = write_documentation(pairs, tmp_path / f"tasks{count}")
        return replace(study, tasks=[DocumentationRetrieval()], task_folder=folder)

    done = run(asked(5), FLOOR)
    assert finished(asked(5), FLOOR) == done and finished(asked(6), FLOOR) is None


def test_two_revisions_of_the_hub_pass_for_the_same_data_and_a_local_copy_does_not(study, monkeypatch):
    monkeypatch.delenv("ULLME_MTEB_DATA", raising=False)
    hub = replace(study, task_folder=None)
    result = kept(study, FLOOR, BIOSSES=1.0, STS12=2.0)
    assert with_current_data(hub, result) == result
    assert with_current_data(study, result).by_task == {"STS12": 2.0}


@pytest.mark.parametrize("job", [Job(ROWS["base_causal"], None), GRL], ids=["untrained", "trained"])
def test_a_local_model_is_the_same_by_every_path_and_another_with_other_weights(study, job, tmp_path, monkeypatch):
    folder = tmp_path / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"1")
    monkeypatch.chdir(tmp_path)
    paths = [str(folder), "models/mine", os.path.join(".", "models", "mine", "")]
    (digest,) = {made_of(replace(study, model=path), job) for path in paths}
    shutil.copytree(folder, tmp_path / "elsewhere" / "mine")
    assert made_of(replace(study, model="elsewhere/mine"), job) == digest
    (folder / "model.safetensors").write_bytes(b"12")
    assert made_of(replace(study, model="models/mine"), job) != digest


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "org/a-model"])
def test_a_model_that_is_no_folder_is_known_by_its_name(name):
    assert model_identity(name) == name


def test_the_kept_study_is_still_the_same_experiment(study):
    """The untrained rows of ``results/small``, whose digests need no training data."""
    folder = Path(__file__).parents[2] / "results" / "small"
    small = replace(study, budget=budget_of("small"), bf16=True)
    for name in ("floor", "base_causal", "base_bidirectional"):
        assert load_result(file_of(folder, name, None)).made_of == made_of(small, Job(ROWS[name], None))


def test_an_earlier_row_of_ones_own_stays_in_the_tables_while_its_run_file_does(study, trained, tmp_path):
    path = tmp_path / "mine.yaml"
    shutil.copy(shipped_configs() / "bi_cl.yaml", path)
    (row,) = chosen_rows([str(path)])
    run(study, FLOOR)
    mine = run(study, Job(row, 3))
    results, tables, others = report(study, [ROWS["floor"]])
    assert [r.row for r in results] == ["floor", "mine"] and results[1] == mine and not others
    assert "mine" in [cells[0] for cells in tables["table2"].rows]
    assert "mine.yaml" in json.loads((study.results / "manifest.json").read_text())["run_files"]
    for change in (lambda: path.write_text("model: {"), path.unlink):
        change()
        results, _, others = report(study, [ROWS["floor"]])
        assert [r.row for r in results] == ["floor"] and others == ["mine-seed3.json"]


def test_the_file_of_a_named_row_names_no_run_file(study):
    run(study, FLOOR)
    assert "run_file" not in json.loads(file_of(study.results, "floor", None).read_text())
