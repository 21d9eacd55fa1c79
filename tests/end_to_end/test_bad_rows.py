"""What a user can get wrong in texts alone, scores and masking: one line with its cure, before anything is written."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from tests.tiny import tiny_folder

from ullme.cli import main

PAIR = {"query": "what purrs", "positive": "a cat purrs", "negatives": ["a dog barks", "a cow moos"]}
SCORED = {**PAIR, "scores": [3.5, 1.0, -2.0]}
TEXT = {"text": "a cat purrs"}
MARGIN, MNTP = ("objectives=[{type: margin_mse}]",), ("objectives=mntp",)
CURE = re.compile(r"did you mean|\b(add|give|set|write|rename|name|correct|remove|leave)\b")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def answer(model, tmp_path, capfd):
    """What ``ullme train`` says of these rows, of which one is good, with these overrides."""

    def refused(good, bad, overrides=(), columns=None, name="train") -> str:
        def write(name, rows):
            (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
            return {"path": str(tmp_path / name), "columns": columns or {}}

        data = {"train": [write("rows.jsonl", [good, bad] if name == "train" else [good])]}
        if name == "eval":
            data["eval"] = [write("held.jsonl", [bad])]
        run = {
            "model": {"name_or_path": str(model), "lora": {"r": 2}, "max_length": 32},
            "data": data,
            "trainer": {"output_dir": str(tmp_path / "out"), "max_steps": 1, "report_to": "none"},
        }
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
        code = main(["train", str(tmp_path / "run.yaml"), *overrides])
        out, err = capfd.readouterr()
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert err.startswith("error: ") and CURE.search(err), err
        assert not (tmp_path / "out").exists()
        return err

    return refused


MISTAKES = {
    "negatives beside a text": ((TEXT, {**TEXT, "negatives": ["n"]}), ("line 2", "negatives", "['n']", "a text alone")),
    "scores beside a text": ((TEXT, {**TEXT, "scores": [1.0]}), ("line 2", "scores", "[1.0]")),
    "empty text": ((TEXT, {"text": ""}), ("line 2", "text", "''")),
    "a text that is none": ((TEXT, {"text": 3}), ("line 2", "text", "3", "int")),
    "neither text nor pair": ((TEXT, {"body": "b"}), ("line 2", "'query'", "'text'", "'body'")),
    "text without the named column": ((TEXT, TEXT, (), {"text": "sentence"}), ("line 1", "'sentence'", "columns.text")),
    "texts where negatives are needed": ((TEXT, TEXT, ("objectives=grl",)), ("negatives", "dpo")),
    "texts where scores are needed": ((SCORED, TEXT, MARGIN), ("rows.jsonl:2", "scores", "margin_mse")),
    "no scores": ((PAIR, PAIR, ("objectives=[{type: distillation}]",)), ("rows.jsonl:1", "scores", "distillation")),
    "a row without scores": ((SCORED, PAIR, MARGIN), ("rows.jsonl:2", "scores", "margin_mse", "columns: {scores:")),
    "a held-out row without scores": ((SCORED, PAIR, MARGIN, None, "eval"), ("held.jsonl:1", "scores", "margin_mse")),
    "too few scores": ((SCORED, {**PAIR, "scores": [1, 2]}, MARGIN), ("line 2", "scores", "2 scores for 3")),
    "a score that is null": ((SCORED, {**PAIR, "scores": [1, None, 2]}), ("line 2", "scores[1]", "null")),
    "a score that is a text": ((SCORED, {**PAIR, "scores": ["1", 2, 3]}), ("line 2", "scores[0]", "'1'", "str")),
    "a score that is NaN": ((SCORED, {**PAIR, "scores": [1, 2, float("nan")]}), ("line 2", "scores[2]", "nan")),
    "half of the scores": ((SCORED, {**PAIR, "positive_scores": [1]}), ("line 2", "negative_scores", "0 scores for 2")),
    "scores said twice": ((SCORED, {**SCORED, "positive_score": 1}), ("line 2", "'scores' and 'positive_score'")),
    "unknown role": ((SCORED, SCORED, (), {"pos_score": "x"}), ("columns", "'pos_score'", "'positive_score'")),
    "mask of several tokens": ((TEXT, TEXT, (*MNTP, "objectives.0.mask_token=zebra")), ("mask_token", "'zebra'")),
    "mask that is none": ((TEXT, TEXT, (*MNTP, "objectives.0.mask_token=null")), ("mask_token", "none of its own")),
    "nothing to mask": ((TEXT, TEXT, (*MNTP, "objectives.0.mask_probability=0")), ("mask_probability", "0")),
    "masking and echo": ((TEXT, TEXT, (*MNTP, "model.echo=true")), ("echo", "True")),
}


@pytest.mark.parametrize(("given", "said"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_bad_row_is_one_line_with_its_cure_and_leaves_no_trace(answer, given, said):
    line = answer(*given)
    for words in said:
        assert words in line, line
