"""``ullme export``: the command, the model card it writes, and the way to the hub."""

from __future__ import annotations

import numpy as np
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError
from sentence_transformers import SentenceTransformer

from tests.tiny import SENTENCES, tiny_ullme
from ullme.cli import main
from ullme.export import export_sentence_transformers, hub, push_to_hub

RUN = """
model: {name_or_path: llama, lora: {r: 4, alpha: 8}}
data:
  train:
  - {path: /secret/place/pairs.jsonl, weight: 2.0}
  - {path: org/set, split: train}
objectives: [{type: contrastive, temperature: 0.05}]
trainer: {output_dir: /secret/place/run, learning_rate: 0.0002, max_steps: 7}
"""


@pytest.fixture
def run(tmp_path):
    """A run's folder with a trained model in it."""
    folder = tmp_path / "run"
    tiny_ullme(tmp_path, lora_name="a", prompts={"query": "Find.\n"}).save_pretrained(folder / "model")
    (folder / "run.yaml").write_text(RUN)
    (folder / "scores.md").write_text("| task | score |\n|---|---|\n| STS | 50.0 |\n")
    return folder


class Api:
    """The hub, up to the network."""

    calls: list = []  # noqa: RUF012 - emptied by the fixture

    def create_repo(self, name, **options):
        self.calls.append(("create", name, options))

    def upload_folder(self, repo_id, folder_path, **options):
        self.calls.append(("upload", repo_id, sorted(p.name for p in folder_path.iterdir())))
        return type("Commit", (), {"repo_url": f"https://hub/{repo_id}"})()


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setattr(Api, "calls", [])
    monkeypatch.setattr(hub, "HfApi", Api)
    return Api


def test_the_command_exports_a_saved_model_and_says_what_was_compared(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(run / "model"), str(out)]) == 0
    shown = capsys.readouterr().out
    assert "same: each text alone" in shown and "same: prompt 'query'" in shown
    assert "vLLM: ready" in shown and f"Exported: {out}" in shown
    ours = tiny_ullme(tmp_path, lora_name="a").encode(SENTENCES)
    np.testing.assert_allclose(SentenceTransformer(str(out)).encode(SENTENCES), ours, atol=1e-5)


def test_the_card_tells_data_recipe_proof_and_limits_but_no_places(run, tmp_path):
    assert main(["export", str(run / "model"), str(tmp_path / "out"), "--no-prompts"]) == 0
    text = (tmp_path / "out" / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.get("library_name") == "sentence-transformers" and "ullme" in card.data.tags
    for told in (
        "pairs.jsonl (weight 2.0)",
        "org/set (split train)",
        "temperature: 0.05",
        "max_steps: 7",
        "| STS | 50.0",
    ):
        assert told in text
    assert "secret" not in text and str(tmp_path) not in text
    assert "each text alone: largest difference" in text and "before 5.2 does not read `is_causal`" in text
    assert "prompts | none" in text


def test_the_command_keeps_the_adapter_apart_and_normalises(run, tmp_path):
    assert main(["export", str(run / "model"), str(tmp_path / "out"), "--keep-adapter", "--normalize"]) == 0
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    lengths = np.linalg.norm(SentenceTransformer(str(tmp_path / "out")).encode(SENTENCES), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "tflite"], "format: 'tflite' is unknown"),
        (["--push-to-hub", "a/b/c"], "push_to_hub: 'a/b/c' is no repository name"),
        (["--push-to-hub", "a/b", "--keep-adapter"], "push_to_hub: an adapter that is kept apart"),
        (["--public"], "public: is for --push-to-hub"),
        (["--format", "gguf", "--keep-adapter"], "format: 'gguf' holds one set of weights"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_no_folder(run, tmp_path, capsys, options, message):
    assert main(["export", str(run / "model"), str(tmp_path / "out"), *options]) == 2
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_exported_directory_is_not_exported_again(run, tmp_path, capsys):
    assert main(["export", str(run / "model"), str(tmp_path / "out")]) == 0
    assert main(["export", str(tmp_path / "out"), str(tmp_path / "again")]) == 2
    assert "is a sentence-transformers model already" in capsys.readouterr().err


def test_the_command_uploads_what_it_exported(run, tmp_path, api, capsys):
    assert main(["export", str(run / "model"), str(tmp_path / "out"), "--push-to-hub", "me/mine"]) == 0
    assert "Uploaded: https://hub/me/mine" in capsys.readouterr().out
    (made, name, options), (_, repo, files) = api.calls
    assert (made, name, repo, options["private"], options["exist_ok"]) == ("create", "me/mine", "me/mine", True, True)
    assert {"README.md", "config.json", "model.safetensors", "modules.json", "tokenizer.json"} <= set(files)


def test_a_hub_that_refuses_is_one_line_that_says_where_the_directory_is(tmp_path, api, monkeypatch):
    path = export_sentence_transformers(tiny_ullme(tmp_path), tmp_path / "out")

    def refuse(self, name, **options):
        raise PermissionError("401 Unauthorized\nmore")

    monkeypatch.setattr(api, "create_repo", refuse)
    with pytest.raises(
        ValueError, match="'me/mine' cannot be written .*401 Unauthorized.*; log in .* complete in"
    ) as error:
        push_to_hub(path, "me/mine")
    assert "\n" not in str(error.value) and issubclass(HfHubHTTPError, Exception)
    with pytest.raises(ValueError, match="is no exported directory"):
        push_to_hub(tmp_path, "me/mine")
