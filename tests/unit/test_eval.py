"""Evaluation on MTEB: scores, their identity and their languages, on datasets that the tests write."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.evaluation import Recorder, scored_folder
from tests.mteb_folders import WORDS, write_jsonl, write_msmarco, write_retrieval
from tests.tiny import tiny_ullme
from ullme.eval import EvaluationResults, eval_mteb_dataset, evaluate, select_tasks
from ullme.eval.results import Score
from ullme.models import ULLME

pytestmark = pytest.mark.usefixtures("datasets_cache")


def test_listing_call_gives_the_main_score_times_100_by_language(options):
    assert eval_mteb_dataset(model=Recorder(), dataset_name="MSMARCO", langs=["eng"], **options) == {"eng": 100.0}


def test_passages_are_title_and_text_as_mteb_joins_them(options):
    model = Recorder()
    eval_mteb_dataset(model, "MSMARCO", **options)
    assert any("Apple A passage about the apple ." in texts for texts, _ in model.calls)


def test_same_model_is_not_run_twice(options):
    first, again = Recorder("one"), Recorder("one")
    scores = eval_mteb_dataset(first, "MSMARCO", **options)
    assert eval_mteb_dataset(again, "MSMARCO", **options) == scores
    assert first.calls and not again.calls


def test_overwrite_runs_again(options):
    eval_mteb_dataset(Recorder(), "MSMARCO", **options)
    again = Recorder()
    eval_mteb_dataset(again, "MSMARCO", overwrite=True, **options)
    assert again.calls


def test_model_that_cannot_be_told_apart_is_run_each_time(options):
    eval_mteb_dataset(Recorder(keep=False), "MSMARCO", **options)
    again = Recorder(keep=False)
    assert evaluate(again, "MSMARCO", **options).folder is None
    assert again.calls


def test_changed_local_data_are_scored_anew(data, options):
    eval_mteb_dataset(Recorder(), "MSMARCO", **options)
    write_msmarco(data, seed="changed")
    again = Recorder()
    eval_mteb_dataset(again, "MSMARCO", **options)
    assert again.calls


def test_other_prompts_are_scored_anew(options):
    for prompts in ("task", "none", {"MSMARCO": "Find it."}, {"MSMARCO": "Find this."}):
        model = Recorder()
        evaluate(model, "MSMARCO", prompts=prompts, **options)
        assert model.calls


def test_second_checkpoint_of_the_same_name_does_not_read_the_first_ones_scores(tmp_path, options):
    model = tiny_ullme(tmp_path, lora_name="adapter")
    first = scored_folder(model, options)
    same = scored_folder(model, options)
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "lora_B" in n).add_(0.1)
    second = scored_folder(model, options)
    assert first == same and first.name != second.name and first.parent == second.parent


@pytest.mark.parametrize(
    "setting",
    [{"attention": "causal"}, {"pooling": "lasttoken"}, {"max_length": 48}, {"append_eos": True}, {"echo": True}],
)
def test_every_setting_that_decides_an_embedding_is_part_of_the_identity(tmp_path, options, setting):
    base = scored_folder(tiny_ullme(tmp_path), options)
    other = scored_folder(tiny_ullme(tmp_path, **setting), options)
    assert base != other


def test_saved_and_reloaded_model_reads_its_own_scores(tmp_path, options, monkeypatch):
    model = tiny_ullme(tmp_path, lora_name="adapter")
    scores = eval_mteb_dataset(model, "BIOSSES", **options)
    model.save_pretrained(tmp_path / "checkpoint")
    monkeypatch.setattr(ULLME, "embed_texts", None)
    assert eval_mteb_dataset(str(tmp_path / "checkpoint"), "BIOSSES", **options) == scores


def test_results_are_mtebs_own_files(options):
    result = evaluate(Recorder(), "MSMARCO", **options)
    (path,) = result.folder.rglob("MSMARCO.json")
    stored = json.loads(path.read_text())
    assert stored["scores"]["dev"][0]["main_score"] == 1.0
    assert stored["dataset_revision"].startswith("local-")


def test_language_score_is_the_mean_over_subsets_that_carry_it(tmp_path):
    data = tmp_path / "data"
    for subset in ("en", "de"):
        write_retrieval(data, f"only/{subset}", "validation", subset)
    folder = data / "mteb/XQuADRetrieval"
    folder.mkdir(parents=True)
    readmes = []
    for subset in ("en", "de"):
        source = data / "only" / subset
        readmes.append((source / "README.md").read_text().removeprefix("---\nconfigs:\n").removesuffix("---\n"))
        for part in source.glob(f"{subset}-*"):
            part.rename(folder / part.name)
    (folder / "README.md").write_text("---\nconfigs:\n" + "".join(readmes) + "---\n")
    options = {"data_dir": data, "results_dir": tmp_path / "results", "show_progress_bar": False}
    both = eval_mteb_dataset(Recorder(), "XQuADRetrieval", langs=["eng", "deu"], **options)
    assert both == {"eng": 100.0, "deu": 100.0}
    model = Recorder("english only")
    assert eval_mteb_dataset(model, "XQuADRetrieval", langs=["eng"], **options) == {"eng": 100.0}
    assert len(model.calls) == 2
    with pytest.raises(ValueError, match="hf_subsets"):
        evaluate(Recorder("all"), "XQuADRetrieval", **options)


def test_table_has_datasets_type_averages_and_the_average(options):
    result = evaluate(Recorder(), ["MSMARCO", "BIOSSES", "EmotionClassification"], languages=["eng"], **options)
    lines = result.to_markdown().splitlines()
    assert lines[0] == "| Dataset | Type | eng |"
    assert "| MSMARCO | Retrieval | 100.00 |" in lines
    assert lines[-1] == f"| **Average** | 3 datasets | {result.average('eng'):.2f} |"
    assert result.average("eng") == pytest.approx(np.mean([s.score for s in result.scores]))


def test_an_average_over_fewer_datasets_than_its_row_counts_says_so():
    scores = [("A", "eng", 60.0), ("A", "deu", 50.0), ("B", "eng", 80.0)]
    table = EvaluationResults("m", "r", tuple(Score(t, "STS", code, s, "", "") for t, code, s in scores), ())
    rows = table.to_markdown().splitlines()
    assert rows[3] == "| B | STS | 80.00 | - |"
    assert rows[4:] == ["| **STS** | 2 datasets | 70.00 | 50.00 (of 1) |"] + [
        "| **Average** | 2 datasets | 70.00 | 50.00 (of 1) |"
    ]


def test_task_that_joins_others_is_scored_as_their_mean(tmp_path):
    parts = select_tasks("CQADupstackRetrieval")[0].tasks
    for part in parts:
        write_retrieval(tmp_path / "data", part.metadata.dataset["path"], "test")
    model = Recorder()
    options = {"data_dir": tmp_path / "data", "results_dir": tmp_path / "results", "show_progress_bar": False}
    result = evaluate(model, "CQADupstackRetrieval", languages=["eng"], **options)
    assert result.score("CQADupstackRetrieval") == 100.0 and len(model.calls) == 2 * len(parts)
    again = Recorder()
    assert evaluate(again, "CQADupstackRetrieval", languages=["eng"], **options).scores == result.scores
    assert not again.calls


def test_data_that_cannot_be_read_are_one_line_with_the_cure(tmp_path, data, options):
    with pytest.raises(ValueError, match="give data_dir") as error:
        evaluate(Recorder(), "SciFact", results_dir=tmp_path / "results", show_progress_bar=False)
    assert "\n" not in str(error.value)
    (data / "mteb/biosses-sts/test.jsonl").write_text('{"sentence1": "cut o')
    with pytest.raises(ValueError, match="'BIOSSES': its data") as error:
        evaluate(Recorder(), "BIOSSES", **options)
    assert "\n" not in str(error.value)
    (data / "mteb/emotion/test.jsonl").unlink()
    with pytest.raises(ValueError, match="'EmotionClassification': its data") as error:
        evaluate(Recorder(), "EmotionClassification", **options)


def test_repeated_evaluation_starts_from_the_same_random_state(tmp_path):
    folder = tmp_path / "data/mteb/twentynewsgroups-clustering"
    texts = [f"{w} {i}" for i in range(40) for w in WORDS]
    write_jsonl(folder / "test.jsonl", [{"sentences": texts, "labels": [i % 5 for i in range(len(texts))]}])
    options = {"data_dir": tmp_path / "data", "results_dir": tmp_path / "results", "show_progress_bar": False}
    runs = [evaluate(Recorder(), "TwentyNewsgroupsClustering.v2", overwrite=True, **options) for _ in range(2)]
    assert runs[0].task_results[0].scores == runs[1].task_results[0].scores
