"""``ullme encode`` and ``ullme search`` over what it wrote: killed, continued, on several processes, as a Ray job."""

import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tests.corpora import TEXTS, load_counter, load_dying_midway, rows, tree, write_jsonl, write_source
from tests.tiny import tiny_folder

from ullme.cli import main
from ullme.encode import EmbeddedCorpus, EncodeOptions, TextSource, encode_corpus
from ullme.models import ULLME


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("encode") / "llama")


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path, "jsonl")


def encode(model, source, out, *options):
    return ["encode", str(model), str(source), str(out), "--shard-rows", "5", "--device", "cpu", *options]


def test_shards_hold_what_the_model_encodes(model, source, tmp_path):
    assert main(encode(model, source, tmp_path / "out", "--storage", "parquet", "--prompt", "Say: ")) == 0
    found = np.concatenate([block for _, block in EmbeddedCorpus(tmp_path / "out").stored_blocks()])
    np.testing.assert_allclose(found, ULLME(str(model)).encode(TEXTS, prompt="Say: "), atol=1e-6)


def test_a_text_is_found_by_itself_and_shown(model, source, tmp_path, capsys):
    assert main(encode(model, source, tmp_path / "out", "--precision", "int8", "--attention", "causal")) == 0
    assert f"ullme search {tmp_path / 'out'}" in capsys.readouterr().out
    assert main(["search", str(tmp_path / "out"), TEXTS[8], "--top-k", "1"]) == 0
    shown = capsys.readouterr().out
    assert TEXTS[8] in shown and "d8" in shown and "d9" not in shown


def test_texts_that_were_not_kept_are_shown_from_the_source(model, source, tmp_path, capsys):
    assert main(encode(model, source, tmp_path / "out", "--no-text")) == 0
    assert main(["search", str(tmp_path / "out"), TEXTS[8], "--top-k", "1", "--corpus", str(source)]) == 0
    assert TEXTS[8] in capsys.readouterr().out


def test_the_queries_of_a_beir_folder_are_a_corpus_of_their_own(model, tmp_path):
    assert main(encode(model, write_source(tmp_path, "beir"), tmp_path / "out", "--part", "queries")) == 0
    assert EmbeddedCorpus(tmp_path / "out").entries([0])[0].text == "a question"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--precision", "int9"], "precision: 'int9' is unknown"),
        (["--part", "corpsu"], "did you mean 'corpus'"),
        (["--devices", "cpu,cpu"], "device, devices, ray: each says where to compute"),
        (["--workers", "2"], "workers: is for --ray"),
        (["--truncate-dim", "33"], "give at most 32"),
    ],
)
def test_options_that_cannot_work_are_one_line(model, source, tmp_path, capsys, arguments, said):
    assert main(encode(model, source, tmp_path / "out", *arguments)) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["OUT", "x", "--model", "OTHER"], "use that model"),
        (["SOURCE", "x"], "is no corpus"),
        (["MODEL", "SOURCE"], "query: is missing"),
        (["MODEL", "SOURCE", "x", "--corpus", "SOURCE"], "go with a folder of ullme encode"),
        (["OUT", "x", "--corpus", "none.jsonl"], "none.jsonl"),
    ],
)
def test_searches_that_cannot_work_are_one_line(model, source, tmp_path, capsys, arguments, said):
    places = {"OUT": tmp_path / "out", "MODEL": model, "SOURCE": source, "OTHER": model.parent / "other"}
    if "OTHER" in arguments and not places["OTHER"].exists():
        tiny_folder(places["OTHER"], seed=3)
    assert main(encode(model, source, tmp_path / "out")) == 0
    capsys.readouterr()
    assert main(["search", *(str(places.get(a, a)) for a in arguments)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.slow
def test_a_killed_command_continues_to_the_same_bytes(model, tmp_path):
    source = write_jsonl(tmp_path / "many.jsonl", rows([f"text number {i} " * (1 + i % 9) for i in range(3000)]))
    command = [sys.executable, "-m", "ullme", *encode(model, source, tmp_path / "out")]
    killed = subprocess.Popen(command)
    while not (tmp_path / "out" / ".unfinished" / "shard-00007.json").exists():
        assert killed.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert subprocess.run(command, check=False).returncode == 0
    assert main(encode(model, source, tmp_path / "whole")) == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.slow
def test_a_ray_job_with_a_worker_killed_midway_writes_the_same_bytes(source, tmp_path):
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'ullme[ray]'")
    from ullme.encode.ray_job import on_ray

    make = partial(load_dying_midway, tmp_path / "killed")
    encode_corpus(load_counter, TextSource(source), tmp_path / "one", EncodeOptions(shard_rows=2))
    env = {"PYTHONPATH": str(Path(__file__).parents[2])}  # where Ray's processes find the model of the tests
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": env})
    try:
        workers = partial(on_ray, workers=2)
        encode_corpus(make, TextSource(source), tmp_path / "ray", EncodeOptions(shard_rows=2), workers=workers)
    finally:
        ray.shutdown()
    assert (tmp_path / "killed").exists()
    assert tree(tmp_path / "ray") == tree(tmp_path / "one")
