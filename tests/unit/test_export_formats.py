"""ONNX and GGUF files of an export embed as the model does; what servers need is said of each export."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny import SENTENCES, tiny_config, tiny_ullme
from ullme.export import ExportOptions, export_model, serving_notes
from ullme.export.gguf import GGUF_FILE
from ullme.models import ULLME

ARCHITECTURES = ["llama", "mistral", "gpt2", "gemma3_text", "qwen3"]


def note(folder, server):
    return next(note for note in serving_notes(folder) if note.server == server)


@pytest.mark.slow  # torch traces for a quarter of a minute each
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_onnx_runtime_embeds_as_the_model(tmp_path, architecture):
    runtime = pytest.importorskip("onnxruntime", reason="ONNX is not installed: pip install 'ullme[onnx]'")
    pytest.importorskip("onnxscript", reason="ONNX is not installed: pip install 'ullme[onnx]'")
    model = tiny_ullme(tmp_path, architecture, lora_name="adapter")
    report = export_model(model, tmp_path / "export", ExportOptions(formats=("onnx",), normalize=True))
    assert sum(c.case.startswith("ONNX Runtime") and c.difference < 1e-5 for c in report.compared) == 2
    assert note(report.path, "ONNX Runtime").ready
    session = runtime.InferenceSession(str(report.path / "onnx" / "model.onnx"))
    ids = model.tokenizer(SENTENCES[:1], return_tensors="np")
    states, rep = session.run(None, {name: ids[name].astype(np.int64) for name in ("input_ids", "attention_mask")})
    assert states.shape == (1, ids["input_ids"].shape[1], model.embedding_dimension)
    np.testing.assert_allclose(rep, model.encode(SENTENCES[:1], normalize_embeddings=True), atol=1e-5)


def test_an_onnx_file_of_another_model_is_caught_and_leaves_nothing(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="ONNX is not installed: pip install 'ullme[onnx]'")
    from ullme.export import onnx

    monkeypatch.setattr(onnx, "_trace", lambda graph, place: None)
    monkeypatch.setattr(onnx, "_runner", lambda place, exported: lambda texts, prompt: np.ones((len(texts), 32)))
    with pytest.raises(ValueError, match="ONNX Runtime does not reproduce 'llama': each text alone differs"):
        export_model(tiny_ullme(tmp_path), tmp_path / "export", ExportOptions(formats=("onnx",)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["llama"]


def test_a_missing_onnx_package_is_named_with_the_cure(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs onnx, onnxscript, onnxruntime; run: pip install 'ullme\[onnx\]'"):
        export_model(tiny_ullme(tmp_path), tmp_path / "export", ExportOptions(formats=("onnx",)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formats": ("tflite",)}, "format: 'tflite' is unknown; choose from sentence-transformers, onnx, gguf"),
        ({"formats": ("onnx",), "keep_adapter": True}, "format: 'onnx' holds one set of weights"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ExportOptions(**options)


def write_converter(folder: Path, code: str) -> Path:
    path = folder / "convert_hf_to_gguf.py"
    path.write_text(f"import sys, json\nfrom pathlib import Path\nfrom gguf import GGUFWriter\n{code}")
    return path


#: Writes what an older converter writes: neither attention nor pooling.
FORGETFUL = """
config = json.loads((Path(sys.argv[1]) / "config.json").read_text())
writer = GGUFWriter(sys.argv[3], "gpt2")
writer.add_string("seen", json.dumps([config["architectures"], config.get("n_ctx")]))
for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
    step()
"""


@pytest.mark.parametrize(("attention", "causal"), [("bidirectional", False), ("causal", True)])
def test_gguf_states_attention_and_pooling_whatever_the_converter_wrote(tmp_path, monkeypatch, attention, causal):
    from gguf import GGUFReader

    monkeypatch.setattr("ullme.export.gguf.importlib.util.find_spec", lambda name: None)
    converter = write_converter(tmp_path, FORGETFUL)
    model = tiny_ullme(tmp_path, "gpt2", attention=attention, pooling="lasttoken")
    report = export_model(model, tmp_path / "export", ExportOptions(formats=("gguf",), gguf_converter=converter))
    reader = GGUFReader(report.path / GGUF_FILE)
    assert reader.get_field("gpt2.attention.causal").contents() is causal
    assert reader.get_field("gpt2.pooling_type").contents() == 3
    assert json.loads(reader.get_field("seen").contents()) == [["GPT2LMHeadModel"], 640]
    assert report.remarks == ["GGUF: its embeddings, because llama-cpp-python is not installed"]
    assert note(report.path, "llama.cpp").ready
    assert sorted(p.name for p in tmp_path.iterdir()) == ["convert_hf_to_gguf.py", "export", "gpt2"]


def test_a_converter_that_fails_is_told_in_one_line_and_leaves_nothing(tmp_path):
    converter = write_converter(tmp_path, "raise NotImplementedError('BPE pre-tokenizer was not recognized')")
    with pytest.raises(ValueError, match="cannot convert this model .*BPE pre-tokenizer was not recognized") as error:
        export_model(
            tiny_ullme(tmp_path), tmp_path / "export", ExportOptions(formats=("gguf",), gguf_converter=converter)
        )
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["convert_hf_to_gguf.py", "llama"]


def test_gguf_without_a_converter_or_with_a_pooling_it_lacks_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="needs llama.cpp's converter, and none is on the PATH"):
        export_model(tiny_ullme(tmp_path), tmp_path / "export", ExportOptions(formats=("gguf",)))
    with pytest.raises(ValueError, match="GGUF has no pooling 'weightedmean'"):
        export_model(
            tiny_ullme(tmp_path, pooling="weightedmean"), tmp_path / "export", ExportOptions(formats=("gguf",))
        )


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("attention", "pooling"), [("bidirectional", "mean"), ("causal", "lasttoken")])
def test_llama_cpp_embeds_as_the_model(tmp_path, real_model, architecture, attention, pooling):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed; its wheel is built from source")
    converter = os.environ.get("ULLME_GGUF_CONVERTER")
    if converter is None:
        pytest.skip("ULLME_GGUF_CONVERTER does not name llama.cpp's convert_hf_to_gguf.py")
    from ullme.models.packaged import converted, packaged_gguf

    gemma = architecture == "gemma3_text"
    try:  # a tokenizer that the converter knows
        tokenizer = AutoTokenizer.from_pretrained(converted(packaged_gguf("gemma3-270m" if gemma else real_model)))
    except ValueError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 64, "num_attention_heads": 2, "head_dim": 32}
    sizes |= {} if architecture == "gpt2" else {"num_key_value_heads": 1}
    if gemma:  # llama.cpp has a full layer after every five with windows
        sizes |= {"num_hidden_layers": 7, "sliding_window": 8, "query_pre_attn_scalar": 32}
    AutoModelForCausalLM.from_config(tiny_config(architecture, **sizes)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    model = ULLME(str(tmp_path / "model"), attention=attention, pooling=pooling, max_length=64)
    options = ExportOptions(formats=("gguf",), gguf_converter=Path(converter))
    report = export_model(model, tmp_path / "export", options)
    assert [c.case for c in report.compared][-1] == "llama.cpp, each text alone"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_notes_say_which_servers_see_both_sides(tmp_path, architecture):
    path = export_model(tiny_ullme(tmp_path, architecture), tmp_path / "export", ExportOptions(verify=False)).path
    assert note(path, "vLLM").ready == (architecture != "gpt2")
    assert note(path, "text-embeddings-inference").ready == (architecture in ("llama", "mistral", "qwen3"))
    key = "gemma-embedding" if architecture == "gemma3_text" else "attention.causal = false"
    assert key in note(path, "llama.cpp").says and not note(path, "llama.cpp").ready
    (path / "onnx").mkdir()
    (path / "onnx" / "model.onnx").touch()
    assert note(path, "text-embeddings-inference").ready


def test_notes_say_what_an_export_lacks(tmp_path):
    model = tiny_ullme(tmp_path, lora_name="a", prompts={"query": "Find.\n"}, pooling="weightedmean")
    merged = export_model(model, tmp_path / "merged").path
    assert all("no pooling 'weightedmean'" in n.says for n in serving_notes(merged) if n.server != "ONNX Runtime")
    apart = export_model(model, tmp_path / "apart", ExportOptions(keep_adapter=True)).path
    assert all(not n.ready and "needs merged weights" in n.says for n in serving_notes(apart))
    pooled = export_model(tiny_ullme(tmp_path, prompts={"query": "Find.\n"}), tmp_path / "mean").path
    assert "pools a prompt's tokens too" in note(pooled, "vLLM").says
    (pooled / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is no exported directory"):
        serving_notes(tmp_path)
