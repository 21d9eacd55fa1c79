"""The demo page: a Gradio app that asks nothing of any other machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from ullme.apps.demo import SearchedModel
from ullme.apps.demo_html import Column, answer_html, note_html, short_name
from ullme.apps.demo_run import read_run, run_html
from ullme.encode import Progress
from ullme.types import Attention

if TYPE_CHECKING:
    import gradio

STYLE = Path(__file__).with_name("demo.css")
#: Passages that may be asked for.
_COUNTS = (5, 10, 20)
_HINT = "Type a query and press Enter. Choose two models, or one model under both attention modes, to compare them."
_NO_RUN = "No run was named: start the page with --run FOLDER, the output folder of ullme train."


def require_gradio() -> None:
    """Pass if Gradio is installed; ValueError with the extra that brings it if not."""
    if find_spec("gradio") is None:
        raise ValueError("gradio: is not installed, and the page is made with it; run: pip install 'ullme[ui]'")


def require_port(host: str, port: int) -> None:
    """Pass if a page can be served at a port of this machine.

    Raises:
        ValueError: the port is none or taken, or the host is not this machine.
    """
    if not 1 <= port <= 65535:
        raise ValueError(f"port: {port} is no port; give a number from 1 to 65535")
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise ValueError(
            f"host, port: {host}:{port} cannot be used ({error.strerror or error}); give another --port, or --host "
            "127.0.0.1"
        ) from error


def demo_page(models: Sequence[SearchedModel], about: str, run: Path | None = None) -> gradio.Blocks:
    """The page over these models.

    Args:
        models: to choose from; the first two are chosen at first.
        about: what the corpus is, one line.
        run: folder of the run that the second tab shows.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read while Gradio is imported, too
    import gradio as gr

    by_name = {model.name: model for model in models}
    with gr.Blocks(title="ullme demo", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(f"<header class='u-head'><h1>ullme</h1>{note_html(about, 'about')}</header>")
        with gr.Tabs():
            with gr.Tab("Search", id="search"):
                _search_tab(gr, by_name)
            with gr.Tab("Run", id="run", elem_id="run-tab"):
                shown = gr.HTML(elem_id="run")
        page.load(lambda: _run_shown(run), outputs=shown, show_progress="hidden", api_visibility="private")
    return page


def serve(page: gradio.Blocks, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve a page from this process, and from nowhere else, until it is interrupted; ``ready`` gets its address."""
    import gradio as gr

    theme = gr.themes.Base(
        primary_hue="indigo",
        font=_fonts(gr, "system-ui", "sans-serif"),
        font_mono=_fonts(gr, "ui-monospace", "monospace"),
    )
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        theme=theme,
        css_paths=[STYLE],
        footer_links=[],
        run_history=False,
        share=False,
        ssr_mode=False,
        mcp_server=False,
        inbrowser=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    ready(address)
    page.block_thread()


def _search_tab(gr: Any, models: Mapping[str, SearchedModel]) -> None:
    names = list(models)
    choices = [(short_name(name), name) for name in names]
    with gr.Row(elem_classes="u-ask"):
        query = gr.Textbox(
            show_label=False, container=False, placeholder="What are you looking for?", scale=8, elem_id="query"
        )
        counts = [(f"{count} passages", count) for count in _COUNTS]
        top_k = gr.Dropdown(
            counts, value=_COUNTS[0], show_label=False, container=False, min_width=140, scale=1, elem_id="top-k"
        )
        search = gr.Button("Search", variant="primary", min_width=110, scale=1, elem_id="go")
    with gr.Row(equal_height=True):
        left = _picker(gr, "left", choices, models[names[0]])
        second = models[names[1]] if len(names) > 1 else None
        right = _picker(gr, "right", [("no second column", ""), *choices], second)
    shown = gr.HTML(note_html(_HINT), elem_id="answer")
    asked = [query, top_k, *left, *right]
    gr.on(
        [search.click, query.submit, *(part.change for part in (top_k, *left, *right))],
        _answerer(gr, models),
        asked,
        shown,
        trigger_mode="always_last",
        concurrency_limit=1,
        api_visibility="private",
    )


def _picker(gr: Any, side: str, choices: list[tuple[str, str]], chosen: SearchedModel | None) -> tuple[Any, Any]:
    """A model and its attention mode."""
    with gr.Row(elem_classes="u-picker"):
        name = gr.Dropdown(
            choices, value=chosen.name if chosen else "", label=f"Model, {side}", min_width=120, elem_id=f"{side}-model"
        )
        attention = gr.Radio(
            list(get_args(Attention)),
            value=chosen.model.attention if chosen else get_args(Attention)[0],
            label="Attention",
            min_width=250,
            elem_id=f"{side}-attention",
        )
    return name, attention


def _answerer(gr: Any, models: Mapping[str, SearchedModel]) -> Callable[..., str]:
    def answer(
        query: str,
        top_k: int,
        left: str,
        left_attention: str,
        right: str,
        right_attention: str,
        progress: Any = gr.Progress(),  # noqa: B008 - by this default Gradio knows where to put its own
    ) -> str:
        if not query.strip():
            return note_html(_HINT)
        chosen = [(left, left_attention), (right, right_attention)]
        asked = [(models[name], cast(Attention, attention)) for name, attention in chosen if name]
        try:
            columns = [
                Column(model.name, attention, model.search(query, int(top_k), attention, PageProgress(progress)))
                for model, attention in asked
            ]
        except (ValueError, OSError) as error:
            return note_html(" ".join(str(error).split()), "error")
        return answer_html(columns)

    return answer


class PageProgress(Progress):
    """Indexing on the page: a bar with the rows done."""

    def __init__(self, show: Callable[..., Any]) -> None:
        self._show, self._done, self._rows = show, 0, 0

    def begin(self, rows: int, characters: int, done_rows: int, done_characters: int) -> None:
        """Show the bar."""
        self._rows = rows
        self.advance(done_rows, done_characters)

    def advance(self, rows: int, characters: int) -> None:
        """Move the bar on."""
        self._done += rows
        self._show((self._done, self._rows), desc="Indexing for this attention mode, once", unit="passages")


def _run_shown(run: Path | None) -> str:
    try:
        return note_html(_NO_RUN) if run is None else run_html(read_run(run))
    except ValueError as error:
        return note_html(str(error), "error")


def _fonts(gr: Any, *names: str) -> list[Any]:
    """Fonts that the reader's machine has; Gradio loads none."""
    return [gr.themes.Font(name) for name in names]
