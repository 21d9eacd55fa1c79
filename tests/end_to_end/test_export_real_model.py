"""A real LLM with a trained adapter, exported by the command, embeds as before in a plain sentence-transformers."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tests.tiny import SENTENCES

from ullme.cli import main
from ullme.models import ULLME

pytestmark = [pytest.mark.slow, pytest.mark.real_model]
TEXTS = [*SENTENCES, "a", " ".join(SENTENCES * 8)]


@pytest.fixture(scope="module")
def trained(real_model, tmp_path_factory):
    """A saved model whose adapter has learned to bring a query to its passage."""
    torch.manual_seed(0)
    model = ULLME(real_model, lora_name="trained", lora_r=8, max_length=128, prompts={"query": "Find the answer.\n"})
    before = model.encode(TEXTS)
    inputs = model.tokenizer(SENTENCES[1:5], return_tensors="pt", padding=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(4):
        rep_ND = torch.nn.functional.normalize(model(**inputs)["rep"], dim=-1)
        loss = torch.nn.functional.cross_entropy(rep_ND[:2] @ rep_ND[2:].T / 0.05, torch.arange(2))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert np.abs(model.encode(TEXTS) - before).max() > 0.01 * np.abs(before).max()
    path = tmp_path_factory.mktemp("trained") / "model"
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize("options", [[], ["--keep-adapter"], ["--attention", "causal"], ["--format", "onnx"]])
def test_a_trained_model_is_exported_to_1e_5(trained, tmp_path, capsys, options):
    if "onnx" in options:
        pytest.importorskip("onnxscript", reason="ONNX is not installed: pip install 'ullme[onnx]'")
    assert main(["export", str(trained), str(tmp_path / "out"), *options]) == 0
    shown = capsys.readouterr().out
    with capsys.disabled():
        print("", *[line for line in shown.splitlines() if line.startswith("same")], sep="\n")
    own = {"attention": "causal"} if "causal" in options else {}
    model, exported = ULLME.from_pretrained(trained, **own), SentenceTransformer(str(tmp_path / "out"), device="cpu")
    for texts in ([TEXTS[0]], TEXTS):
        ours = model.encode(texts)
        assert np.abs(exported.encode(texts) - ours).max() <= 1e-5 * np.abs(ours).max()
    np.testing.assert_allclose(
        exported.encode_query(TEXTS), model.encode_query(TEXTS), rtol=0, atol=1e-5 * np.abs(ours).max()
    )


def test_a_trained_model_is_exported_to_gguf(trained, tmp_path, capsys):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed; its wheel is built from source")
    converter = os.environ.get("ULLME_GGUF_CONVERTER")
    if converter is None:
        pytest.skip("ULLME_GGUF_CONVERTER does not name llama.cpp's convert_hf_to_gguf.py")
    options = ["--format", "gguf", "--gguf-converter", converter]
    assert main(["export", str(trained), str(tmp_path / "out"), *options]) == 0
    shown = capsys.readouterr().out
    with capsys.disabled():
        print("", *[line for line in shown.splitlines() if line.startswith("same")], sep="\n")
    assert "same: llama.cpp, each text alone" in shown
