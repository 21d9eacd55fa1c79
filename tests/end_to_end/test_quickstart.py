"""The quickstart's whole path, on a tiny model and the documentation of one package."""

import json

import pytest
from rich.console import Console
from tests.tiny import tiny_folder

from ullme.apps import quickstart as app
from ullme.models import ULLME


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    model = tiny_folder(folder / "base")
    console = Console(record=True, width=120)
    options = {"steps": 2, "batch_size": 4, "test_queries": 5, "test_passages": 20, "packages": ("numpy",)}
    scores = app.quickstart(str(model), folder / "out", console=console, **options)
    return folder / "out", scores, console.export_text()


def test_scores_of_base_and_fine_tuned_model_are_shown_and_kept(finished):
    folder, scores, text = finished
    kept = json.loads((folder / "scores.json").read_text())
    assert kept["fine_tuned"] == scores.fine_tuned
    assert kept["gain"] == pytest.approx(
        scores.fine_tuned["ndcg@10"] / max(scores.base_causal["ndcg@10"], scores.base_bidirectional["ndcg@10"])
    )
    for row in ("base, causal", "base, bidirectional", "fine-tuned, bidirectional", "nDCG@10", "recall@10"):
        assert row in text


def test_three_searches_are_shown(finished):
    assert finished[2].count("┃ score ┃ passage") == 3


def test_model_plot_data_and_run_file_are_left(finished):
    folder, _, text = finished
    assert (folder / "loss.png").stat().st_size > 1000
    assert len((folder / "data" / "train.jsonl").read_text().splitlines()) == 8
    assert (folder / "run" / "run.yaml").exists()
    assert ULLME.from_pretrained(folder / "run" / "model").encode("a").shape == (32,)
    assert "ullme search" in text
