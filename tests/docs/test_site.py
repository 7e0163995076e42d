"""The pages hold together: every link leads somewhere, and every page is in the navigation. MkDocs is not needed."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from pages import DOCS, REPOSITORY, anchors, links, pages, prose

# Made by scripts/site_pages.py.
_MADE = {"README.md": "index.md", "CHANGELOG.md": "changes.md", "CONTRIBUTING.md": "contributing.md"}


def broken(path: Any) -> Iterator[str]:
    """The links of a page that lead nowhere."""
    for link in links(path.read_text()):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = path if not name else (path.parent / name).resolve()
        if not target.is_file():
            # The site cannot lead to a folder either.
            yield f"{link}: there is no file {target}"
        elif path.parent == DOCS and not target.is_relative_to(DOCS):
            yield f"{link} leads out of docs/, where the site has nothing"
        elif anchor and anchor not in anchors(target.read_text()):
            yield f"{link}: there is no such heading"


@pytest.mark.parametrize(
    "path", [*pages(), REPOSITORY / "CHANGELOG.md"], ids=lambda path: str(path.relative_to(REPOSITORY))
)
def test_links_lead_somewhere(path: Any) -> None:
    assert list(broken(path)) == []


@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_lists_are_lists_on_the_site_too(path: Any) -> None:
    """GitHub needs neither an empty line before a list nor four spaces before one in a list; MkDocs does."""
    text = prose(path.read_text())
    assert re.findall(r"^[^-\s#|<].*\n- .*", text, re.MULTILINE) == []
    assert re.findall(r"^ {1,3}- .*", text, re.MULTILINE) == []


def test_a_broken_link_is_found(tmp_path: Any) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One thing\n[a](#one-thing) [b](#other) [c](none.md) [d](https://example.org) `[e](code.md)`\n")
    assert [text.split(":")[0] for text in broken(page)] == ["#other", "none.md"]


def _named(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    else:
        for inner in entry.values() if isinstance(entry, dict) else entry:
            yield from _named(inner)


def test_every_page_is_in_the_navigation_once() -> None:
    settings = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())
    assert sorted(_named(settings["nav"])) == sorted([*_MADE.values(), *(path.name for path in DOCS.glob("*.md"))])
    assert all((REPOSITORY / hook).is_file() for hook in settings["hooks"])


def test_what_builds_the_site_is_pinned() -> None:
    lines = (DOCS / "requirements.txt").read_text().splitlines()
    assert all("==" in line for line in lines if not line.startswith("#"))
    assert any(line.startswith("mkdocs-material==") for line in lines)
