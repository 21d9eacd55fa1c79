"""Every fenced block of the README and of docs/ runs, or says why it does not and is parsed."""

from __future__ import annotations

import shutil
import sys

import pytest
import typer

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


@pytest.mark.parametrize(
    "wrong",
    [
        "```bash\nullme encode m corpus.jsonl out/ --precison int8\n```\n",
        "```bash\nullme data checkx pairs.jsonl\n```\n",
        "```bash\nullme encode m corpus.jsonl out/ --batch-size many\n```\n",
        "```bash\nullme check m | head\n```\n",
        "```bash\nmake docz\n```\n",
        "```bash\npip install 'ullme[onxn]'\n```\n",
        "```python\nfrom ullme.models import ULME\n```\n",
        "```python\nx = (\n```\n",
        "```yaml\ndata: {train: [{path: a, weightx: 3}]}\n```\n",
        '```yaml title="run.yaml"\nmodel: {name_or_path: m}\n```\n',
        "```ruby\nputs 1\n```\n",
    ],
)
def test_what_is_not_run_is_still_parsed(wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("p", f"<!-- not run: a test of tests -->\n{wrong}")
    with pytest.raises((AssertionError, KeyError, SyntaxError, ValueError, typer.BadParameter.__mro__[1])):
        Page(monkeypatch).run(block)


def test_what_runs_may_not_fail(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for wrong in ("```python\n1 / 0\n```\n", "```bash\nullme search nowhere/ what\n```\n"):
        with pytest.raises((ZeroDivisionError, AssertionError)):
            Page(monkeypatch).run(*blocks("p", wrong))


def test_a_comment_without_reason_is_refused():
    fence = "```bash\nullme check m\n```\n"
    assert blocks("p", f"<!-- not run: needs a GPU -->\n{fence}")[0].not_run == {"": "needs a GPU"}
    for comment in ("<!-- not run: -->", "<!-- not run -->", "<!-- not run (--all): minutes -->"):
        with pytest.raises(ValueError, match="p:2: "):
            blocks("p", f"{comment}\n{fence}")
