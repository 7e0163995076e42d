"""Allocation strings: what each means, that printing round-trips, and how wrong ones are refused."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pentad.errors import UserError
from pentad.layout import Allocation, Component, Layout, parse_allocation

# string -> (devices, engine, trainer, shared)
VALID = {
    "hf:d1|megatron:d1": (1, Layout(), Layout(), True),
    "hf:d2|megatron:d2": (2, Layout(data=2), Layout(data=2), True),
    "hf:d1+megatron:t2": (3, Layout(), Layout(tensor=2), False),
    "megatron:t2": (2, None, Layout(tensor=2), False),
    "megatron:t2+hf:d1": (3, Layout(), Layout(tensor=2), False),
    "sglang:d2+megatron:t2": (4, Layout(data=2), Layout(tensor=2), False),
    "megatron:d2t4p2c2": (32, None, Layout(2, 4, 2, 2), False),
    "megatron:c2p2t4d2": (32, None, Layout(2, 4, 2, 2), False),
    "megatron:(attn:d1p4t2c2|ffn:d1p4t1e4)": (16, None, Layout(1, 2, 4, 2, expert=4), False),
    "sglang:d4t4+megatron:(attn:d1p4t2c2|ffn:d1p4t1e4)": (
        32,
        Layout(data=4, tensor=4),
        Layout(1, 2, 4, 2, expert=4),
        False,
    ),
    "megatron:attn:d1p4t2c2|ffn:d1p4t1e4": (16, None, Layout(1, 2, 4, 2, expert=4), False),
    "megatron:(attn:d1p4t2c2|ffn:e4)": (16, None, Layout(1, 2, 4, 2, expert=4), False),
    "megatron:(attn:d4p2t2c2|ffn:d2p2t4e2)": (32, None, Layout(4, 2, 2, 2, expert=2, expert_tensor=4), False),
    "megatron:(attn:d4p2v3|ffn:e2t2)": (8, None, Layout(4, 1, 2, expert=2, expert_tensor=2, virtual=3), False),
    "megatron:d4p2e2x2v3": (8, None, Layout(4, 1, 2, expert=2, expert_tensor=2, virtual=3), False),
    "megatron:d2t2e2x1": (4, None, Layout(2, 2, expert=2), False),
    "vllm:d2t2p2|megatron:d8": (8, Layout(2, 2, 2), Layout(8), True),
    "sglang:d4t4 + megatron:d2p2t4e4": (32, Layout(4, 4), Layout(2, 4, 2, expert=4), False),
    "hf : d 1 |\tmegatron : d 1": (1, Layout(), Layout(), True),
    "sglang[rollout]:d2+megatron[actor]:d4": (6, Layout(2), Layout(4), False),
    "megatron[a]:(attn:t2|ffn:e2)|vllm[b]:t2": (2, Layout(1, 2), Layout(1, 2, expert=2), True),
    "hf:d1+megatron:t2+megatron[critic]:d3": (6, Layout(), Layout(1, 2), False),
    "megatron[critic]:d3+hf:d2|megatron[actor]:t2": (5, Layout(2), Layout(1, 2), True),
    "hf:d1+megatron[actor]:d2+megatron[ref]:d1|megatron[critic]:d1": (4, Layout(), Layout(2), False),
    "hf:d2|megatron:d2|megatron[critic]:d2": (2, Layout(2), Layout(2), True),
}


@pytest.mark.parametrize("text", VALID)
def test_meaning(text: str) -> None:
    world, engine, trainer, shared = VALID[text]
    allocation = parse_allocation(text)
    assert allocation.world_size == world
    assert (allocation.rollout.layout if allocation.rollout else None) == engine
    assert allocation.trainer.layout == trainer
    assert allocation.colocated == shared
    assert parse_allocation(str(allocation)) == allocation


def test_devices_follow_the_order_of_the_string() -> None:
    allocation = parse_allocation("megatron[actor]:t2+hf[rollout]:d3")
    assert allocation.rollout is not None
    assert allocation.devices(allocation.trainer) == range(0, 2)
    assert allocation.devices(allocation.rollout) == range(2, 5)
    assert (allocation.trainer.name, allocation.rollout.name) == ("actor", "rollout")
    shared = parse_allocation("hf:d2|megatron:t2")
    assert shared.rollout is not None
    assert shared.devices(shared.rollout) == shared.devices(shared.trainer) == range(0, 2)


@pytest.mark.parametrize(
    ("text", "homes", "shown"),
    [
        ("hf:d1+megatron:t2", {"megatron:t2": "policy reference critic"}, "rollout 0; policy, reference, critic 1-2"),
        (
            "hf:d1+megatron:t2+megatron[critic]:d1",
            {"megatron:t2": "policy reference", "megatron[critic]:d1": "critic"},
            "rollout 0; policy, reference 1-2; critic 3",
        ),
        (
            "megatron[ref]:d1|megatron[critic]:d1+hf:d2|megatron:d2",
            {"megatron:d2": "policy", "megatron[ref]:d1": "reference critic"},
            "reference, critic 0; rollout 1-2; policy 1-2",
        ),
        # On the policy's devices a model is in the policy's ranks.
        (
            "megatron[critic]:d2|megatron:d2+megatron[ref]:d1",
            {"megatron:d2": "policy critic", "megatron[ref]:d1": "reference"},
            "policy, critic 0-1; reference 2",
        ),
    ],
)
def test_where_each_model_is(text: str, homes: dict[str, str], shown: str) -> None:
    allocation = parse_allocation(text)
    found = allocation.homes(("policy", "reference", "critic"))
    assert {str(component): " ".join(roles) for component, roles in found.items()} == homes
    assert allocation.device_map(("policy", "reference", "critic")) == shown


def test_derived_sizes() -> None:
    layout = parse_allocation("megatron:d4t2p2c2e8").trainer.layout
    assert (layout.world, layout.expert_data, layout.sequence_parallel) == (32, 2, True)
    assert not Layout(data=2).sequence_parallel


sizes = st.sampled_from([1, 1, 1, 2, 3, 4])


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    data, tensor, pipeline, context = (draw(sizes) for _ in range(4))
    stage = data * tensor * context
    expert = draw(st.sampled_from([n for n in range(1, stage + 1) if stage % n == 0]))
    room = stage // expert
    expert_tensor = draw(st.sampled_from([n for n in range(1, room + 1) if room % n == 0]))
    virtual = draw(sizes) if pipeline > 1 else 1
    return Layout(data, tensor, pipeline, context, expert, expert_tensor, virtual)


@st.composite
def allocations(draw: st.DrawFn) -> Allocation:
    trainer = Component(draw(st.sampled_from([None, "actor"])), "megatron", draw(layouts()))
    backend = draw(st.sampled_from(["hf", "vllm", "sglang"]))
    engine = Component(draw(st.sampled_from([None, "rollout"])), backend, Layout(draw(sizes), draw(sizes), draw(sizes)))
    shape = draw(st.sampled_from(["alone", "apart", "shared"]))
    if shape == "alone":
        return Allocation(((trainer,),))
    if shape == "apart":
        return Allocation(tuple(draw(st.permutations([(trainer,), (engine,)]))))
    world = trainer.layout.world
    assume(world % (engine.layout.tensor * engine.layout.pipeline) == 0)
    data = world // (engine.layout.tensor * engine.layout.pipeline)
    engine = Component(engine.name, backend, Layout(data, engine.layout.tensor, engine.layout.pipeline))
    return Allocation((tuple(draw(st.permutations([trainer, engine]))),))


@given(allocations())
def test_printing_round_trips(allocation: Allocation) -> None:
    text = str(allocation)
    assert parse_allocation(text) == allocation
    assert str(parse_allocation(text)) == text


@given(layouts(), st.randoms())
def test_folded_form_says_the_same_as_the_flat_one(layout: Layout, random) -> None:
    attn = [f"d{layout.data}", f"t{layout.tensor}", f"p{layout.pipeline}", f"c{layout.context}", f"v{layout.virtual}"]
    ffn = [f"e{layout.expert}", f"t{layout.expert_tensor}"]
    ffn += random.sample([f"p{layout.pipeline}", f"d{layout.expert_data}", f"v{layout.virtual}"], random.randint(0, 3))
    random.shuffle(attn)
    random.shuffle(ffn)
    text = f"megatron:(attn:{''.join(attn)}|ffn:{''.join(ffn)})"
    assert parse_allocation(text).trainer.layout == layout


# (string, what the caret stands under, part of the cause, part of the fix); a caret past the end stands under "".
INVALID = [
    ("", "", "the string is empty", "megatron:d1"),
    ("   ", " ", "the string is empty", "megatron:d1"),
    ("megatron", "", "ends too early", "write ':' between backend and sizes"),
    ("megatron:", "", "ends too early", "a letter and a size"),
    ("megatron:d", "", "ends too early", "a size after each letter"),
    ("megatron:4", "4", "'4' is not expected", "a letter and a size"),
    ("megatron:2d", "2d", "'2' is not expected", "a letter and a size"),
    ("megatron:d2t", "", "ends too early", "a size after each letter"),
    ("megatron:dt2", "t2", "not expected", "a size after each letter"),
    ("megatron:d-1", "-1", "a whole number", "a size after each letter"),
    ("megatron:d1.5", ".5", "a whole number", "a size after each letter"),
    ("megatron:d2 2", "2", "not expected", "remove '2'"),
    ("megatron:d2!", "!", "not expected", "remove '!'"),
    ("megatron:d2)", ")", "not expected", "remove ')'"),
    ("megatron.d2", ".d2", "'.' instead of ':'", "write megatron:d2"),
    ("megatron=d2", "=d2", "'=' instead of ':'", "write megatron:d2"),
    ("d8", "d8", "the backend is missing", "megatron:d8"),
    ("d4t2+hf:d1", "d4t2", "the backend is missing", "megatron:d4t2"),
    ("hf:d1+d4", "d4", "the backend is missing", "megatron:d4"),
    ("[actor]:d4", "[actor]", "the backend is missing", "megatron[actor]"),
    ("megatron[:d4", ":d4", "a name is missing", "megatron[actor]"),
    ("megatron[]:d4", "]:d4", "a name is missing", "megatron[actor]"),
    ("megatron[a:d4", ":d4", "not expected", "close the name"),
    ("megatron[a]d4", "d4", "not expected", "write ':'"),
    ("+megatron:d1", "+", "not expected", "write a component"),
    ("megatron:d1+", "", "ends too early", "write a component"),
    ("megatron:d1|", "", "ends too early", "write a component"),
    ("hf:d1||megatron:d1", "|megatron", "not expected", "write a component"),
    ("hf:d1++megatron:d1", "+megatron", "not expected", "write a component"),
    ("hf:d1,megatron:d1", ",megatron", "',' is not known", "'+'"),
    ("hf:d1 megatron:d1", "megatron", "side by side", "'+'"),
    ("(hf:d1|megatron:d1)", "(hf", "not expected", "write a component"),
    ("megatron:(d1)", "d1", "not expected", "(attn:...|ffn:...)"),
    ("megatron:(attn:d1)", ")", "not expected", "(attn:...|ffn:...)"),
    ("megatron:attn:d1", "", "ends too early", "(attn:...|ffn:...)"),
    ("megatron:(ffn:e1|attn:d1)", "ffn", "not expected", "(attn:...|ffn:...)"),
    ("megatron:(attn:d1|ffn:e1", "", "ends too early", "close the parenthesis"),
    ("megatron:(attn:|ffn:e1)", "|ffn", "not expected", "a letter and a size"),
    ("hf:d1|ffn:d1", "ffn", "ffn is not a backend", "megatron:(attn:"),
    ("megatro:d2", "megatro", "no backend megatro", "write megatron:d2"),
    ("HF:d1|megatron:d1", "HF", "no backend HF", "write hf:d1|megatron:d1"),
    ("fsdp:d2", "fsdp", "no backend fsdp", "write megatron:d2"),
    ("hf:d1+archon:d2", "archon", "the trainer is megatron", "write hf:d1+megatron:d2"),
    ("quux:d1", "quux", "no backend quux", "hf, vllm, sglang, megatron"),
    ("megatron:q2", "q2", "unknown dimension q", "a letter of the list"),
    ("megatron:D2", "D2", "unknown dimension D", "write d2"),
    ("megatron:d2d8", "d8", "d (data) is given twice, d2 and d8", "megatron:d2"),
    ("megatron:d2t2d2", "d2", "given twice", "megatron:d2t2"),
    ("megatron:(attn:d2|ffn:e2e2)", "e2)", "e (expert) is given twice", "ffn:e2)"),
    ("megatron:d0", "d0", "the smallest is 1", "write d1"),
    ("megatron:t00", "t00", "the smallest is 1", "write t1"),
    ("megatron:d02", "d02", "a leading zero", "write d2"),
    ("megatron:d99999999", "d9", "larger than any cluster", "1000000"),
    ("megatron:d10000t10000", "d1", "larger than any cluster", "1000000"),
    ("megatron:d4e3", "e3", "e3 does not divide the 4 devices", "megatron:d4e2 or megatron:d4e4"),
    ("megatron:p4e2", "e2", "does not divide the 1 devices", "write megatron:p4e1"),
    ("megatron:d4x3", "x3", "does not divide the 4 devices", "megatron:d4x2 or megatron:d4x4"),
    ("megatron:d4e4x2", "e4", "e4 * x2 does not divide", "megatron:d4e2x2"),
    ("megatron:d2v2", "v2", "needs a pipeline", "p2 or more"),
    ("megatron:(attn:v2|ffn:e1)", "v2", "needs a pipeline", "p2 or more"),
    ("hf:c2|megatron:d2", "c2", "engine hf has no dimension c", "remove c2"),
    ("vllm:d2e2|megatron:d2", "e2", "engine vllm has no dimension e", "remove e2"),
    ("sglang:d2v2+megatron:d2", "v2", "engine sglang has no dimension v", "remove v2"),
    ("hf:(attn:d1|ffn:d1)+megatron:d1", "hf", "a folded layout is for the trainer", "hf:d1"),
    ("megatron:(attn:d2e2|ffn:t1)", "e2", "does not belong in attn", "give it in ffn"),
    ("megatron:(attn:d2|ffn:c2)", "c2", "does not belong in ffn", "give it in attn"),
    ("megatron:(attn:d2|ffn:x2)", "x2", "does not belong in ffn", "as t in ffn"),
    ("megatron:(attn:p2|ffn:p4)", "p4", "ffn has p4 but attn has p2", "write megatron:(attn:p2|ffn:p2)"),
    ("megatron:(attn:p2v2|ffn:v3)", "v3", "ffn has v3 but attn has v2", "ffn:v2)"),
    ("megatron:(attn:d2|ffn:e3)", "e3", "so d has no value", "ffn:e2)"),
    ("megatron:(attn:d4|ffn:t3e2)", "t3", "so d has no value", "write megatron:(attn:d4|ffn:t2e2)"),
    ("megatron:(attn:d4|ffn:d1e2)", "d1e2", "ffn covers 2 devices", "ffn:d2e2)"),
    ("megatron:d1+megatron:d2", "megatron:d2", "two trainers", "keep megatron:d1 or megatron:d2"),
    ("megatron:d1|megatron:d1", "megatron:d1", "two trainers", "keep"),
    ("hf:d1+vllm:d1+megatron:d1", "vllm", "two rollout engines", "keep hf:d1 or vllm:d1"),
    ("hf:d2", "", "there is no trainer", "hf:d2|megatron:d2"),
    ("megatron[critic]:d1", "megatron[critic]", "for the critic alone", "megatron:d1+megatron[critic]:d1"),
    ("megatron:d1+megatron[x]:d2", "megatron[x]", "two trainers", "named, as in megatron[critic]:d1"),
    ("megatron[ref]:d1+megatron:d1+megatron[reference]:d1", "megatron[reference]", "two components of the ref", "keep"),
    (
        "megatron:d2|megatron[critic]:t2",
        "megatron[critic]",
        "in the same ranks",
        "megatron:d2|megatron[critic]:d2 (one",
    ),
    ("megatron:d1+hf:d1|megatron[critic]:d1", "hf:d1", "not with the policy", "hf:d1+megatron[critic]:d1"),
    ("hf[a]:d1|megatron[a]:d1", "megatron", "two components are named a", "its own name"),
    (
        "hf:d2|megatron:d4",
        "megatron",
        "has 2 devices and megatron:d4 has 4",
        "write hf:d2|megatron:d2 or hf:d2+megatron",
    ),
    ("hf:d3|megatron:t2", "megatron", "they share them", "write hf:d2|megatron:t2 or hf:d3+megatron:t2"),
    ("vllm:t4|megatron:t3", "megatron", "they share them", "write vllm:t4+megatron:t3"),
    ("hf:d1|megatron:(attn:d2|ffn:e2)", "megatron", "they share them", "hf:d2|megatron:(attn:d2|ffn:e2)"),
]


@pytest.mark.parametrize(("text", "under", "cause", "fix"), INVALID)
def test_wrong_string_is_refused_with_a_caret(text: str, under: str, cause: str, fix: str) -> None:
    with pytest.raises(UserError) as error:
        parse_allocation(text)
    assert cause in error.value.cause
    assert fix in error.value.fix
    _, shown, caret = error.value.cause.split("\n")
    assert shown == f"  {text}"
    position = len(caret) - 1 - 2
    assert text[position:].startswith(under) if under else position == len(text.rstrip())


def test_suggested_strings_are_right() -> None:
    """A fix of the form `write STRING` names strings that parse."""
    parsed = 0
    for text, *_ in INVALID:
        with pytest.raises(UserError) as error:
            parse_allocation(text)
        fix = error.value.fix
        if fix.startswith("write ") and "megatron:" in fix and "'" not in fix and "," not in fix:
            for part in fix.removeprefix("write ").split(" or "):
                candidate = part.split(" (")[0]
                if ":" in candidate and "..." not in candidate and " " not in candidate:
                    parse_allocation(candidate)
                    parsed += 1
    assert parsed > 5


@given(st.text(alphabet="dtpcexv0123 :+|()[]attnffnmegatronhf", max_size=30))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        allocation = parse_allocation(text)
    except UserError as error:
        assert error.fix
    else:
        assert parse_allocation(str(allocation)) == allocation


def test_values_keep_their_invariant() -> None:
    trainer, engine = Component(None, "megatron", Layout(2)), Component(None, "hf", Layout(1))
    for wrong in (
        lambda: Layout(data=0),
        lambda: Layout(virtual=2),
        lambda: Layout(data=2, expert=3),
        lambda: Component(None, "quux", Layout()),
        lambda: Allocation(()),
        lambda: Allocation(((trainer,),)).engines_alone(),
        lambda: Allocation(((trainer,), (trainer,))),
        lambda: Allocation(((trainer, engine),)),
        lambda: Allocation(((trainer,),)).devices(engine),
    ):
        with pytest.raises(ValueError):
            wrong()
