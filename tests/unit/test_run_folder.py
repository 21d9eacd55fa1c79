"""A run's folder: which run it takes, and which it refuses."""

import pytest
import yaml
from filelock import FileLock

from ullme.apps.run_folder import LOCK_FILE, folder_to_oneself, require_own_folder
from ullme.config import read_run_file
from ullme.trainer.resume import seal


@pytest.fixture
def run_file(tmp_path):
    run = {
        "model": {"name_or_path": "some/model"},
        "data": {"train": [{"path": "pairs.jsonl"}]},
        "trainer": {"output_dir": str(tmp_path / "out")},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


@pytest.fixture
def folder(run_file, tmp_path):
    """The folder of a run that was started, and has done no step."""
    with folder_to_oneself(read_run_file(run_file)):
        pass
    (tmp_path / "out" / "calls.json").write_text("{}")
    return tmp_path / "out"


@pytest.mark.parametrize("change", ["trainer.seed=7", "trainer.optim=sgd", "trainer.resume=false"])
def test_a_folder_in_which_nothing_was_learned_takes_a_changed_run(run_file, folder, change):
    changed = read_run_file(run_file, [change])
    require_own_folder(changed)
    with folder_to_oneself(changed):
        assert read_run_file(folder / "run.yaml") == changed


def test_a_run_file_that_is_refused_by_now_does_not_keep_the_folder(run_file, folder):
    kept = folder / "run.yaml"
    kept.write_text(kept.read_text().replace("adamw_torch", "no_such"))
    require_own_folder(read_run_file(run_file))


@pytest.mark.parametrize("learned", ["checkpoint-5", ".unfinished-old-checkpoint-5", "model"])
@pytest.mark.parametrize(
    ("change", "said"), [("trainer.seed=7", "trainer.seed=42"), ("trainer.resume=false", "resume is false")]
)
def test_a_folder_in_which_something_was_learned_refuses_a_changed_run(run_file, folder, learned, change, said):
    (folder / learned).mkdir()
    seal(folder / learned)
    require_own_folder(read_run_file(run_file))
    with pytest.raises(ValueError, match=said):
        require_own_folder(read_run_file(run_file, [change]))


def test_a_checkpoint_that_was_not_written_to_its_end_is_nothing_learned(run_file, folder):
    (folder / ".unfinished-checkpoint-5").mkdir()
    require_own_folder(read_run_file(run_file, ["trainer.seed=7"]))


def test_a_folder_that_another_command_holds_is_refused_whatever_it_has_learned(run_file, folder):
    before = (folder / "run.yaml").read_bytes()
    with (
        FileLock(folder / LOCK_FILE),
        pytest.raises(ValueError, match="another command trains in"),
        folder_to_oneself(read_run_file(run_file, ["trainer.seed=7"])),
    ):
        pass
    assert (folder / "run.yaml").read_bytes() == before


def test_what_another_command_learned_since_the_folder_was_looked_at_is_kept(run_file, folder):
    changed = read_run_file(run_file, ["trainer.seed=7"])
    require_own_folder(changed)
    (folder / "checkpoint-5").mkdir()
    with pytest.raises(ValueError, match="trainer.seed=42"), folder_to_oneself(changed):
        pass
    assert read_run_file(folder / "run.yaml").trainer.seed == 42
    with folder_to_oneself(read_run_file(run_file)):
        pass
