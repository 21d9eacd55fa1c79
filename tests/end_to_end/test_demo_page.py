"""The demo page driven in a real browser: search, bars, model switch, attention switch, the run's tab.

Needs Chromium at /usr/bin/chromium (or $ULLME_CHROMIUM), and the Python packages gradio (``ullme[ui]``) and playwright;
none of them is in CI's environment, where these tests are skipped. With ``ULLME_SCREENSHOTS=docs/images`` the last one
also takes the pictures of the documentation, of a real model.
"""

import json
import os
import re
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from tests.tiny import tiny_folder

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'ullme[ui]'")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

CHROMIUM = os.environ.get("ULLME_CHROMIUM", "/usr/bin/chromium")
QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
PASSAGES = [f"Passage {i} about {a} and {b}." for i, (a, b) in enumerate((a, b) for a in "ABCD" for b in "xyz")]
HOSTILE = "Passage 99 <b>bold</b> ${1+1} {{value}} <img src='http://elsewhere.invalid/x.png'>"
RUN_FILE = """
model: {name_or_path: one}
data: {train: [{path: pairs.jsonl}]}
objectives: contrastive
trainer: {output_dir: run}
"""
PATIENCE = 120_000  # milliseconds: the longest that a slow machine is waited for

pytestmark = pytest.mark.skipif(not Path(CHROMIUM).is_file(), reason=f"no Chromium at {CHROMIUM}: install chromium")


@contextmanager
def served(*arguments, cache, folder):
    """The address of ``ullme demo``, run as a user runs it in a folder."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, "-m", "ullme", "demo", "--port", str(port), *map(str, arguments)]
    environment = {**os.environ, "ULLME_CACHE": str(cache), "PYTHONUNBUFFERED": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, env=environment, cwd=folder, **streams)
    try:
        said = []
        while not (found := re.search(r"The page is at (\S+)", "".join(said[-1:]))):
            said.append(process.stdout.readline())
            assert said[-1], f"the page did not start:\n{''.join(said)}"
        yield found[1]
    finally:
        process.terminate()
        process.communicate()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    for name, kind in (("one", "llama"), ("two", "qwen3")):
        tiny_folder(folder / name, kind)
    (folder / "passages.txt").write_text("\n".join([*PASSAGES, HOSTILE]) + "\n")
    checkpoint = folder / "run" / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    history = [{"step": step, "loss": 1 / step, "epoch": 1.0} for step in (1, 2, 3)]
    state = {"log_history": history, "global_step": 3, "max_steps": 3}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    (folder / "run" / "run.yaml").write_text(RUN_FILE)
    (folder / "run" / "scores.md").write_text("| task | eng |\n|---|---|\n| SciFact | 33.1 |\n")
    arguments = ["--model", "one", "--model", "two", "--corpus", "passages.txt", "--run", "run"]
    with served(*arguments, cache=folder / "cache", folder=folder) as url:
        yield url


@pytest.fixture
def page(browser, address):
    """The page, opened; ``page.asked`` lists whatever it requested."""
    opened = browser.new_page(viewport={"width": 1200, "height": 900})
    opened.set_default_timeout(PATIENCE)
    opened.asked, opened.errors = [], []
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.on("pageerror", lambda error: opened.errors.append(str(error)))
    opened.goto(address)
    yield opened
    assert not opened.errors
    opened.close()


def search(page, query):
    page.fill("#query textarea, #query input", query)
    page.press("#query textarea, #query input", "Enter")
    page.wait_for_selector(".u-card")


def choose(page, picker, label):
    page.click(f"#{picker} input")
    page.click(f"[role=option]:has-text('{label}')")


def cards(page, column=0):
    """What a column shows: id, both numbers and the width of both bars of each passage."""
    found = []
    for card in page.locator(".u-column").nth(column).locator(".u-card").all():
        values = [float(text.replace("−", "-")) for text in card.locator(".u-value").all_inner_texts()]
        widths = [bar.evaluate("e => e.getBoundingClientRect().width") for bar in card.locator(".u-track i").all()]
        found.append((card.get_attribute("data-id"), *values, *widths))
    return found


def settled(page):
    """Bars grow in a quarter of a second; their animations are waited for."""
    page.evaluate("Promise.all(document.getAnimations().map(a => a.finished.catch(() => null)))")


def test_a_query_shows_ranked_passages_with_two_bars_side_by_side(page):
    search(page, "A and x")
    settled(page)
    assert page.locator(".u-column").count() == 2
    boxes = [column.bounding_box() for column in page.locator(".u-column").all()]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] + boxes[0]["width"] < boxes[1]["x"]
    for column in (0, 1):
        shown = cards(page, column)
        s_rt, s_gen, rt_bars, gen_bars = (list(values) for values in zip(*(card[1:] for card in shown), strict=True))
        assert len(shown) == 5 and s_rt == sorted(s_rt, reverse=True) and max(s_gen) < 0
        for values, bars in ((s_rt, rt_bars), (s_gen, gen_bars)):
            assert bars[values.index(max(values))] == max(bars) > 10 * min(bars) > 0


def test_the_attention_switch_changes_the_cosines_of_its_column_alone(page):
    search(page, "B and y")
    before = [{card[0]: card[1:3] for card in cards(page, column)} for column in (0, 1)]
    page.click("#left-attention label:has-text('causal')")
    page.wait_for_selector(".u-column[data-attention=causal]")
    after = [{card[0]: card[1:3] for card in cards(page, column)} for column in (0, 1)]
    assert after[1] == before[1] and after[0] != before[0]
    shared = after[0].keys() & before[0].keys()
    assert shared and all(after[0][i][0] != before[0][i][0] and after[0][i][1] == before[0][i][1] for i in shared)


def test_another_model_takes_the_place_of_the_first(page):
    search(page, "C and z")
    one, two = cards(page, 0), cards(page, 1)
    assert [card[:3] for card in one] != [card[:3] for card in two]
    choose(page, "left-model", "two")
    page.wait_for_selector(".u-column:first-child header b:text-is('two')")
    assert [card[:3] for card in cards(page, 0)] == [card[:3] for card in two]
    choose(page, "right-model", "no second column")
    page.wait_for_selector(".u-answer[data-columns='1']")
    choose(page, "top-k", "10 passages")
    page.wait_for_selector(".u-card >> nth=9")


def test_the_page_asks_nothing_of_another_machine_and_runs_nothing_that_a_passage_holds(page):
    choose(page, "top-k", "20 passages")
    search(page, "Passage 99")
    assert HOSTILE in page.locator(".u-card summary").all_inner_texts()
    page.click("button[role=tab]:has-text('Run')")
    page.wait_for_selector("#run .u-curves svg")
    elsewhere = [url for url in page.asked if not url.startswith((page.url, "data:", "blob:"))]
    assert len(page.asked) > 10 and not elsewhere


def test_the_second_tab_shows_the_runs_curves_and_tables(page):
    page.click("button[role=tab]:has-text('Run')")
    curves = page.wait_for_selector("#run .u-curves svg")
    assert curves.bounding_box()["width"] > 300 and curves.query_selector("text:text-is('loss')")
    assert page.locator("[data-table=scores] td").all_inner_texts() == ["SciFact", "33.1"]
    assert page.locator("[data-table=logged] tbody tr").all_inner_texts() == ["loss\t1\t0.3333"]


def test_an_empty_query_gets_a_hint(page):
    page.click("#go")
    page.wait_for_selector("#answer .u-hint")
    assert page.locator(".u-card").count() == 0


@pytest.mark.slow
def test_pictures_for_the_documentation(browser):
    """``ULLME_SCREENSHOTS`` is the folder to put them into, ``ULLME_QUICKSTART`` a finished ``ullme quickstart``."""
    pictures, run = (os.environ.get(name) for name in ("ULLME_SCREENSHOTS", "ULLME_QUICKSTART"))
    if not pictures or not run:
        pytest.skip("no pictures are asked for: ULLME_SCREENSHOTS=docs/images ULLME_QUICKSTART=runs/quickstart")
    root, name = Path(run).resolve().parents[1], Path(*Path(run).resolve().parts[-2:])
    cache = os.environ.get("ULLME_CACHE", Path.home() / ".cache" / "ullme")
    arguments = ["--model", "smollm2-135m-instruct", "--model", name / "run" / "model", "--run", name]
    arguments += ["--corpus", name / "data" / "passages.txt"]
    with served(*arguments, cache=cache, folder=root) as url:
        page = browser.new_page(viewport={"width": 1180, "height": 860})
        page.set_default_timeout(PATIENCE)
        page.goto(url)
        search(page, "decide whether a log record is kept or dropped")
        settled(page)
        page.screenshot(path=Path(pictures) / "demo-search.png", full_page=True)
        page.click("button[role=tab]:has-text('Run')")
        page.wait_for_selector("#run .u-curves svg")
        page.screenshot(path=Path(pictures) / "demo-run.png", full_page=True)
    for picture in (Path(pictures) / f"demo-{name}.png" for name in ("search", "run")):
        Image.open(picture).convert("RGB").quantize(256).save(picture, optimize=True)
        assert picture.stat().st_size < 200_000
