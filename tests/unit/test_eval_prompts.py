"""Which prompt stands before a text in evaluation."""

from __future__ import annotations

import mteb
import pytest

from tests.evaluation import Recorder
from tests.tiny import tiny_ullme
from ullme.eval import as_encoder, eval_mteb_dataset, evaluate
from ullme.eval.prompting import prompt_policy

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


def test_missing_instruction_is_found_before_anything_is_run(options):
    model = Recorder()
    with pytest.raises(ValueError, match="no instruction for task 'MSMARCO'"):
        evaluate(model, ["BIOSSES", "MSMARCO"], prompts={"STS": ""}, **options)
    assert not model.calls


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
