"""The commands that use a model: encode, search, eval and check, on a tiny one."""

import json

import numpy as np
import pytest
from tests.mteb_folders import write_msmarco
from tests.tiny import tiny_folder, tiny_ullme

from ullme.cli import main
from ullme.models import ULLME

TEXTS = ["how to parse a date", "open a file", "a third, rather longer text about neither of them"]


@pytest.fixture
def model(tiny_models):
    path = tiny_models / "llama"
    return path if path.exists() else tiny_folder(path)


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path


def test_encode_writes_what_the_model_encodes(model, texts, tmp_path):
    out = tmp_path / "out"
    options = ["--normalize", "--truncate-dim", "8", "--prompt", "Query: ", "--attention", "causal"]
    assert main(["encode", str(model), str(texts), str(out), *options]) == 0
    expected = ULLME(str(model), attention="causal").encode(
        TEXTS, prompt="Query: ", normalize_embeddings=True, truncate_dim=8
    )
    np.testing.assert_allclose(np.load(out / "embeddings-00000.npy"), expected, atol=1e-6)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["rows"] == 3 and manifest["model"]["name"] == str(model)
    assert manifest["model"]["fingerprint"] == ULLME(str(model), attention="causal").fingerprint()


def test_a_saved_model_encodes_with_its_own_settings(tmp_path, texts):
    saved = tiny_ullme(tmp_path, lora_name="a", lora_r=2, pooling="lasttoken", attention="causal")
    saved.save_pretrained(tmp_path / "saved")
    assert main(["encode", str(tmp_path / "saved"), str(texts), str(tmp_path / "out")]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "out" / "embeddings-00000.npy"), saved.encode(TEXTS), atol=1e-6)


def test_search_shows_the_nearest_passages_first(model, texts, capsys):
    assert main(["search", str(model), str(texts), TEXTS[1], "--top", "2"]) == 0
    shown = capsys.readouterr().out
    assert TEXTS[1] in shown and "1.000" in shown
    assert sum(text in shown for text in TEXTS) == 2


def test_eval_prints_the_table_and_keeps_the_results(model, tmp_path, capsys):
    write_msmarco(tmp_path / "data")
    places = ["--data-dir", str(tmp_path / "data"), "--results-dir", str(tmp_path / "results")]
    assert main(["eval", str(model), "--task", "MSMARCO", "--language", "eng", *places]) == 0
    shown = capsys.readouterr().out
    assert "| MSMARCO | Retrieval |" in shown and "**Average**" in shown
    kept = list((tmp_path / "results").rglob("MSMARCO.json"))
    assert len(kept) == 1
    assert str(kept[0]).startswith(shown.split("format: ")[1].strip())


def test_check_tells_what_each_attention_implementation_does(model, capsys):
    assert main(["check", str(model)]) == 0
    shown = capsys.readouterr().out
    assert "sdpa" in shown and "eager" in shown and "passes" in shown
