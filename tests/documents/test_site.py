"""The site builds without a warning, loads nothing from elsewhere, and every link in it leads somewhere."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.documents.pages import ROOT

for needed in ("mkdocs", "material", "mkdocstrings_handlers.python"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: pip install 'ullme[docs]' on Python 3.11")

#: Packages whose names are promised; the others are for the commands.
PACKAGES = "config data encode eval export gradcache models objectives trainer".split()

#: Attributes that make a browser fetch something.
FETCHED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


class Read(HTMLParser):
    """What a page links to, loads and can be linked at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag in FETCHED and given.get(FETCHED[tag]):
            self.loads.append(given[FETCHED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built pages by their files; a warning of the build is an error."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder))
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
    return {path: Read(path.read_text()) for path in folder.rglob("*.html") if path.name != "404.html"}


def test_every_document_has_its_page(site):
    built = {path.stem for path in site}
    assert {path.stem for path in (ROOT / "docs").rglob("*.md")} <= built
    assert {"commands", "LOG", "CHANGELOG"} <= built


def test_pages_load_nothing_from_elsewhere(site):
    for path, page in site.items():
        for target in page.loads:
            assert not urlsplit(target).netloc, f"{path.name}: {target}"
            assert (path.parent / urlsplit(target).path).exists(), f"{path.name}: {target}"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_the_search_works_from_a_disk(site):
    (page,) = (path for path in site if path.name == "index.html" and path.parent.name.startswith("site"))
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=8000", "--dump-dom"]
    shown = subprocess.run([*browser, f"{page.as_uri()}?q=hard+negatives"], capture_output=True, text=True)
    assert re.search(r'md-search-result__meta">\d+ matching documents', shown.stdout)


def test_links_lead_to_pages_and_anchors(site):
    for path, page in site.items():
        for target in map(urlsplit, page.links):
            if target.scheme or target.netloc:
                continue
            file = Path(path.parent, unquote(target.path)).resolve() if target.path else path
            assert file.exists(), f"{path.name}: {target.geturl()}"
            if target.fragment and file in site and target.fragment != "__skip":
                assert unquote(target.fragment) in site[file].ids, f"{path.name}: {target.geturl()}"


@pytest.mark.parametrize("package", ["", *(f".{name}" for name in PACKAGES)])
def test_every_public_name_is_in_the_reference(site, package):
    names = set(importlib.import_module(f"ullme{package}").__all__) - {"__version__"}
    documented = {
        known.rpartition(".")[2] for page in site.values() for known in page.ids if known.startswith("ullme.")
    }
    assert names - documented == set()


def test_drawings_stand_in_the_page_and_take_its_colours(site):
    (page,) = (path for path in site if path.name == "architecture.html")
    assert page.read_text().count('<figure class="drawing"><svg') == 2
    colours = (ROOT / "docs/assets/site.css").read_text()
    for drawing in (ROOT / "docs/images").glob("*.svg"):
        for name in ("--ink", "--panel", "--query"):
            assert name in drawing.read_text() and colours.count(f"{name}:") == 2
