"""The documentation as text: its pages, fenced blocks, links and headings, read without MkDocs."""

import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\S*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
_MARKER = re.compile(r"<!-- needs: (.*?) -->\n+$")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: relative to the repository.
        line: of its first line of text, from 1.
        needs: what the marker before it says that its commands need: `<!-- needs: gpu, network -->`.
    """

    page: str
    line: int
    language: str
    text: str
    needs: frozenset[str]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """docs/*.md, README.md, CONTRIBUTING.md, and what examples say of themselves."""
    examples = sorted((REPOSITORY / "examples").rglob("README.md"))
    return [*sorted(DOCS.glob("*.md")), REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *examples]


def blocks(text: str, page: str) -> list[Block]:
    """The fenced blocks of a page."""
    found = []
    for match in _FENCE.finditer(text):
        marker = _MARKER.search(text[: match.start()])
        needs = frozenset(part.strip() for part in marker[1].split(",")) if marker else frozenset()
        line = text.count("\n", 0, match.start("text")) + 1
        found.append(Block(page, line, match["language"], match["text"], needs))
    return found


def all_blocks() -> list[Block]:
    """Those of all pages."""
    return [block for path in pages() for block in blocks(path.read_text(), str(path.relative_to(REPOSITORY)))]


def prose(text: str) -> str:
    """A page without its fenced blocks; lines keep their numbers."""
    return _FENCE.sub(lambda match: "\n" * match[0].count("\n"), text)


def spans(text: str) -> list[tuple[int, str]]:
    """Line and text of each span of code in the prose of a page."""
    plain = prose(text)
    found = re.finditer(r"(?<!`)`([^`]+)`(?!`)", plain)
    return [(plain.count("\n", 0, match.start()) + 1, " ".join(match[1].split())) for match in found]


def links(text: str) -> list[str]:
    """Targets of links and images in the prose of a page."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(text)))


def anchors(text: str) -> set[str]:
    """What the headings of a page are linked by, as GitHub and MkDocs make it of plain headings."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}
