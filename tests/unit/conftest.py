"""Fixtures of the unit tests of evaluation: miniature MTEB datasets, and where results go."""

from __future__ import annotations

import pytest

from tests.mteb_folders import write_classification, write_msmarco, write_sts


@pytest.fixture
def datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets-cache"))


@pytest.fixture
def data(tmp_path, datasets_cache):
    write_msmarco(tmp_path / "data")
    write_sts(tmp_path / "data")
    write_classification(tmp_path / "data", "mteb/emotion")
    return tmp_path / "data"


@pytest.fixture
def options(tmp_path, data):
    return {"data_dir": data, "results_dir": tmp_path / "results", "show_progress_bar": False}
