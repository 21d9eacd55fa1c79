"""What a user can get wrong: each mistake is one line with its cure, exit code 2, and nothing is written."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file
from tests.tiny import tiny_folder, tiny_tokenizer, tiny_ullme
from transformers import AutoConfig, AutoModelForCausalLM

from ullme.cli import main

PAIRS = [
    {"query": f"what is number {i}?", "positive": f"it is {i}", "negatives": [f"it is {i + 50}"]} for i in range(4)
]
CURE = re.compile(
    r"did you mean|\b(choose|use|give|name|check|write|set|add|remove|correct|fill|lower|raise|rename|save|get|put|"
    r"load|install|quote|leave|ask|end|compress|make|mine|say|see|connect)\b"
)


@dataclass
class Place:
    """A user's folder: a model, a checkpoint, pairs and a run file that would all work."""

    folder: Path

    def __getattr__(self, name: str) -> Path:
        return self.folder / name

    @property
    def pairs(self) -> Path:
        return self.folder / "pairs.jsonl"

    @property
    def run(self) -> Path:
        return self.folder / "run.yaml"

    def train(self, *overrides: str) -> list[str]:
        return ["train", str(self.run), *overrides]

    def train_on(self, text: str | bytes, *overrides: str, name: str = "pairs.jsonl") -> list[str]:
        path = self.folder / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return self.train(f"data.train.0.path={path}", *overrides)

    def thin_adapter(self) -> None:
        self.without_tensor(*ADAPTER)

    @property
    def source_a(self) -> str:
        return f"{{path: {self.pairs}, name: a}}"

    def checkpoint_encodes(self) -> list[str]:
        return encode(self, model="checkpoint")

    def rows(self, **changes: object) -> str:
        """Four good rows, and one with these changes on line 5; None removes a field."""
        row = {k: v for k, v in {**PAIRS[0], **changes}.items() if v is not None}
        return "".join(json.dumps(r) + "\n" for r in [*PAIRS, row])

    def write(self, name: str, text: str) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    def truncate(self, *parts: str) -> None:
        path = self.folder.joinpath(*parts)
        path.write_bytes(path.read_bytes()[:-100])

    def without_tensor(self, *parts: str) -> None:
        path = self.folder.joinpath(*parts)
        tensors = load_file(path)
        tensors.pop(sorted(tensors)[0])
        save_file(tensors, path, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    tiny_folder(folder / "model")
    tiny_folder(folder / "other", "gpt2")
    tiny_folder(folder / "sibling", "llama", seed=5)
    sizes = {"vocab_size": 384, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **sizes)).save_pretrained(folder / "recurrent")
    tiny_tokenizer().save_pretrained(folder / "recurrent")
    tiny_ullme(folder / "base", lora_name="a", lora_r=2).save_pretrained(folder / "checkpoint")
    return folder


@pytest.fixture
def place(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    settings = json.loads((tmp_path / "checkpoint" / "ullme.json").read_text())
    settings["settings"]["model_name_or_path"] = str(tmp_path / "base" / "llama")
    (tmp_path / "checkpoint" / "ullme.json").write_text(json.dumps(settings))
    found = Place(tmp_path)
    found.pairs.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    run = {
        "model": {"name_or_path": str(tmp_path / "model"), "lora": {"r": 2}, "max_length": 32},
        "data": {"train": [{"path": str(found.pairs)}]},
        "objectives": "grl",
        "trainer": {"output_dir": str(tmp_path / "out"), "max_steps": 1, "report_to": "none"},
    }
    found.run.write_text(yaml.safe_dump(run))
    return found


def refused(name: str, prepare: Callable[[Place], list[str]], *said: str):
    """A mistake by name: the command line that makes it, and what the answer must say."""
    return pytest.param(prepare, said, id=name)


def in_data_folder(place: Place, *arguments: str) -> list[str]:
    place.write("mteb/some/file", "")
    return ["eval", str(place.folder / "model"), "--data-dir", str(place.folder / "mteb"), *arguments]


def spoilt(spoil: Callable[[Place], object], command: Callable[[Place], list[str]]) -> Callable[[Place], list[str]]:
    """A command line after something of the user's was spoilt."""

    def prepare(place: Place) -> list[str]:
        spoil(place)
        return command(place)

    return prepare


def encode(place: Place, *arguments: str, model: str = "model", source: str = "", content: str = "") -> list[str]:
    path = place.folder / source if source else place.write("texts.txt", "one text\nanother text\n")
    if content:
        place.write(source, content)
    return ["encode", str(place.folder / model), str(path), str(place.folder / "vectors"), *arguments]


def rebase(place: Place, base: str) -> None:
    path = place.folder / "checkpoint" / "ullme.json"
    content = json.loads(path.read_text())
    content["settings"]["model_name_or_path"] = str(place.folder / base)
    path.write_text(json.dumps(content))


def another_run(place: Place) -> None:
    from ullme.config import read_run_file

    (place.folder / "out").mkdir()
    read_run_file(place.run, ["trainer.seed=7"]).save(place.folder / "out" / "run.yaml")
    place.write("out/checkpoint-1/manifest.json", "")


RUN_FILE = [
    refused("missing run file", lambda p: ["train", str(p.folder / "rum.yaml")], "rum.yaml", "run.yaml"),
    refused("run file is no YAML", lambda p: ["train", p.write("bad.yaml", "model: [")], "bad.yaml", "line"),
    refused("empty run file", lambda p: ["train", p.write("bad.yaml", "")], "bad.yaml", "has no sections"),
    refused("misspelt key", lambda p: p.train("trainer.learing_rate=1"), "trainer.learing_rate", "'learning_rate'"),
    refused("misspelt section", lambda p: p.train("modle.pooling=mean"), "modle", "'model'"),
    refused("wrong type", lambda p: p.train("trainer.max_steps=many"), "trainer.max_steps", "'many'"),
    refused("override without value", lambda p: p.train("trainer.seed"), "'trainer.seed'", "key=value"),
    refused("override of no item", lambda p: p.train("data.train.3.path=x"), "data.train.3.path"),
    refused("pooling", lambda p: p.train("model.pooling=mena"), "model.pooling", "'mena'", "'mean'"),
    refused("attention", lambda p: p.train("model.attention=both"), "model.attention", "'both'"),
    refused("dtype", lambda p: p.train("model.dtype=float31"), "model.dtype", "'float31'", "'float32'"),
    refused("LoRA rank", lambda p: p.train("model.lora.r=0"), "model.lora.r", "0"),
    refused("LoRA targets", lambda p: p.train("model.lora.target_modules=[nope]"), "nope"),
    refused("objective type", lambda p: p.train("objectives=[{type: dpoo}]"), "objectives.0", "'dpoo'", "'dpo'"),
    refused("preset", lambda p: p.train("objectives=grll"), "'grll'", "'grl'"),
    refused("negative weight", lambda p: p.train("objectives.1.weight=-1"), "objectives.1.weight", "-1"),
    refused("KTO without adapter", lambda p: p.train("model.lora=null", "objectives=grl_kto"), "model.lora", "adapter"),
    refused("live without adapter", lambda p: p.train("model.lora=null", "trainer.reference=live"), "precomputed"),
    refused("gradient accumulation", lambda p: p.train("trainer.gradient_accumulation_steps=2"), "chunk_tokens"),
    refused("generation template", lambda p: p.train("model.generation_template=x"), "{query}"),
    refused(
        "schedule without its arguments",
        lambda p: p.train("trainer.lr_scheduler_type=warmup_stable_decay"),
        "trainer.lr_scheduler_type",
        "num_decay_steps",
    ),
    refused("logs to what is not installed", lambda p: p.train("trainer.report_to=wandb"), "pip install wandb"),
    refused("optimizer not installed", lambda p: p.train("trainer.optim=schedule_free_adamw"), "trainer.optim"),
    refused("optimizer that cannot work", lambda p: p.train("trainer.optim=galore_adamw"), "trainer.optim"),
    refused("task of the run", lambda p: p.train("eval.tasks=[STSBenchmar]"), "'STSBenchmar'", "'STSBenchmark'"),
]

DATA = [
    refused("broken row", lambda p: p.train_on(p.rows() + '{"query": \n'), "pairs.jsonl", "line 6", "broken JSON"),
    refused("row is no object", lambda p: p.train_on("[1]\n"), "line 1", "is not an object"),
    refused("empty text", lambda p: p.train_on(p.rows(query=" ")), "line 5", "query", "' '"),
    refused("null text", lambda p: p.train_on('{"query": null, "positive": "x"}'), "line 1", "query"),
    refused("number for a text", lambda p: p.train_on(p.rows(positive=3)), "line 5", "positive", "3"),
    refused("missing column", lambda p: p.train_on(p.rows(positive=None)), "line 5", "'positive'"),
    refused("misspelt column", lambda p: p.train_on('{"query": "a", "postive": "b"}'), "'postive'"),
    refused("unknown role", lambda p: p.train("data.train.0.columns.anser=x"), "data.train.0.columns", "'anser'"),
    refused("no negatives", lambda p: p.train_on('{"query": "a", "positive": "b"}'), "negatives", "dpo"),
    refused("a positive that is a negative", lambda p: p.train_on(p.rows(negatives=["it is 0"])), "line 5", "it is 0"),
    refused("missing data file", lambda p: p.train(f"data.train.0.path={p.folder}/pears.jsonl"), "pairs.jsonl"),
    refused("empty data file", lambda p: p.train_on(""), "pairs.jsonl", "no rows"),
    refused("data is not UTF-8", lambda p: p.train_on(b'{"query": "\xff"}'), "line 1", "0xff"),
    refused("no Parquet", lambda p: p.train_on("PAR1", name="x.parquet"), "x.parquet"),
    refused("unknown format", lambda p: p.train_on("x", name="x.pdf"), "x.pdf", ".jsonl"),
    refused("source named twice", lambda p: p.train("data.train=[%s, %s]".replace("%s", p.source_a)), "'a'"),
]

WEIGHTS, ADAPTER = ("model", "model.safetensors"), ("checkpoint", "adapter_model.safetensors")
SETTINGS = ("checkpoint", "ullme.json")

MODELS = [
    refused("backbone type", lambda p: p.train("model.backbone_type=mistral"), "'mistral'", "'llama'"),
    refused("missing model folder", lambda p: p.train(f"model.name_or_path={p.folder}/modle"), "modle"),
    refused("folder without model", lambda p: p.train(f"model.name_or_path={p.folder}"), "config.json"),
    refused("truncated weights", spoilt(lambda p: p.truncate(*WEIGHTS), Place.train), "model.safetensors"),
    refused("weights lack a tensor", spoilt(lambda p: p.without_tensor(*WEIGHTS), Place.train), "missing"),
    refused("no tokenizer", spoilt(lambda p: [f.unlink() for f in p.model.glob("token*")], Place.train), "tokenizer"),
    refused("recurrent layers", lambda p: p.train(f"model.name_or_path={p.folder}/recurrent"), "mamba"),
    refused("no GGUF file", lambda p: p.train(f"model.name_or_path={p.folder}/x.gguf"), "x.gguf"),
    refused("broken GGUF file", lambda p: p.train(f"model.name_or_path={p.write('x.gguf', 'GGUF')}"), "x.gguf"),
    refused("missing adapter", lambda p: p.train("model.lora=null", f"model.adapter_path={p.folder}/no"), "no"),
    refused("truncated adapter", spoilt(lambda p: p.truncate(*ADAPTER), Place.checkpoint_encodes), ADAPTER[1]),
    refused(
        "adapter lacks a tensor", spoilt(lambda p: p.without_tensor(*ADAPTER), Place.checkpoint_encodes), "missing"
    ),
    refused(
        "adapter of another base", spoilt(lambda p: rebase(p, "sibling"), Place.checkpoint_encodes), "other weights"
    ),
    refused("adapter of another type", spoilt(lambda p: rebase(p, "other"), Place.checkpoint_encodes), "'llama'"),
    refused("truncated settings", spoilt(lambda p: p.truncate(*SETTINGS), Place.checkpoint_encodes), "ullme.json"),
]

OUTPUT = [
    refused("output in use", spoilt(lambda p: p.write("out/thesis.txt", ""), Place.train), "output_dir", "not empty"),
    refused("output is a file", lambda p: p.train(f"trainer.output_dir={p.pairs}"), "output_dir", "is a file"),
    refused("output below a file", lambda p: p.train(f"trainer.output_dir={p.pairs}/out"), "output_dir", "is a file"),
    refused("output of another run", spoilt(another_run, Place.train), "trainer.seed", "7", "42"),
    refused("output of encode in use", spoilt(lambda p: p.write("vectors/x", ""), encode), "vectors", "exists"),
]

COMMANDS = [
    refused("unknown command", lambda p: ["trian"], "'trian'", "--help"),
    refused("missing argument", lambda p: ["train"], "run_file", "ullme train --help"),
    refused("unknown option", lambda p: ["encode", "--fast"], "--fast"),
    refused("option of wrong type", lambda p: encode(p, "--batch-size", "many"), "--batch-size", "--help"),
    refused("batch size 0", lambda p: encode(p, "--batch-size", "0"), "--batch-size", "--help"),
    refused("unknown task", lambda p: in_data_folder(p, "--task", "STSBenchmar"), "'STSBenchmar'", "'STSBenchmark'"),
    refused("unknown language", lambda p: in_data_folder(p, "--task", "STS12", "--language", "english"), "'eng'"),
    refused("language the task lacks", lambda p: in_data_folder(p, "--task", "STS12", "--language", "deu"), "STS12"),
    refused("unknown benchmark", lambda p: in_data_folder(p, "--benchmark", "MTEB(eng, v9)"), "MTEB(eng, v1)"),
    refused("nothing to evaluate", lambda p: in_data_folder(p), "tasks"),
    refused("task without its data", lambda p: in_data_folder(p, "--task", "STS12"), "mteb/sts12-sts"),
    refused("missing data folder", lambda p: ["eval", str(p.model), "--task", "STS12", "--data-dir", "no"], "'no'"),
    refused("unknown device", lambda p: encode(p, "--device", "gpu"), "'gpu'", "cpu"),
    refused("encode: pooling", lambda p: encode(p, "--pooling", "mena"), "'mena'", "'mean'"),
    refused("encode: missing input", lambda p: encode(p, source="no.jsonl"), "no.jsonl"),
    refused("encode: empty text", lambda p: encode(p, source="t.txt", content="a\n\nb\n"), "row 2"),
    refused("encode: broken row", lambda p: encode(p, source="t.jsonl", content="{"), "line 1"),
    refused(
        "encode: no such column", lambda p: encode(p, "--column", "body", source="pairs.jsonl"), "'body'", "'query'"
    ),
    refused("check: nothing named", lambda p: ["check"], "--all"),
    refused("check: missing model", lambda p: ["check", str(p.folder / "no")], "no"),
    refused("search: empty query", lambda p: ["search", str(p.model), str(p.pairs), " "], "query"),
    refused("search: missing file", lambda p: ["search", str(p.model), str(p.folder / "no.txt"), "x"], "no.txt"),
]


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    found = {path: path.stat() for path in sorted(folder.rglob("*"))}
    return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


@pytest.mark.parametrize(("prepare", "said"), RUN_FILE + DATA + MODELS + OUTPUT + COMMANDS)
def test_a_mistake_is_one_line_with_its_cure_and_leaves_no_trace(place, capfd, monkeypatch, prepare, said):
    monkeypatch.setenv("ULLME_CACHE", str(place.folder.parent / f"{place.folder.name}-cache"))
    arguments = prepare(place)
    before = tree(place.folder)
    code = main(arguments)
    out, err = capfd.readouterr()
    assert code == 2, (out, err)
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert "Traceback" not in err and out == ""
    for words in said:
        assert words in err
    assert CURE.search(err), err
    assert tree(place.folder) == before


def test_there_are_at_least_thirty_mistakes():
    assert len(RUN_FILE + DATA + MODELS + OUTPUT + COMMANDS) >= 30


@pytest.mark.parametrize("program", [["-c", "from ullme.cli import main; raise SystemExit(main())"], ["-m", "ullme"]])
def test_the_program_itself_answers_in_one_line(place, program):
    command = [sys.executable, *program, *place.train_on(place.rows(query=""))]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert re.fullmatch(r"error: .*pairs\.jsonl, line 5: query: empty text ''.*\n", answer.stderr)


def test_no_library_adds_a_line_when_a_model_is_refused(place):
    place.truncate(*ADAPTER)
    command = [sys.executable, "-m", "ullme", *place.checkpoint_encodes()]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert re.fullmatch(r"error: .*adapter_model\.safetensors.*\n", answer.stderr)
