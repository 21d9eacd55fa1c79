"""Every fenced block of the README and of docs/ runs, or says why it does not and is parsed."""

from __future__ import annotations

import shutil
import sys

import pytest

from tests.documents.pages import PAGES, ROOT, blocks
from tests.documents.place import furnish
from tests.documents.running import Page

WITH_BLOCKS = [page for page in PAGES if blocks(page)]


@pytest.fixture(scope="module")
def furnished(tmp_path_factory):
    return furnish(tmp_path_factory.mktemp("documents"))


@pytest.fixture
def here(page, furnished, tmp_path, monkeypatch):
    """A reader's folder, current and importable; nothing that a page does reaches the next."""
    folder = shutil.copytree(furnished, tmp_path / "reader")
    if "ullme train configs/grl.yaml" in (ROOT / page).read_text():
        shutil.rmtree(folder / "runs")  # the page's reader has trained nothing yet
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.setenv("ULLME_MTEB_DATA", str(folder / "mteb-data"))
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path / "mteb"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "") or "").startswith(str(folder)):
            del sys.modules[name]


@pytest.mark.parametrize("page", WITH_BLOCKS)
def test_blocks_run_in_their_order(page, here, monkeypatch):
    reader = Page(monkeypatch)
    for block in blocks(page):
        if block.test is None:
            reader.run(block)
        else:
            assert page.rsplit("/", 1)[-1] in (ROOT / block.test).read_text(), f"{block.place}: {block.test}"


def test_a_comment_without_reason_is_refused():
    fence = "```bash\nullme check m\n```\n"
    assert blocks("p", f"<!-- not run: needs a GPU -->\n{fence}")[0].not_run == {"": "needs a GPU"}
    for comment in ("<!-- not run: -->", "<!-- not run -->", "<!-- not run (--all): minutes -->"):
        with pytest.raises(ValueError, match="p:2: "):
            blocks("p", f"{comment}\n{fence}")
