"""The models in ``models/``: they load, find the right passage, say nothing of the machine that made them, and score
what their cards say (slow; needs the tasks' data in ``$ULLME_MTEB_DATA``)."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ullme.cli import main
from ullme.eval import evaluate
from ullme.models import ULLME
from ullme.models.packaged import PACKAGED_MODELS
from ullme.reproduce.budgets import ALL_TASKS
from ullme.reproduce.release import SCORES
from ullme.reproduce.tasks import LANGUAGES, named_task

MODELS = sorted(path.parent for path in (Path(__file__).parents[2] / "models").glob("*/ullme.json"))
DATA = os.environ.get("ULLME_MTEB_DATA")
MIB = 2**20
#: The beginning of a path from a machine's root, or from a drive.
ABSOLUTE = re.compile(r"""(?:^|[\s"'`(=])(?:/\w|[A-Za-z]:\\)""", re.MULTILINE)
PASSAGES = [
    "The Louvre in Paris shows the Mona Lisa.",
    "Water boils at 100 degrees Celsius at sea level.",
    "Photosynthesis turns light, water and carbon dioxide into sugar.",
]
QUERIES = ["at which temperature does water boil", "where can I see the Mona Lisa", "how do plants make sugar"]
STATED = [(folder, score) for folder in MODELS for score in json.loads((folder / SCORES).read_text())["scores"]]

pytestmark = pytest.mark.skipif(not MODELS, reason="models/ holds no model yet")


def named(value):
    return value.name if isinstance(value, Path) else value["task"]


@pytest.mark.parametrize("folder", MODELS, ids=named)
def test_a_released_folder_is_small_and_names_no_place_of_the_machine_that_made_it(folder):
    files = {path.name: path for path in folder.iterdir()}
    assert {"README.md", SCORES, "ullme.json", "adapter_config.json", "adapter_model.safetensors"} <= files.keys()
    assert files["adapter_model.safetensors"].stat().st_size < 12 * MIB
    weights = load_file(files["adapter_model.safetensors"])
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    texts = [files[name].read_text() for name in ("README.md", SCORES, "ullme.json", "adapter_config.json")]
    assert not any(ABSOLUTE.search(text) for text in texts)
    assert json.loads(files["adapter_config.json"].read_text())["base_model_name_or_path"] in PACKAGED_MODELS


@pytest.mark.parametrize("folder", MODELS, ids=named)
def test_a_released_model_finds_the_passage_that_answers(folder, real_model):
    model = ULLME.from_pretrained(folder)
    scores_QP = model.similarity(model.encode_query(QUERIES), model.encode_document(PASSAGES))
    assert scores_QP.argmax(dim=1).tolist() == [1, 0, 2]


@pytest.mark.parametrize("folder", MODELS, ids=named)
def test_a_released_model_is_searched_with_as_its_card_says(folder, real_model, tmp_path, capsys):
    notes = tmp_path / "notes.txt"
    notes.write_text("\n".join(PASSAGES))
    assert main(["search", str(folder), str(notes), QUERIES[0], "--top", "1"]) == 0
    shown = capsys.readouterr().out
    assert "boils" in shown and "Louvre" not in shown


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="the tasks' data is not here: set ULLME_MTEB_DATA to its folder")
@pytest.mark.parametrize(("folder", "stated"), STATED, ids=named)
def test_a_released_model_scores_what_its_card_says(folder, stated, tmp_path, real_model):
    (task,) = [named_task(spec) for spec in ALL_TASKS if spec.partition(":")[0] == stated["task"]]
    scored = evaluate(
        ULLME.from_pretrained(folder, dtype="float32"),
        task,
        languages=LANGUAGES,
        prompts="none",
        data_dir=DATA,
        results_dir=tmp_path,
    )
    assert scored.scores[0].score == pytest.approx(stated["score"], abs=0.1)
