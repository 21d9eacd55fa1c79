"""A process killed at any single call that changes the disk leaves a whole checkpoint, the last or the one before."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ullme.trainer import resume


class Killed(BaseException):
    """Stands for kill -9: nothing catches it, and nothing is changed on the disk after it."""


class Disk:
    """Counts the calls that change the disk or wait for it, and dies before the one of a given number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, dies_at: int | None) -> None:
        self.calls, self.dies_at = 0, dies_at
        for module, name in ((os, "replace"), (os, "rename"), (os, "fsync"), (os, "unlink"), (os, "rmdir")):
            monkeypatch.setattr(module, name, self._counted(getattr(module, name)))
        monkeypatch.setattr(Path, "write_text", self._counted(Path.write_text))
        monkeypatch.setattr(shutil, "rmtree", self._rmtree)

    def _counted(self, call):
        def counted(*args, **kwargs):
            self._step()
            return call(*args, **kwargs)

        return counted

    def _step(self) -> None:
        if self.dies_at is not None and self.calls >= self.dies_at:
            raise Killed
        self.calls += 1

    def _rmtree(self, folder, ignore_errors=False) -> None:
        if not Path(folder).exists():
            return
        for path in sorted(Path(folder).iterdir()):  # file by file, so that it can die in between
            path.unlink()
        os.rmdir(folder)


def write(run_dir: Path, step: int, content: str) -> None:
    """What a trainer does to write a checkpoint, with one to be kept."""
    place = run_dir / f"checkpoint-{step}"
    resume.remove_unfinished(run_dir)
    folder = resume.unfinished(place)
    folder.mkdir()
    (folder / "a.bin").write_text(content)
    (folder / "b.bin").write_text(content)
    resume.seal(folder)
    resume.put(folder, place)
    resume.rotate(run_dir, 1, place, None)


def dying(call: int, act, *args) -> bool:
    """Act and die before the call of this number; False if there was none."""
    with pytest.MonkeyPatch.context() as patched:
        Disk(patched, dies_at=call)
        try:
            act(*args)
        except Killed:
            return True
    return False


def deaths(tmp_path: Path, second: int) -> list[tuple[str, str]]:
    """For each call of writing a second checkpoint: what is found after dying right before it, and its content."""
    found = []
    while True:
        run_dir = tmp_path / str(len(found))
        run_dir.mkdir()
        write(run_dir, 2, "first")
        if not dying(len(found), write, run_dir, second, "second"):
            return found
        place = resume.last_whole(run_dir)
        assert not list(run_dir.glob(f"{resume.UNFINISHED}*"))
        assert [path for path in resume.checkpoints(run_dir) if resume.fault(path)] == []
        found.append((place.name, (place / "b.bin").read_text()))


@pytest.mark.parametrize("second", [4, 2], ids=["the next step", "the same step again"])
def test_a_death_before_any_call_leaves_the_checkpoint_before_or_the_new_one(tmp_path, second):
    found = deaths(tmp_path, second)
    before, after = ("checkpoint-2", "first"), (f"checkpoint-{second}", "second")
    assert len(found) > 10 and set(found) == {before, after}
    assert found == sorted(found, key=lambda one: one == after)  # once the new one is there, it stays


def test_two_deaths_in_a_row_lose_nothing(tmp_path):
    """A process that clears up after a killed one is killed itself."""
    (tmp_path / "count").mkdir()
    for first in range(len(deaths(tmp_path / "count", 4))):
        for second in range(0, 6, 2):
            run_dir = tmp_path / f"{first}-{second}"
            run_dir.mkdir()
            write(run_dir, 2, "first")
            dying(first, write, run_dir, 4, "second")
            dying(second, resume.last_whole, run_dir)
            place = resume.last_whole(run_dir)
            assert (place / "a.bin").read_text() == {"checkpoint-2": "first", "checkpoint-4": "second"}[place.name]
