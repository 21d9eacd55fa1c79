"""Shards written by other processes: the same bytes, and an end in one line where a process fails."""

import os
import threading
from functools import partial

import pytest

from tests.corpora import load_counter, load_dying, load_refused, tree, write_source
from ullme.encode import EncodeOptions, Progress, TextSource, encode_corpus, pipeline
from ullme.encode.workers import on_devices


@pytest.fixture
def source(tmp_path):
    return TextSource(write_source(tmp_path, "jsonl"))


class Told(Progress):
    rows = 0

    def advance(self, rows, characters):
        self.rows += rows


def encoded(load, source, output, devices=None, progress=None):
    workers = partial(on_devices, devices=devices) if devices else None
    encode_corpus(load, source, output, EncodeOptions(shard_rows=5), workers=workers, progress=progress)


def test_two_processes_write_the_same_bytes_as_one(source, tmp_path):
    encoded(load_counter, source, tmp_path / "one")
    told = Told()
    encoded(load_counter, source, tmp_path / "two", ["cpu", "cpu"], told)
    assert tree(tmp_path / "two") == tree(tmp_path / "one") and told.rows == 23


def test_a_process_that_dies_ends_the_run_which_the_same_call_continues(source, tmp_path):
    with pytest.raises(ChildProcessError, match="process on cpu ended with code -9.*run the same command again"):
        encoded(partial(load_dying, os.getpid()), source, tmp_path / "out", ["cpu"])
    assert not (tmp_path / "out" / "manifest.json").exists()
    encoded(load_counter, source, tmp_path / "out")
    assert (tmp_path / "out" / "manifest.json").exists()


def test_what_a_process_complains_of_is_told_in_one_line_with_its_device(source, tmp_path):
    with pytest.raises(ValueError, match="devices: cpu: model: is gone; put it back$"):
        encoded(partial(load_refused, os.getpid()), source, tmp_path / "out", ["cpu"])


def test_the_next_window_is_made_while_this_one_is_embedded():
    made = [threading.Event() for _ in range(4)]

    def windows():
        for at, event in enumerate(made):
            event.set()
            yield at

    seen = []
    for window in pipeline._ahead(windows()):
        assert window == 3 or made[window + 1].wait(timeout=30)
        seen.append(window)
    assert seen == [0, 1, 2, 3]


def test_what_fails_in_the_thread_is_raised_in_the_run():
    def windows():
        yield 1
        raise ValueError("row 2: is broken")

    ahead = pipeline._ahead(windows())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="row 2"):
        next(ahead)
