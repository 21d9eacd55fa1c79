"""Checkpoints: whole or not there at all, refused by the name of the damaged file, and resumed from exactly."""

from __future__ import annotations

import errno
import json
import os
import resource
from pathlib import Path

import pytest
import torch

from tests.unit.training import FULL, computed_reference, pairs, tiny_model, trainer, weights
from ullme.trainer import checkpoints as checkpoints_module
from ullme.trainer import resume

PLAIN = [{"type": "sft"}, {"type": "dpo", "beta": 0.5}]
SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}


def folder_of(tmp_path: Path, step: int, content: str = "weights") -> Path:
    """A sealed checkpoint of two files, one in a folder of its own."""
    place = tmp_path / f"checkpoint-{step}"
    (place / "shard").mkdir(parents=True)
    (place / "model.bin").write_text(content)
    (place / "shard" / "0.bin").write_text("shard")
    resume.seal(place)
    return place


def logged(run) -> list[dict[str, float]]:
    """All that was logged of training and evaluation, without times."""
    timed = ("runtime", "per_second", "train_loss", "total_flos")
    entries = [{k: v for k, v in entry.items() if not k.endswith(timed)} for entry in run.state.log_history]
    return [entry for entry in entries if entry.keys() - {"epoch", "step"}]


def watched(run) -> list[float]:
    """The losses of the steps that the run will take."""
    losses, step = [], run.training_step
    run.training_step = lambda *args: _kept(losses, step(*args))
    return losses


def _kept(losses: list[float], loss):
    losses.append(float(loss))
    return loss


# ---- What is whole ----

DAMAGES = {
    "vanished": (lambda place: (place / "model.bin").unlink(), "model.bin is missing"),
    "vanished in a folder": (lambda place: (place / "shard" / "0.bin").unlink(), "shard/0.bin is missing"),
    "truncated": (lambda place: (place / "model.bin").write_text("wei"), "model.bin has 3 bytes and 7 were written"),
    "flipped": (lambda place: (place / "model.bin").write_text("Weights"), "model.bin is not what was written"),
    "a folder in its place": (
        lambda place: ((place / "model.bin").unlink(), (place / "model.bin").mkdir()),
        "model.bin",
    ),
    "no manifest": (lambda place: (place / resume.MANIFEST_FILE).unlink(), "manifest.json is missing"),
    "half a manifest": (lambda place: os.truncate(place / resume.MANIFEST_FILE, 40), "manifest.json cannot be read"),
    "another's manifest": (lambda place: (place / resume.MANIFEST_FILE).write_text("[1]"), "manifest.json cannot"),
    "a later format": (
        lambda place: (place / resume.MANIFEST_FILE).write_text(json.dumps({"format": 9, "files": {}})),
        "format 9",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_by_name_and_set_aside_for_the_whole_one_before(tmp_path, damage, caplog):
    whole, place = folder_of(tmp_path, 2), folder_of(tmp_path, 10)
    assert resume.fault(place) is None and resume.last_whole(tmp_path) == place
    spoil, message = DAMAGES[damage]
    spoil(place)
    assert message in resume.fault(place)
    with pytest.raises(ValueError, match="checkpoint-10.*use another checkpoint"):
        resume.require_whole(place)
    assert resume.last_whole(tmp_path) == whole
    assert message in caplog.text and "'damaged-checkpoint-10'" in caplog.text and "'checkpoint-2'" in caplog.text
    assert not place.exists() and (tmp_path / "damaged-checkpoint-10").is_dir()


def test_a_file_that_was_added_does_no_harm(tmp_path):
    place = folder_of(tmp_path, 2)
    (place / "notes.txt").write_text("good one")
    assert resume.last_whole(tmp_path) == place


def test_where_every_checkpoint_is_damaged_the_run_does_not_start_again_by_itself(tmp_path):
    for step in (2, 4):
        (folder_of(tmp_path, step) / "model.bin").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-4: model.bin is missing; checkpoint-2: .*remove these folders"):
        resume.last_whole(tmp_path)
    assert [place.name for place in resume.checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4"]


@pytest.mark.parametrize("prefix", [".unfinished-", ".unfinished-old-"])
def test_a_process_killed_between_two_renames_leaves_a_checkpoint_that_is_found(tmp_path, prefix):
    folder_of(tmp_path, 4).rename(tmp_path / f"{prefix}checkpoint-4")
    folder_of(tmp_path, 2)
    assert resume.last_whole(tmp_path) == tmp_path / "checkpoint-4"


def test_what_a_killed_process_was_writing_or_deleting_is_removed(tmp_path):
    kept = folder_of(tmp_path, 2)
    folder_of(tmp_path, 1).rename(tmp_path / ".unfinished-deleted-checkpoint-1")
    (folder_of(tmp_path, 4) / resume.MANIFEST_FILE).unlink()
    (tmp_path / "checkpoint-4").rename(tmp_path / ".unfinished-checkpoint-4")
    (tmp_path / ".unfinished-run.yaml").write_text("model:")
    assert resume.last_whole(tmp_path) == kept
    assert list(tmp_path.iterdir()) == [kept]


@pytest.mark.parametrize("limit", [None, 1, 2, 3])
def test_rotation_deletes_the_oldest_but_never_the_newest_or_the_best_whatever_their_dates(tmp_path, limit):
    places = [folder_of(tmp_path, step) for step in (2, 4, 6, 10)]
    for age, place in enumerate(places):
        os.utime(place, (1e9 - 1e6 * age,) * 2)  # as a copy or a repair leaves them
    resume.rotate(tmp_path, limit, newest=places[2], best=str(places[0]))
    left = {None: [2, 4, 6, 10], 1: [2, 6], 2: [2, 6], 3: [2, 6, 10]}[limit]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"checkpoint-{step}" for step in left)


# ---- What is resumed ----


def test_a_checkpoint_within_a_log_period_resumes_to_the_same_logs_and_weights(tmp_path):
    """Logged every 4 steps, saved every 3: sums of losses cross a checkpoint, as does the end of an epoch."""
    options = {**SAVING, "max_steps": 12, "save_steps": 3, "logging_steps": 4, "chunk_tokens": 150}
    options |= {"eval_strategy": "steps", "eval_steps": 6, "eval_dataset": pairs(5)}
    whole = trainer(tmp_path / "a", tiny_model(tmp_path), "grl", **options)
    whole.train()
    for step in (3, 9, 12):
        resumed = trainer(tmp_path / "b", tiny_model(tmp_path), "grl", **options)
        losses = watched(resumed)
        output = resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "run" / f"checkpoint-{step}"))
        assert logged(resumed) == logged(whole)
        assert all(torch.equal(p, weights(whole.model)[name]) for name, p in weights(resumed.model).items())
        assert output.training_loss == pytest.approx(sum(losses) / max(1, len(losses)), abs=1e-6)


@pytest.mark.parametrize(
    "adapter", [pytest.param({}, id="adapter"), pytest.param(FULL, id="full", marks=pytest.mark.slow)]
)
def test_a_plain_objective_resumes_exactly_too(tmp_path, adapter):
    model = tiny_model(tmp_path, **adapter)
    table = computed_reference(model, tmp_path, pairs()) if adapter else None
    options = {**SAVING, "max_steps": 7, "chunk_tokens": 150, "reference": table}
    whole = trainer(tmp_path / "a", model, PLAIN, **options)
    whole.train()
    for step in (2, 4, 6):
        resumed = trainer(tmp_path / "b", tiny_model(tmp_path, **adapter), PLAIN, **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "run" / f"checkpoint-{step}"))
        assert logged(resumed) == logged(whole)
        assert all(torch.equal(p, weights(whole.model)[name]) for name, p in weights(resumed.model).items())


def test_a_run_that_was_done_takes_no_further_step(tmp_path):
    """Six steps of four an epoch: the last checkpoint is inside an epoch."""
    options = {**SAVING, "save_total_limit": 1}
    whole = trainer(tmp_path, tiny_model(tmp_path), **options)
    whole.train()
    again = trainer(tmp_path, tiny_model(tmp_path), **options)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6
    assert all(torch.equal(p, weights(whole.model)[name]) for name, p in weights(again.model).items())


def test_true_resumes_from_the_last_whole_checkpoint_and_starts_where_there_is_none(tmp_path, caplog):
    whole = trainer(tmp_path, tiny_model(tmp_path), **SAVING)
    whole.train(resume_from_checkpoint=True)
    path = tmp_path / "run" / "checkpoint-6" / "optimizer.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    again = trainer(tmp_path, tiny_model(tmp_path), **SAVING)
    again.train(resume_from_checkpoint=True)
    assert "optimizer.pt is not what was written" in caplog.text
    assert all(torch.equal(p, weights(whole.model)[name]) for name, p in weights(again.model).items())
    assert [p.name for p in resume.checkpoints(tmp_path / "run")] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


def test_saving_more_often_from_now_on_is_heeded(tmp_path):
    trainer(tmp_path, tiny_model(tmp_path), **{**SAVING, "max_steps": 2}).train()
    trainer(tmp_path, tiny_model(tmp_path), **{**SAVING, "save_steps": 1}).train(resume_from_checkpoint=True)
    assert [p.name[11:] for p in resume.checkpoints(tmp_path / "run")] == ["2", "3", "4", "5", "6"]


def test_another_number_of_rows_in_a_step_is_refused(tmp_path):
    trainer(tmp_path, tiny_model(tmp_path), **SAVING).train()
    other = trainer(tmp_path, tiny_model(tmp_path), **SAVING, per_device_train_batch_size=3)
    with pytest.raises(ValueError, match=r"3 rows on 1 process\(es\), and had 6 .*per_device_train_batch_size to 6"):
        other.train(resume_from_checkpoint=True)


# ---- What cannot be written ----


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (checkpoints_module.io, "write_files"),
        (torch, "save"),
        (resume, "seal"),
        (checkpoints_module.CheckpointTrainer, "_write_state"),
    ],
)
def test_a_full_disk_stops_the_run_in_one_line_and_leaves_the_checkpoint_before(tmp_path, monkeypatch, module, name):
    run = trainer(tmp_path, tiny_model(tmp_path), **SAVING)
    write, calls = getattr(module, name), []

    def fails_in_the_second_checkpoint(*args, **kwargs):
        calls.append(run.state.global_step)
        return (full_disk if run.state.global_step == 4 else write)(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(module, name, fails_in_the_second_checkpoint)
        with pytest.raises(
            ValueError, match=r"checkpoint-4' cannot be written \(No space left.*checkpoint-2$"
        ) as found:
            run.train()
    assert "\n" not in str(found.value)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-2"]


def test_a_file_that_the_system_does_not_let_grow_is_reported_as_such_by_every_writer(tmp_path):
    """A limit of the process stands in for a disk: the largest file of a checkpoint does not fit, then the next."""
    trainer(tmp_path, tiny_model(tmp_path), **{**SAVING, "max_steps": 2}).train()
    sizes = {path.stat().st_size for path in (tmp_path / "run" / "checkpoint-2").iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in sorted(sizes, reverse=True)[:4]:
        run = trainer(tmp_path, tiny_model(tmp_path), **SAVING)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, hard))
        try:
            with pytest.raises(ValueError, match=r"checkpoint-4' cannot be written \(.*File too large.*checkpoint-2$"):
                run.train(resume_from_checkpoint=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-2"]
