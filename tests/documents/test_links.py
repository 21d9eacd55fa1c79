"""Every link of the documents leads somewhere: files and headings by looking, addresses by their form."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import pytest

from tests.documents.pages import PAGES, ROOT

LINKED = [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/LOG.md"]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?: \"[^\"]*\")?\)")


def prose(page):
    """A page without its code, in which brackets mean something else."""
    text = re.sub(r"^ *```.*?^ *```$", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


def headings(path):
    """The anchors that GitHub and the site give the headings of a file."""
    text = re.sub(r"^ *```.*?^ *```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def is_address(target):
    return "://" in target or target.startswith("mailto:")


@pytest.mark.parametrize("page", LINKED)
def test_links_lead_to_files_and_headings(page):
    for target in LINK.findall(prose(page)):
        if is_address(target):
            parts = urlsplit(target)
            assert parts.scheme == "https" and re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc), f"{page}: {target}"
            continue
        path, _, anchor = target.partition("#")
        file = ((ROOT / page).parent / path if path else ROOT / page).resolve()
        assert file.exists() and file.is_relative_to(ROOT), f"{page}: {target}"
        if anchor and "." not in anchor:  # that of an object is made by the site, whose test follows it
            assert anchor in headings(file), f"{page}: {target}"


def test_a_heading_becomes_its_anchor(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A `name`, and (more)\n```bash\n# no heading\n```\n## 2. Is it?\n")
    assert headings(page) == {"a-name-and-more", "2-is-it"}
