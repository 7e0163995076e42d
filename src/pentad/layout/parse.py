"""From an allocation string to an `Allocation`.

Invariant: what is returned is what the string says, size for size; anything repeated, contradictory or impossible is
refused, with a caret under it and the smallest change that would do.
"""

import difflib
from dataclasses import dataclass, replace
from math import prod
from typing import NoReturn

from lark import Token, Tree

from pentad.layout.grammar import fail, syntax_tree
from pentad.layout.layout import ENGINES, LETTERS, ROLE_NAMES, TRAINERS, Allocation, Component, Layout

_WORDS = {
    "d": "data",
    "t": "tensor",
    "p": "pipeline",
    "c": "context",
    "e": "expert",
    "x": "expert-tensor",
    "v": "virtual-pipeline",
}
_ENGINE_LETTERS = "dtp"
_ATTN_LETTERS = "dtpcv"
_FFN_LETTERS = "dtpev"
_MAX_SIZE = 1_000_000
_APART = dict.fromkeys(ROLE_NAMES.values())


@dataclass(frozen=True)
class _Sizes:
    """The sizes that were written, with the positions of their letters; a size that was not written is 1."""

    text: str
    start: int
    values: dict[str, int]
    places: dict[str, int]

    def __getitem__(self, letter: str) -> int:
        return self.values.get(letter, 1)

    def __contains__(self, letter: str) -> bool:
        return letter in self.values

    def place(self, *letters: str) -> int:
        """Where the first of these letters stands, or else where the sizes begin."""
        return next((self.places[letter] for letter in letters if letter in self.places), self.start)

    def with_size(self, letter: str, size: int) -> str:
        """The whole string with one size changed."""
        if letter not in self:
            return f"{self.text[: self.start]}{letter}{size}{self.text[self.start :]}"
        at = self.places[letter] + 1
        while self.text[at].isspace():
            at += 1
        end = at
        while end < len(self.text) and self.text[end].isdigit():
            end += 1
        return f"{self.text[:at]}{size}{self.text[end:]}"


@dataclass(frozen=True)
class _Parsed:
    component: Component
    start: int
    sizes: _Sizes


def parse_allocation(text: str) -> Allocation:
    """Parse an allocation string.

    `backend:sizes` or `backend[name]:sizes`, joined by `|` (the same devices; binds tighter) and `+` (separate
    devices). Engines are hf, vllm and sglang, the trainer is megatron. A trainer named critic, ref or reference is for
    that model alone, which else lives with the policy: `hf:d1+megatron:t2+megatron[critic]:d1`. Sizes are letters with
    numbers in any order: d data, t tensor, p pipeline, c context, e expert, x expert tensor, v virtual pipeline. The
    folded form `megatron:(attn:d1p4t2c2|ffn:e4t1)` gives the experts sizes of their own: t there is x, p and v are
    inherited and d is derived.

    Raises:
        UserError: with a caret under the offending character.
    """
    groups = []
    for group in syntax_tree(text).children:
        assert isinstance(group, Tree)
        groups.append([_component(text, tree) for tree in group.children if isinstance(tree, Tree)])
    _check_roles(text, [item for group in groups for item in group])
    for group in groups:
        _check_shared(text, group)
    return Allocation(tuple(tuple(item.component for item in group) for group in groups))


def _component(text: str, tree: Tree[Token]) -> _Parsed:
    backend, label, body = tree.children
    assert isinstance(backend, Token) and isinstance(body, Tree)
    start = backend.start_pos or 0
    _check_backend(text, str(backend), start)
    if body.data == "folded":
        if backend not in TRAINERS:
            fail(text, start, f"a folded layout is for the trainer, not for {backend}", f"write {backend}:d1t1")
        attn, ffn = (_sizes(text, part) for part in body.children if isinstance(part, Tree))
        layout, sizes = _folded_layout(text, attn, ffn), attn
    else:
        sizes = _sizes(text, body)
        layout = _engine_layout(text, str(backend), sizes) if backend in ENGINES else _flat_layout(text, sizes)
    name = str(label.children[0]) if isinstance(label, Tree) else None
    return _Parsed(Component(name, str(backend), layout), start, sizes)


def _check_backend(text: str, backend: str, start: int) -> None:
    known = ENGINES + TRAINERS
    if backend in known:
        return
    if backend in ("attn", "ffn"):
        fail(text, start, f"{backend} is not a backend", "write the folded form megatron:(attn:...|ffn:...)")
    if backend in ("fsdp", "archon", "deepspeed", "torchtitan"):
        fixed = text[:start] + "megatron" + text[start + len(backend) :]
        fail(text, start, f"there is no backend {backend}; the trainer is megatron", f"write {fixed}")
    near = difflib.get_close_matches(backend.lower(), known, n=1, cutoff=0.5)
    fixed = f"write {text[:start]}{near[0]}{text[start + len(backend) :]}" if near else "use one of " + ", ".join(known)
    fail(text, start, f"there is no backend {backend} (engines {', '.join(ENGINES)}; trainer megatron)", fixed)


def _sizes(text: str, dims: Tree[Token]) -> _Sizes:
    values: dict[str, int] = {}
    places: dict[str, int] = {}
    first = None
    for dim in dims.children:
        assert isinstance(dim, Tree)
        letter, size = dim.children
        assert isinstance(letter, Token) and isinstance(size, Token)
        start, end = letter.start_pos or 0, size.end_pos or 0
        first = start if first is None else first
        if letter not in LETTERS:
            known = ", ".join(f"{key} {word}" for key, word in _WORDS.items())
            near = (
                f"write {letter.lower()}{size}"
                if letter.lower() in LETTERS
                else "use a letter of the list, or remove it"
            )
            fail(text, start, f"unknown dimension {letter} (known: {known})", near)
        if letter in values:
            fixed = text[:start] + text[end:]
            cause = f"{letter} ({_WORDS[letter]}) is given twice, {letter}{values[letter]} and {letter}{size}"
            fail(text, start, cause, f"keep one of the two, as in {fixed}")
        if int(size[:20]) == 0:
            fail(
                text,
                start,
                f"{letter}{size} is not a size; the smallest is 1",
                f"write {letter}1, or leave {letter} out",
            )
        if size[0] == "0":
            fail(text, start, f"{letter}{size} has a leading zero", f"write {letter}{size.lstrip('0')}")
        if len(size) > len(str(_MAX_SIZE)) or int(size) > _MAX_SIZE:
            fail(text, start, f"{letter}{size} is larger than any cluster", f"write a size up to {_MAX_SIZE}")
        values[str(letter)], places[str(letter)] = int(size), start
    if prod(values.get(letter, 1) for letter in "dtpc") > _MAX_SIZE:
        fail(text, first or 0, "this is larger than any cluster", f"write sizes with a product up to {_MAX_SIZE}")
    return _Sizes(text, first or 0, values, places)


def _engine_layout(text: str, backend: str, sizes: _Sizes) -> Layout:
    for letter in sizes.values:
        if letter not in _ENGINE_LETTERS:
            cause = f"engine {backend} has no dimension {letter} ({_WORDS[letter]}); engines have d, t and p"
            fail(text, sizes.place(letter), cause, f"remove {letter}{sizes[letter]}")
    return Layout(data=sizes["d"], tensor=sizes["t"], pipeline=sizes["p"])


def _flat_layout(text: str, sizes: _Sizes) -> Layout:
    _check_virtual(text, sizes)
    world = prod(sizes[letter] for letter in "dtpc")
    stage = world // sizes["p"]
    wanted = sizes["e"] * sizes["x"]
    if stage % wanted:
        letter, fix = _expert_fix(sizes, stage, "e", "x")
        product = f"e{sizes['e']}" + (f" * x{sizes['x']}" if sizes["x"] > 1 else "")
        cause = f"{product} does not divide the {stage} devices of a pipeline stage (d * t * c)"
        fail(text, sizes.place(letter), cause, fix)
    return Layout(**{LETTERS[letter]: sizes[letter] for letter in LETTERS})


def _folded_layout(text: str, attn: _Sizes, ffn: _Sizes) -> Layout:
    moves = {"e": "give it in ffn", "x": "write the expert tensor size as t in ffn", "c": "give it in attn"}
    for part, name, letters in ((attn, "attn", _ATTN_LETTERS), (ffn, "ffn", _FFN_LETTERS)):
        for letter in part.values:
            if letter not in letters:
                cause = f"{letter} ({_WORDS[letter]}) does not belong in {name}"
                fail(text, part.place(letter), cause, moves[letter])
    _check_virtual(text, attn)
    for letter in "pv":
        if letter in ffn and ffn[letter] != attn[letter]:
            cause = f"ffn has {letter}{ffn[letter]} but attn has {letter}{attn[letter]}; they share their stages"
            fail(text, ffn.place(letter), cause, f"write {ffn.with_size(letter, attn[letter])}")
    world = prod(attn[letter] for letter in "dtpc")
    stage = world // attn["p"]
    fixed = ffn["e"] * ffn["t"]
    if stage % fixed:
        letter, fix = _expert_fix(ffn, stage, "e", "t")
        product = f"e{ffn['e']} * t{ffn['t']}"
        cause = f"ffn {product} does not divide the {stage} devices of a pipeline stage, so d has no value"
        fail(text, ffn.place(letter), cause, fix)
    derived = stage // fixed
    if "d" in ffn and ffn["d"] != derived:
        covered = ffn["d"] * fixed * attn["p"]
        cause = f"ffn covers {covered} devices (d{ffn['d']} * p{attn['p']} * t{ffn['t']} * e{ffn['e']}), attn {world}"
        fail(text, ffn.place("d"), cause, f"write {ffn.with_size('d', derived)}, or leave d out of ffn")
    return Layout(attn["d"], attn["t"], attn["p"], attn["c"], ffn["e"], ffn["t"], attn["v"])


def _check_virtual(text: str, sizes: _Sizes) -> None:
    if sizes["v"] > 1 and sizes["p"] == 1:
        fail(
            text,
            sizes.place("v"),
            f"v{sizes['v']} (virtual stages) needs a pipeline, but p is 1",
            f"give p2 or more, or remove v{sizes['v']}",
        )


def _check_roles(text: str, items: list[_Parsed]) -> None:
    names: set[str] = set()
    for item in items:
        if item.component.name in names:
            cause = f"two components are named {item.component.name}"
            fail(text, item.start, cause, "give each its own name, or leave names out")
        if item.component.name:
            names.add(item.component.name)
    engines = [item for item in items if not item.component.is_trainer]
    policies = [item for item in items if item.component.role == "policy"]
    named = "; a critic or a reference of its own is named, as in megatron[critic]:d1 or megatron[ref]:d1"
    for found, what, hint in (
        (policies, "trainers", named),
        (engines, "rollout engines", "; more of the same engine are its d"),
        *(
            ([item for item in items if item.component.role == role], f"components of the {role}", "")
            for role in _APART
        ),
    ):
        if len(found) > 1:
            keep = f"keep {found[0].component} or {found[1].component}{hint}"
            fail(text, found[1].start, f"there are two {what}", keep)
    if not policies:
        _fail_without_policy(text, items)


def _fail_without_policy(text: str, items: list[_Parsed]) -> NoReturn:
    apart = next((item for item in items if item.component.is_trainer), None)
    if apart is None:
        engine = items[0].component
        hint = f"{engine}|megatron:d{engine.layout.world} (same devices) or {engine}+megatron:d1 (separate devices)"
        fail(text, len(text.rstrip()), "there is no trainer", f"write {hint}")
    cause = f"{apart.component} is for the {apart.component.role} alone; the policy has no trainer"
    actor = replace(apart.component, name=None)
    fail(text, apart.start, cause, f"write {actor}, which has every model, or {actor}+{apart.component}")


def _check_shared(text: str, group: list[_Parsed]) -> None:
    _check_sizes(text, group)
    trainers = [item for item in group if item.component.is_trainer]
    for other in trainers[1:]:
        first = trainers[0].component
        if other.component.layout != first.layout:
            cause = f"{first} and {other.component} share their devices, so their models are in the same ranks"
            same = replace(other.component, layout=first.layout)
            fix = f"write {first}|{same} (one layout) or {first}+{other.component} (devices of their own)"
            fail(text, other.start, cause, fix)
    engine = next((item for item in group if not item.component.is_trainer), None)
    if engine is not None and trainers and all(item.component.role != "policy" for item in trainers):
        cause = f"{engine.component} shares devices with {trainers[0].component}, and not with the policy"
        fail(text, engine.start, cause, f"write {engine.component}+{trainers[0].component} (devices of their own)")


def _check_sizes(text: str, group: list[_Parsed]) -> None:
    first, *others = group
    for other in others:
        left, right = first.component.layout.world, other.component.layout.world
        if left == right:
            continue
        options = []
        for item, goal in ((other, left), (first, right)):
            rest = item.component.layout.world // item.component.layout.data
            if goal % rest == 0 and _fits(item.component.layout, goal // rest):
                options.append(item.sizes.with_size("d", goal // rest))
        apart = f"{first.component}+{other.component}"
        cause = (
            f"{first.component} has {_devices(left)} and {other.component} has {_devices(right)}, but they share them"
        )
        fail(text, other.start, cause, "write " + " or ".join([*options[:1], apart]))


def _fits(layout: Layout, data: int) -> bool:
    """Whether the expert sizes allow this data size."""
    try:
        replace(layout, data=data)
    except ValueError:
        return False
    return True


def _expert_fix(sizes: _Sizes, stage: int, *letters: str) -> tuple[str, str]:
    """The letter to blame when expert sizes do not divide a stage, and the change of it alone that would do."""
    faulty = sorted(letters, key=lambda letter: stage % sizes[letter] == 0)
    for letter in faulty:
        rest = prod(sizes[other] for other in letters if other != letter)
        legal = [size for size in range(1, stage + 1) if stage % (size * rest) == 0]
        near = [size for size in legal if size < sizes[letter]][-1:] + [s for s in legal if s > sizes[letter]][:1]
        if near:
            return letter, "write " + " or ".join(sizes.with_size(letter, size) for size in near)
    return faulty[0], f"leave {' and '.join(letters)} out"


def _devices(count: int) -> str:
    return f"{count} device" + ("s" if count > 1 else "")
