"""Messages that the pages quote are those of the source: each line of a quoted block is made by a text there."""

import ast
import re
from functools import cache

import pytest
from pages import REPOSITORY, Block, all_blocks

_PREFIX = re.compile(r"^(error|fix|failed|warning|note|fault): ")
# A text says what a message is if it has a piece of so many letters, or makes up so much of the message.
_LETTERS, _SHARE = 12, 0.5


@cache
def texts() -> tuple[tuple[re.Pattern[str], int, str], ...]:
    """The texts of the source: each as an expression, with anything for its values, its letters, its longest piece."""
    found = {}
    for path in (REPOSITORY / "src").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        inner = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in nodes:
            if id(node) in inner:
                continue
            values = node.values if isinstance(node, ast.JoinedStr) else [node]
            pieces = [part.value if isinstance(part, ast.Constant) else None for part in values]
            own = [piece for piece in pieces if isinstance(piece, str)]
            if own and max(map(len, own)) >= 5:
                text = "".join(".+?" if piece is None else re.escape(str(piece)) for piece in pieces)
                found[text.removesuffix("\\\n\\ \\ ")] = sum(map(len, own)), max(own, key=len).rstrip()
    return tuple((re.compile(text + r"\Z", re.DOTALL), *sizes) for text, sizes in found.items())


def is_ours(message: str) -> bool:
    """Whether a message is, up to its end, what one text of the source makes."""
    return any(
        len(piece) >= _LETTERS or letters >= _SHARE * len(message)
        for text, letters, piece in texts()
        if piece in message and text.search(message)
    )


def quoted() -> list[tuple[Block, str]]:
    """The lines of blocks that quote messages."""
    found = []
    for block in all_blocks():
        page = block.page.rpartition("/")[2]
        lines = block.text.splitlines()
        if block.language == "text" and (page == "troubleshooting.md" or any(map(_PREFIX.match, lines))):
            found += [(block, _PREFIX.sub("", line)) for line in lines]
    return found


@pytest.mark.parametrize(("block", "message"), quoted(), ids=lambda value: str(value)[:60])
def test_a_quoted_message_is_in_the_source(block: Block, message: str) -> None:
    assert is_ours(message), f"{block}: no text in src makes: {message}"


def test_an_invented_message_is_found() -> None:
    assert len(quoted()) > 30
    assert is_ours("allocation: v2 (virtual stages) needs a pipeline, but p is 1")
    assert not is_ours("allocation: v2 (virtual stages) wants a pipeline, but p is 1")
    assert not is_ours("the weights have been eaten by a grue")
