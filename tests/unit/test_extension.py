"""Code outside ullme: found by import path, held to what it must be, kept by name; and the page that explains it."""

import sys

import pytest
import torch

from tests.extending import blocks, checks, importable, modules
from tests.tiny import tiny_ullme
from ullme import cli
from ullme.data import DataSource, load_pairs
from ullme.export import export_sentence_transformers
from ullme.extension import imported
from ullme.models import ULLME, ModelSettings
from ullme.models.pooling import Pooling
from ullme.types import Texts


@pytest.fixture
def outside(tmp_path, monkeypatch):
    yield from importable(tmp_path, monkeypatch)


def one_line(caught):
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- the page ----


def test_the_page_has_three_extensions_and_every_block_is_below_thirty_lines():
    assert set(modules()) == {"my_objective", "my_pooling", "my_format"}
    assert all(block.count("\n") < 30 for language in ("python", "yaml") for block in blocks(language))


def test_the_checks_of_the_page_hold(outside, capsys):
    assert len(checks()) == 3
    for check in checks():
        exec(compile(check, "docs/extending.md", "exec"), {})
    assert "'rows': 12" in capsys.readouterr().out


# ---- import paths ----


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("my_poolin:maximum", "there is no module 'my_poolin', did you mean 'my_pooling'?"),
        ("ullme.modeels:ULLME", "there is no module 'ullme.modeels', did you mean 'models'?"),
        ("my_pooling.deeper:maximum", "there is no module 'my_pooling.deeper'; correct the name"),
        ("my_pooling:maximumm", "'my_pooling' has no 'maximumm', did you mean 'maximum'?"),
        ("my_pooling:AttentionPooling.no", "has no 'no'"),
        ("my_imports:f", "imports 'no_such_library', which is not there; install it"),
        ("my_syntax:f", "cannot be imported (invalid syntax (my_syntax.py, line 1)); correct the module"),
        ("my_pooling:", "is no import path; write package.module:name"),
        (":maximum", "is no import path"),
        ("./my_pooling.py:maximum", "is no import path"),
    ],
)
def test_an_import_path_that_leads_nowhere_says_why(outside, path, said):
    with pytest.raises(ValueError) as caught:
        imported(path, "pooling")
    assert one_line(caught).startswith(f"pooling: {path!r}") and said in str(caught.value)


def test_a_command_finds_modules_where_it_runs_after_all_libraries(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert cli.main(["--version"]) == cli.main(["--version"]) == 0
    assert sys.path[-1] == str(tmp_path) and sys.path.count(str(tmp_path)) == 1


# ---- poolings ----


@pytest.mark.parametrize("name", ["my_pooling:maximum", "my_pooling:AttentionPooling"])
def test_a_model_with_an_outside_pooling_is_saved_and_loaded(outside, tiny_models, name):
    model = tiny_ullme(tiny_models, lora_name="test", lora_r=2, pooling=name)
    for parameter in model.pooler.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(outside / "model")
    assert (outside / "model" / "pooler.safetensors").exists() == bool(list(model.pooler.parameters()))
    loaded = ULLME.from_pretrained(outside / "model")
    texts = ["one text", "another one, which is longer"]
    assert (loaded.encode(texts) == model.encode(texts)).all()
    assert loaded.fingerprint() == model.fingerprint()


def test_a_model_whose_pooling_is_not_at_hand_says_where_to_put_it(outside, tiny_models):
    tiny_ullme(tiny_models, pooling="my_pooling:maximum").save_pretrained(outside / "model")
    (outside / "my_pooling.py").rename(outside / "elsewhere.py")
    sys.modules.pop("my_pooling")
    with pytest.raises(ValueError, match="pooling: 'my_pooling:maximum': there is no module .* on PYTHONPATH"):
        ULLME.from_pretrained(outside / "model")


def test_an_untrained_attention_pooling_is_mean_pooling(outside):
    given = (torch.randn(7, 8), Texts.from_lists([[1, 2, 3, 4], [5, 6, 7]], skip=[1, 0]))
    assert torch.allclose(Pooling("my_pooling:AttentionPooling", 8)(*given), Pooling("mean", 8)(*given), atol=1e-6)


def test_the_fingerprint_changes_with_the_code_of_a_pooling(outside, tiny_models):
    model = tiny_ullme(tiny_models, pooling="my_pooling:maximum")
    before = model.fingerprint()
    with (outside / "my_pooling.py").open("a") as file:
        file.write("# changed\n")
    assert model.fingerprint() != before


def test_a_model_with_an_outside_pooling_is_not_exported(outside, tiny_models):
    model = tiny_ullme(tiny_models, pooling="my_pooling:maximum")
    with pytest.raises(ValueError, match="pooling: 'my_pooling:maximum' does not exist in sentence-transformers"):
        export_sentence_transformers(model, outside / "exported")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_broken:two", "takes (hidden_NTD, mask_NT); let it take (hidden_NTD, mask_NT, pooled_NT)"),
        ("my_broken:number", "is of type int; name a function of (hidden_NTD, mask_NT, pooled_NT)"),
        ("my_broken:WithoutWidth", "let it take (width)"),
        ("my_broken:WithoutMasks", "let it take (self, hidden_NTD, mask_NT, pooled_NT)"),
        ("my_broken:NoLoss", "is the class NoLoss; name a subclass of torch's Module"),
    ],
)
def test_what_is_no_pooling_is_refused_before_a_model_is_loaded(outside, name, said):
    with pytest.raises(ValueError) as caught:
        ModelSettings("some/model", pooling=name)
    assert one_line(caught).startswith("pooling: ") and said in str(caught.value)


def test_a_pooling_of_another_width_is_refused(outside):
    with pytest.raises(ValueError, match=r"gives \(2, 16\) for hidden states \(2, 4, 8\); return \(2, 8\)"):
        Pooling("my_broken:Wider", 8)(torch.randn(7, 8), Texts.from_lists([[1, 2, 3, 4], [5, 6, 7]]))


# ---- formats ----


def test_an_outside_format_gives_pairs(outside):
    pairs = load_pairs(DataSource(path="pairs.tsv", format="my_format:tsv_rows", limit=2))
    assert [pair.query for pair in pairs] == ["what is 0?", "what is 1?"]
    assert pairs[1].negatives == ("it is 31", "no idea") and pairs[1].row_id == "pairs.tsv:2"


@pytest.mark.parametrize(
    ("name", "path", "said"),
    [
        ("my_format:tsv_rows", "no.tsv", "no.tsv, before the first row: [Errno 2] No such file"),
        ("my_broken:no_rows", "pairs.tsv", "pairs.tsv, after row 1: {'query': 'a', 'positive': 'b'} is no row; let"),
        ("my_broken:nothing", "pairs.tsv", "pairs.tsv: no rows"),
    ],
)
def test_what_goes_wrong_in_an_outside_reader_is_said_with_its_place(outside, name, path, said):
    with pytest.raises(ValueError) as caught:
        load_pairs(DataSource(path=path, format=name))
    assert said in one_line(caught)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_broken:two", "takes (hidden_NTD, mask_NT); let it take (path, subset, split)"),
        ("jsnl", "'jsnl' is unknown; choose from jsonl"),
    ],
)
def test_what_is_no_format_is_refused_when_it_is_named(outside, name, said):
    with pytest.raises(ValueError) as caught:
        DataSource(path="pairs.tsv", format=name)
    assert said in str(caught.value)
