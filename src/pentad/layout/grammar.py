"""The grammar of allocation strings, and what to say where one breaks off.

The syntax is AReaL's: `sglang:d4t4+megatron:(attn:d1p4t2c2|ffn:d1p4t1e4)`. `|` (same devices) binds tighter than `+`
(separate devices). Meaning is given by `pentad.layout.parse`; any letter and any number pass here.
"""

import re
from functools import cache
from typing import NoReturn

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from pentad.errors import UserError

_GRAMMAR = r"""
start: group ("+" group)*
group: component ("|" component)*
component: NAME [label] ":" (dims | "(" folded ")" | folded)
label: "[" NAME "]"
folded: _ATTN ":" dims "|" _FFN ":" dims
dims: dim+
dim: LETTER SIZE

_ATTN: "attn"
_FFN: "ffn"
NAME: /[A-Za-z_][A-Za-z0-9_]*/
LETTER: /[A-Za-z]/
SIZE: /[0-9]+/
%ignore /\s+/
"""

_HINTS = {
    "COLON": "write ':' between backend and sizes, as in megatron:d2t2",
    "LETTER": "write a letter and a size, as in d2",
    "SIZE": "write a size after each letter, as in d2",
    "RPAR": "close the parenthesis with ')'",
    "RSQB": "close the name with ']'",
    "VBAR": "a folded layout is (attn:...|ffn:...)",
    "_FFN": "a folded layout is (attn:...|ffn:...)",
    "_ATTN": "a folded layout is (attn:...|ffn:...)",
    "NAME": "write a component, as in megatron:d2",
}


def syntax_tree(text: str) -> Tree[Token]:
    """Parse `text` into a tree of tokens that know their positions.

    Raises:
        UserError: it is not an allocation; a caret shows where.
    """
    try:
        return _parser().parse(text)
    except UnexpectedInput as error:
        _explain(text, error)


def fail(text: str, position: int, cause: str, fix: str) -> NoReturn:
    """Raise the error that shows `text` with a caret under `position`."""
    line = re.sub(r"\s", " ", text)
    raise UserError(f"allocation: {cause}\n  {line}\n  {' ' * position}^", fix)


@cache
def _parser() -> Lark:
    return Lark(_GRAMMAR, parser="lalr")


def _explain(text: str, error: UnexpectedInput) -> NoReturn:
    at_end = isinstance(error, UnexpectedToken) and error.token.type == "$END"
    position = len(text.rstrip()) if at_end or error.pos_in_stream is None else error.pos_in_stream
    known = error.allowed if isinstance(error, UnexpectedCharacters) else getattr(error, "accepts", None)
    expected = set(known or ())
    before, here = text[:position].rstrip(), text[position : position + 1]

    if not before and at_end:
        fail(text, 0, "the string is empty", "write a trainer at least, as in megatron:d1")
    if "COLON" in expected and (bare := re.search(r"(?:^|[+|])\s*((?:[a-z][0-9]+)+)$", before)):
        start = bare.start(1)
        fail(text, start, "the backend is missing", f"write it before the sizes, as in megatron:{bare[1]}")
    if here == "[" and "NAME" in expected and not before.endswith("["):
        fail(text, position, "the backend is missing", "write it before the name, as in megatron[actor]:d2")
    if here in ("-", ".") and re.search(r"[a-z0-9]$", before) and "COLON" not in expected:
        fail(text, position, "a size is a whole number, 1 or more", _HINTS["SIZE"])
    if here in (".", "=", "@") and "COLON" in expected:
        fail(text, position, f"{here!r} instead of ':'", f"write {text[:position]}:{text[position + 1 :]}")
    if here in (",", ";", "&", "/"):
        joined = "join components by '+' (their own devices) or '|' (the same devices)"
        fail(text, position, f"{here!r} is not known here", joined)
    if "SIZE" in expected and (word := re.search(r"(?:hf|vllm|sglang|megatron)\b", text[position - 1 :])):
        start = position - 1 + word.start()
        fail(text, start, "two components stand side by side", "write '+' (own devices) or '|' (same devices) between")
    if "NAME" in expected and before.endswith("["):
        fail(text, position, "a name is missing", "write a word between the brackets, as in megatron[actor]:d2")
    found = "the string ends too early" if at_end else f"{here!r} is not expected here"
    is_open = before.count("(") > before.count(")")
    for terminal, fits in (
        ("RPAR", is_open),
        ("COLON", True),
        ("_FFN", "VBAR" not in expected),
        ("LETTER", "PLUS" not in expected and "VBAR" not in expected),
        ("SIZE", True),
        ("RSQB", True),
        ("VBAR", "PLUS" not in expected),
        ("NAME", True),
        ("_ATTN", True),
    ):
        if terminal in expected and fits:
            fail(text, position, found, _HINTS[terminal])
    fail(text, position, found, f"remove {text[position:].strip()!r}")
