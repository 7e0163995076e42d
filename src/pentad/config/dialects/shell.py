"""Launch scripts: the words of each command with the script's own variables put in. Nothing is executed.

Invariant: a word is either what a shell would make of it, or says which variable or command it depends on. Variables
that are set within conditions or loops count as not known.
"""

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_ASSIGNMENT = re.compile(rf"({_NAME})(\+?)=(.*)", re.DOTALL)
_DECLARE = ("export", "local", "readonly", "declare", "typeset")
_OPEN, _CLOSE = ("if", "for", "while", "until", "case", "select"), ("fi", "done", "esac")
_LOOSE = ("then", "else", "elif", "do", "{", "}", "!")
_OPERATORS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.floordiv,
    ast.Mod: operator.mod,
}


@dataclass(frozen=True)
class Word:
    """One word of a command.

    Attributes:
        text: after quotes and variables.
        line: counted from 1.
        unresolved: variables and commands it depends on, such as `$DATA_DIR`.
        raw: as it is written.
    """

    text: str
    line: int
    unresolved: tuple[str, ...] = ()
    raw: str = ""


@dataclass
class _Raw:
    text: str
    line: int
    array: "list[_Raw] | None" = None


@dataclass
class _Scope:
    given: Mapping[str, str]
    plain: dict[str, Word] = field(default_factory=dict)
    arrays: dict[str, list[Word]] = field(default_factory=dict)
    doubtful: set[str] = field(default_factory=set)


def commands(script: str, given: Mapping[str, str]) -> list[list[Word]]:
    """The commands of a script in order, each a list of words; assignments are carried out and left out.

    Args:
        script: its text.
        given: variables that are known from outside; they go over defaults (`${NAME:-x}`), not over assignments.
    """
    scope, found, depth = _Scope(given), [], 0
    for statement in _statements(script):
        while statement and statement[0].text in _LOOSE:
            statement = statement[1:]
        if not statement:
            continue
        head = statement[0].text
        if head in _OPEN:
            depth += 1
            continue
        if head in _CLOSE:
            depth = max(0, depth - 1)
            continue
        rest = _assign(statement, scope, conditional=depth > 0)
        words = [word for raw in rest for word in _expand_word(raw, scope)]
        if words:
            found.append(words)
    return found


def _assign(statement: list[_Raw], scope: _Scope, *, conditional: bool) -> list[_Raw]:
    """Carry out leading assignments and return what is left."""
    words = list(statement)
    if words[0].text in _DECLARE:
        words = [word for word in words[1:] if not word.text.startswith("-")]
        if not all(_ASSIGNMENT.fullmatch(word.text) for word in words):
            return []
    while words and (match := _ASSIGNMENT.fullmatch(words[0].text)):
        raw, (name, add, value) = words.pop(0), match.groups()
        if conditional and name not in scope.given:
            scope.doubtful.add(name)
            continue
        scope.doubtful.discard(name)
        if raw.array is not None:
            items = [word for item in raw.array for word in _expand_word(item, scope)]
            scope.arrays[name] = (scope.arrays.get(name, []) if add else []) + items
        else:
            new = _expand(value, raw.line, scope)
            old = scope.plain.get(name)
            if add and old is not None:
                new = Word(old.text + new.text, raw.line, old.unresolved + new.unresolved)
            scope.plain[name] = new
    return words


def _expand_word(raw: _Raw, scope: _Scope) -> list[Word]:
    whole = re.fullmatch(rf'"?\\?\$\{{({_NAME})\[[@*]\]\}}"?', raw.text)
    if whole and whole[1] in scope.arrays:
        return scope.arrays[whole[1]]
    return [_expand(raw.text, raw.line, scope, raw.text)]


def _expand(text: str, line: int, scope: _Scope, raw: str = "") -> Word:
    """Quotes removed and variables put in. `\\$NAME` counts as `$NAME`: scripts write it for a later `eval`."""
    out: list[str] = []
    unresolved: list[str] = []
    at, quote = 0, ""
    while at < len(text):
        here = text[at]
        if quote == "'":
            quote, at = ("", at + 1) if here == "'" else (quote, at + 1)
            out.append("" if here == "'" else here)
        elif here in "\"'" and (not quote or here == quote):
            quote, at = ("" if quote else here), at + 1
        elif here == "\\" and text[at + 1 : at + 2] != "$":
            out.append(text[at + 1 : at + 2])
            at += 2
        elif here == "\\":
            at += 1
        elif here in "$`":
            at = _substitute(text, at, line, scope, out, unresolved)
        else:
            out.append(here)
            at += 1
    return Word("".join(out), line, tuple(dict.fromkeys(unresolved)), raw)


def _substitute(text: str, at: int, line: int, scope: _Scope, out: list[str], unresolved: list[str]) -> int:
    """Put what stands at `at` into `out`, and return where it ends."""
    end = _end_of_substitution(text, at)
    piece = text[at:end]
    if piece == "$":
        out.append("$")
        return end
    value: Word | None
    if piece.startswith("$(("):
        value = _arithmetic(piece[3:-2], line, scope)
    elif match := re.fullmatch(rf"\$\{{?({_NAME}|[0-9@*#]+)\}}?", piece):
        value = _variable(match[1], line, scope)
    elif match := re.fullmatch(rf"\$\{{({_NAME}|[0-9]+)(:?[-=])(.*)\}}", piece, re.DOTALL):
        value = _variable(match[1], line, scope)
        if value is None or (":" in match[2] and not value.text):
            value = None if match[1] in scope.doubtful else _expand(match[3], line, scope)
    else:
        value = None
    if value is None:
        out.append(piece)
        unresolved.append(piece)
    else:
        out.append(value.text)
        unresolved += value.unresolved
    return end


def _variable(name: str, line: int, scope: _Scope) -> Word | None:
    if name in scope.doubtful:
        return None
    if name in scope.plain:
        return scope.plain[name]
    return Word(scope.given[name], line) if name in scope.given else None


def _arithmetic(text: str, line: int, scope: _Scope) -> Word | None:
    bare = re.sub(rf"(?<![\w$\{{]){_NAME}", lambda match: f"${match[0]}", text)
    known = _expand(bare, line, scope)
    if known.unresolved:
        return None
    try:
        return Word(str(_compute(ast.parse(known.text.strip(), mode="eval").body)), line)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def _compute(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_compute(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_compute(node.left), _compute(node.right))
    raise ValueError("not arithmetic of whole numbers")


def _end_of_substitution(text: str, at: int) -> int:
    if text[at] == "`":
        end = text.find("`", at + 1)
        return len(text) if end < 0 else end + 1
    opening = text[at + 1 : at + 2]
    if opening in ("{", "("):
        closing, depth = {"{": "}", "(": ")"}[opening], 0
        for end in range(at + 1, len(text)):
            depth += (text[end] == opening) - (text[end] == closing)
            if depth == 0:
                return end + 1
        return len(text)
    match = re.compile(rf"\$({_NAME}|[0-9@*#])").match(text, at)
    return match.end() if match else at + 1


def _statements(script: str) -> list[list[_Raw]]:
    """Commands as lists of raw words; an array has its items in it."""
    reader = _Reader(script)
    found: list[list[_Raw]] = []
    while not reader.done:
        if statement := reader.statement():
            found.append(statement)
    return found


class _Reader:
    """Splits a script into words."""

    def __init__(self, script: str) -> None:
        self.text = script.replace("\r\n", "\n")
        self.at = 0
        self.line = 1

    @property
    def done(self) -> bool:
        return self.at >= len(self.text)

    def statement(self, closing: str = "") -> list[_Raw]:
        """Words up to the end of the line, or with `closing` up to that character, over lines."""
        words: list[_Raw] = []
        while not self.done:
            here = self.text[self.at]
            if here == "\\" and self.text[self.at + 1 : self.at + 2] == "\n":
                self._skip(2)
            elif here == "#":
                self._skip_line()
            elif closing and here == closing:
                self._skip(1)
                return words
            elif here in " \t" or (closing and here == "\n"):
                self._skip(1)
            elif here in "\n;&|":
                self._skip(1)
                return words
            elif here in "<>":
                self._skip(1)
                self._redirection()
            else:
                word = self._word(closing)
                if not (word.text.isdigit() and self.text[self.at : self.at + 1] in ("<", ">")):  # a file descriptor
                    words.append(word)
        return words

    def _redirection(self) -> None:
        while not self.done and self.text[self.at] in "<>&- \t":
            self._skip(1)
        if not self.done and self.text[self.at] != "\n":
            self._word("")

    def _word(self, closing: str) -> _Raw:
        start, line, depth, quote = self.at, self.line, 0, ""
        while not self.done:
            here = self.text[self.at]
            if here == "\\":
                if self.text[self.at + 1 : self.at + 2] == "\n" and not quote:
                    break
                self._skip(2)
                continue
            if quote:
                quote = "" if here == quote else quote
            elif here in "\"'`":
                quote = here
            elif here == "$" and self.text[self.at + 1 : self.at + 2] in ("{", "("):
                self._skip(_end_of_substitution(self.text, self.at) - self.at)
                continue
            elif here == "(" and re.fullmatch(rf"{_NAME}\+?=", self.text[start : self.at]):
                head = self.text[start : self.at]
                self._skip(1)
                return _Raw(head, line, self.statement(")"))
            elif here == "(":
                depth += 1
            elif here == ")" and depth:
                depth -= 1
            elif depth == 0 and (here in " \t\n;&<>|" or here == closing):
                break
            self._skip(1)
        if self.at == start:  # a bracket that nothing opened
            self._skip(1)
        return _Raw(self.text[start : self.at], line)

    def _skip(self, count: int) -> None:
        self.line += self.text.count("\n", self.at, self.at + count)
        self.at += count

    def _skip_line(self) -> None:
        end = self.text.find("\n", self.at)
        self.at = len(self.text) if end < 0 else end
