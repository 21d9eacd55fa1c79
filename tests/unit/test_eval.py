"""Evaluation on MTEB: scores, their identity, prompts and languages, on datasets that the tests write."""

from __future__ import annotations

import json

import mteb
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import BertConfig, BertForMaskedLM

from tests.mteb_folders import WORDS, write_classification, write_jsonl, write_msmarco, write_retrieval, write_sts
from tests.tiny import tiny_folder, tiny_tokenizer, tiny_ullme
from ullme.eval import as_encoder, eval_mteb_dataset, evaluate, load_model, select_tasks
from ullme.eval.models import kind_of
from ullme.eval.prompting import prompt_policy
from ullme.models import ULLME


class Recorder:
    """An embedder that remembers what it was given; texts that share a word are near each other."""

    def __init__(self, name: str = "recorder", keep: bool = True) -> None:
        self.name = name
        self.calls: list[tuple[list[str], str]] = []
        if keep:
            self.fingerprint = lambda: name

    def encode(self, texts: list[str], prompt: str = "") -> np.ndarray:
        self.calls.append((list(texts), prompt))
        seen = [[float(w in t.lower()) for w in WORDS] for t in texts]
        return np.array(seen, dtype=np.float32) + 1e-3


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets-cache"))


@pytest.fixture
def data(tmp_path):
    write_msmarco(tmp_path / "data")
    write_sts(tmp_path / "data")
    write_classification(tmp_path / "data", "mteb/emotion")
    return tmp_path / "data"


@pytest.fixture
def options(tmp_path, data):
    return {"data_dir": data, "results_dir": tmp_path / "results", "show_progress_bar": False}


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


def folders_of(model, options):
    result = evaluate(model, "BIOSSES", **options)
    return result.folder, result.scores


def test_second_checkpoint_of_the_same_name_does_not_read_the_first_ones_scores(tmp_path, options):
    model = tiny_ullme(tmp_path, lora_name="adapter")
    first, _ = folders_of(model, options)
    same, _ = folders_of(model, options)
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "lora_B" in n).add_(0.1)
    second, _ = folders_of(model, options)
    assert first == same and first.name != second.name and first.parent == second.parent


@pytest.mark.parametrize(
    "setting",
    [{"attention": "causal"}, {"pooling": "lasttoken"}, {"max_length": 8}, {"append_eos": True}, {"echo": True}],
)
def test_every_setting_that_decides_an_embedding_is_part_of_the_identity(tmp_path, options, setting):
    base, _ = folders_of(tiny_ullme(tmp_path), options)
    other, _ = folders_of(tiny_ullme(tmp_path, **setting), options)
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


def sentence_transformer(folder, seed=0):
    transformer = Transformer(
        str(tiny_folder(folder, seed=seed)),
        modality_config={"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        module_output_name="token_embeddings",
    )
    return SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu")


def test_sentence_transformers_are_told_apart_by_their_weights(tmp_path, options):
    a, same, b = (sentence_transformer(tmp_path / name, seed) for name, seed in (("a", 0), ("same", 0), ("b", 1)))
    folders = [folders_of(model, options)[0] for model in (a, same, b)]
    assert folders[0].name == folders[1].name != folders[2].name
    a.encode(["a text of another length", "short"])
    assert folders_of(a, options)[0] == folders[0]
    a.max_seq_length = 5
    assert folders_of(a, options)[0] != folders[0]


def test_sentence_transformer_scores_equal_mtebs_own(tmp_path, options, data):
    model = sentence_transformer(tmp_path / "m")
    task = mteb.get_task("BIOSSES")
    task.metadata = task.metadata.model_copy(
        update={"dataset": {"path": str(data / "mteb/biosses-sts"), "revision": "main"}}
    )
    expected = mteb.evaluate(model, task, cache=None, show_progress_bar=False).task_results[0].get_score()
    assert eval_mteb_dataset(model, "BIOSSES", **options) == {"eng": pytest.approx(100 * expected)}


def test_any_mteb_model_is_taken_as_it_is(options):
    model = mteb.get_model("mteb/baseline-random-encoder")
    assert 0 <= eval_mteb_dataset(model, "MSMARCO", **options)["eng"] <= 100
    with pytest.raises(ValueError, match="brings its own prompts"):
        eval_mteb_dataset(model, "MSMARCO", prompts="task", **options)


def test_model_is_found_by_name_or_folder(tmp_path):
    folder = tiny_folder(tmp_path / "base")
    model = load_model(folder, attention="causal")
    assert model.attention == "causal"
    model.save_pretrained(tmp_path / "checkpoint")
    assert load_model(tmp_path / "checkpoint").attention == "causal"
    sentence_transformer(tmp_path / "st").save_pretrained(str(tmp_path / "st-saved"))
    assert isinstance(load_model(tmp_path / "st-saved"), SentenceTransformer)
    assert type(load_model("mteb/baseline-random-encoder")).__name__ == "RandomEncoderBaseline"
    with pytest.raises(ValueError, match="brings its own"):
        load_model(tmp_path / "st-saved", pooling="cls")


def test_object_that_cannot_encode_is_refused(options):
    with pytest.raises(ValueError, match=r"no encode\(list of str\)"):
        evaluate(object(), "MSMARCO", **options)


MSMARCO_INSTRUCTION = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "


def test_instruction_of_the_task_stands_before_queries_and_never_before_passages(options):
    model = Recorder()
    eval_mteb_dataset(model, "MSMARCO", prompts="task", **options)
    prompts = {texts[0]: prompt for texts, prompt in model.calls}
    assert prompts["What is a apple?"] == MSMARCO_INSTRUCTION
    assert prompts[next(t for t in prompts if "passage about" in t)] == ""


def test_both_sides_of_a_symmetric_task_get_the_instruction(options):
    model = Recorder()
    evaluate(model, ["BIOSSES", "EmotionClassification"], prompts="task", **options)
    prompts = {prompt for _, prompt in model.calls}
    assert len(model.calls) >= 4 and len(prompts) == 2
    assert "Instruct: Retrieve semantically similar text.\nQuery: " in prompts


def test_instructions_can_be_given_by_task_or_type(options):
    model = Recorder()
    evaluate(model, ["MSMARCO", "BIOSSES"], prompts={"MSMARCO": "Find.", "STS": ""}, **options)
    assert {prompt for _, prompt in model.calls} == {"Instruct: Find.\nQuery: ", ""}
    with pytest.raises(ValueError, match="no instruction for task 'MSMARCO'"):
        evaluate(Recorder("other"), "MSMARCO", prompts={"STS": ""}, **options)


def test_prompts_of_the_model_come_first(tmp_path):
    with_prompts = tiny_ullme(tmp_path, prompts={"query": "query: ", "document": "passage: "})
    assert as_encoder(with_prompts).encoder.policy.mode == "own"
    assert as_encoder(tiny_ullme(tmp_path)).encoder.policy.mode == "task"
    policy = as_encoder(with_prompts).encoder.policy
    metadata = mteb.get_task("MSMARCO").metadata
    assert policy.prompt(metadata, mteb.types.PromptType.document) == "passage: "
    assert policy.prompt(metadata, mteb.types.PromptType.query) == "query: "


def test_object_without_a_prompt_argument_gets_it_in_the_text(options):
    class Bare(Recorder):
        def encode(self, texts):
            return super().encode(texts)

    model = Bare()
    eval_mteb_dataset(model, "MSMARCO", prompts="task", **options)
    assert any(text.startswith(MSMARCO_INSTRUCTION) for texts, _ in model.calls for text in texts)


@pytest.mark.parametrize("prompts", ["tasks", "own"])
def test_prompts_that_cannot_be_are_refused(prompts):
    with pytest.raises(ValueError, match="^prompts: "):
        prompt_policy(prompts, None, "none")


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


def test_missing_instruction_is_found_before_anything_is_run(options):
    model = Recorder()
    with pytest.raises(ValueError, match="no instruction for task 'MSMARCO'"):
        evaluate(model, ["BIOSSES", "MSMARCO"], prompts={"STS": ""}, **options)
    assert not model.calls


def test_damaged_sentence_transformer_is_refused_in_one_line(tmp_path):
    sentence_transformer(tmp_path / "st").save_pretrained(str(tmp_path / "saved"))
    weights = tmp_path / "saved" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="sentence-transformers cannot load it") as error:
        load_model(tmp_path / "saved")
    assert "\n" not in str(error.value)


def test_repeated_evaluation_starts_from_the_same_random_state(tmp_path):
    folder = tmp_path / "data/mteb/twentynewsgroups-clustering"
    texts = [f"{w} {i}" for i in range(40) for w in WORDS]
    write_jsonl(folder / "test.jsonl", [{"sentences": texts, "labels": [i % 5 for i in range(len(texts))]}])
    options = {"data_dir": tmp_path / "data", "results_dir": tmp_path / "results", "show_progress_bar": False}
    runs = [evaluate(Recorder(), "TwentyNewsgroupsClustering.v2", overwrite=True, **options) for _ in range(2)]
    assert runs[0].task_results[0].scores == runs[1].task_results[0].scores


def test_plain_encoder_is_loaded_by_sentence_transformers(tmp_path):
    config = BertConfig(
        vocab_size=384, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    tiny_tokenizer().save_pretrained(tmp_path / "bert")
    assert kind_of(str(tmp_path / "bert")) == "sentence-transformers"
    assert isinstance(load_model(tmp_path / "bert"), SentenceTransformer)
    with pytest.raises(ValueError, match="kind: 'bert' is unknown"):
        load_model(tmp_path / "bert", kind="bert")


def test_name_that_is_nowhere_is_refused_in_one_line():
    with pytest.raises(ValueError, match="model 'smollm3-135m' cannot be loaded: did you mean") as error:
        load_model("smollm3-135m")
    assert "\n" not in str(error.value)
