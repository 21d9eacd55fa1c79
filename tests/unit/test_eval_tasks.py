"""Selecting tasks, and reading them from local folders."""

from __future__ import annotations

import mteb
import pytest

from tests.mteb_folders import write_classification, write_msmarco, write_sts
from ullme.eval.local import data_folder, local_revision, with_local_data
from ullme.eval.tasks import select_tasks

pytestmark = pytest.mark.usefixtures("datasets_cache")


def names(tasks):
    return [task.metadata.name for task in tasks]


def test_tasks_are_selected_by_name_type_and_benchmark_each_once():
    chosen = select_tasks("BIOSSES", "MTEB(eng, v1)", task_types="Summarization", languages=["eng"])
    assert len(names(chosen)) == len(set(names(chosen)))
    assert {"BIOSSES", "MSMARCO", "SummEvalSummarization.v2"} <= set(names(chosen))


def test_paper_benchmark_has_its_56_datasets():
    chosen = select_tasks(benchmarks="MTEB(eng, v1)", languages=["eng"])
    assert len(chosen) == 56
    amazon = next(t for t in chosen if t.metadata.name == "AmazonCounterfactualClassification")
    assert amazon.hf_subsets == ["en"] and list(amazon.eval_splits) == ["test"]


def test_language_narrows_a_task_to_the_subsets_that_carry_it():
    (task,) = select_tasks("AmazonCounterfactualClassification", languages=["deu"])
    assert task.hf_subsets == ["de"]
    (task,) = select_tasks("STS22", languages=["deu"])
    assert set(task.hf_subsets) == {"de", "de-en", "de-fr", "de-pl"}


def test_of_several_languages_a_benchmark_needs_any_and_a_named_task_all():
    chosen = select_tasks(None, "MTEB(Multilingual, v2)", languages=["eng", "deu"])
    assert {"DiaBlaBitextMining", "GermanSTSBenchmark"} & set(names(chosen))
    with pytest.raises(ValueError, match="langs: task 'BIOSSES' has no 'deu', only eng"):
        select_tasks("BIOSSES", languages=["eng", "deu"])


def test_a_joined_task_without_the_language_is_refused():
    with pytest.raises(ValueError, match="langs: task 'CQADupstackRetrieval' has no 'deu', only eng"):
        select_tasks("CQADupstackRetrieval", languages=["deu"])


def test_a_named_task_is_not_narrowed_by_a_benchmark_that_has_it():
    (named,) = select_tasks("STS22")
    both = select_tasks("STS22", "MTEB(eng, v1)")
    assert next(t for t in both if t.metadata.name == "STS22").hf_subsets == named.hf_subsets


def test_selection_leaves_mtebs_shared_tasks_alone(tmp_path):
    write_sts(tmp_path)
    shared = {t.metadata.name: t for t in mteb.get_benchmark("MTEB(eng, v1)").tasks}
    before = dict(shared["BIOSSES"].metadata.dataset)
    tasks = select_tasks(benchmarks="MTEB(eng, v1)", languages=["eng"], eval_splits=None)
    mine = next(t for t in tasks if t.metadata.name == "BIOSSES")
    local = with_local_data(mine, tmp_path)
    assert local.metadata.dataset["path"] == str(tmp_path / "mteb/biosses-sts")
    assert mine is not shared["BIOSSES"]
    assert shared["BIOSSES"].metadata.dataset == before == mteb.get_task("BIOSSES").metadata.dataset


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tasks": "MSMARKO"}, "did you mean 'MSMARCO'"),
        ({"tasks": "msmarco"}, "did you mean 'MSMARCO'"),
        ({"benchmarks": "MTEB(eng, v3)"}, "did you mean 'MTEB"),
        ({"task_types": "Retrieve"}, "did you mean 'Retrieval'"),
        ({"tasks": "MSMARCO", "languages": ["english"]}, "did you mean 'eng'"),
        ({"tasks": "MSMARCO", "languages": "eng"}, r"give a list, \['eng'\]"),
        ({"tasks": "MSMARCO", "languages": ["deu"]}, "has no 'deu', only eng"),
        ({"tasks": "MSMARCO", "eval_splits": ["tset"]}, "has no 'tset', only dev"),
        ({"tasks": "STS22", "hf_subsets": ["eng"]}, "did you mean"),
        ({}, "nothing to evaluate"),
    ],
)
def test_unknown_names_are_refused_in_one_line_with_the_nearest(wrong, message):
    with pytest.raises(ValueError, match=message) as error:
        select_tasks(**wrong)
    assert "\n" not in str(error.value)


def test_data_folder_comes_from_the_argument_then_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("ULLME_MTEB_DATA", raising=False)
    assert data_folder(None) is None
    monkeypatch.setenv("ULLME_MTEB_DATA", str(tmp_path))
    assert data_folder(None) == tmp_path
    (tmp_path / "other").mkdir()
    assert data_folder(tmp_path / "other") == tmp_path / "other"
    monkeypatch.setenv("ULLME_MTEB_DATA", str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="ULLME_MTEB_DATA: folder"):
        data_folder(None)


def test_missing_folder_is_named_with_the_cure(tmp_path):
    (task,) = select_tasks("MSMARCO")
    with pytest.raises(ValueError, match=r"mteb/msmarco' is missing; put a copy of the hub dataset 'mteb/msmarco'"):
        with_local_data(task, tmp_path)


def test_later_version_does_not_read_the_rows_of_the_earlier_one(tmp_path):
    write_classification(tmp_path, "mteb/banking77")
    (v1,) = select_tasks("Banking77Classification")
    (v2,) = select_tasks("Banking77Classification.v2")
    with_local_data(v1, tmp_path)
    with pytest.raises(ValueError, match="also serves 'Banking77Classification'"):
        with_local_data(v2, tmp_path)
    write_classification(tmp_path, f"mteb/banking77@{v2.metadata.dataset['revision']}")
    assert "@" in with_local_data(v2, tmp_path).metadata.dataset["path"]


def test_later_version_of_the_same_rows_is_read(tmp_path):
    write_sts(tmp_path, "mteb/twentynewsgroups-clustering")
    (task,) = select_tasks("TwentyNewsgroupsClustering.v2")
    with_local_data(task, tmp_path)


def test_local_revision_follows_the_content(tmp_path):
    (task,) = select_tasks("MSMARCO")
    assert local_revision(task) is None
    write_msmarco(tmp_path)
    first = local_revision(with_local_data(task, tmp_path))
    (tmp_path / "mteb/msmarco/.hidden").write_text("a lock, say")
    assert local_revision(with_local_data(task, tmp_path)) == first
    write_msmarco(tmp_path, seed="x")
    assert local_revision(with_local_data(task, tmp_path)) != first
