"""From GPUs, parallel sizes and engines of other systems to an allocation string.

Invariant: sizes are taken over or refused; the number of replicas is what the machines leave.
"""

import re

from pentad.config.dialects.facts import Sheet
from pentad.config.dialects.rules import LAYOUT_FACTS, Unsupported

_ENGINES = {
    "vllm": "vllm",
    "vllm_async": "vllm",
    "vllm_model": "vllm",
    "sglang": "sglang",
    "sglang_async": "sglang",
    "hf": "hf",
    "huggingface": "hf",
}
_TRAINERS = {
    "megatron": "megatron",
    "fsdp": "megatron",
    "fsdp2": "megatron",
    "deepspeed": "megatron",
    "archon": "megatron",
    "ddp": "megatron",
}
_LETTERS = "dtpvcex"
_COMPONENT = re.compile(r"(\w+)(\[\w+\])?:(\((?:[^()]*)\)|[a-z0-9]+)")


def assemble(sheet: Sheet, *, colocated: bool) -> None:
    """Set `allocation`, and say what became of the keys that decide it.

    Args:
        colocated: whether engines share the trainer's GPUs where no key says so.
    """
    if sheet.of("allocation", "trainer_layout", "engine_layout"):
        _from_text(sheet)
    else:
        _from_sizes(sheet, colocated)
    _engine_arguments(sheet)


def _from_text(sheet: Sheet) -> None:
    """AReaL: its allocation strings are those of Pentad, with other trainers."""
    text = sheet.get("allocation")
    facts = ("allocation",)
    if text is None:
        parts = (sheet.get("engine_layout"), sheet.get("trainer_layout"))
        facts = ("engine_layout", "trainer_layout")
        if None in parts:
            sheet.missing["allocation"] = "engine or trainer has no layout"
            sheet.refuse("one half of an allocation", *facts, learns=False)
            return
        text = "+".join(map(str, parts))
    written = re.sub(r"\s+", "", str(text))
    found = re.sub(r"\b(vllm|sglang|fsdp|megatron|archon)\.(?=[a-z]\d)", r"\1:", written)
    changed = re.sub(r"\b(fsdp|archon|deepspeed)(?=[:\[])", "megatron", found)
    # An older form: only the engine is named, and what follows it is the trainer.
    changed = re.sub(r"(?<=[+|])((?:[dtpcev]\d+)+)(?=$|[+|])", r"megatron:\1", changed) if ":" in changed else changed
    note = "" if changed == written else f"from {written}; the trainer is Megatron-Core"
    if not _COMPONENT.search(changed):
        sheet.refuse(f"an allocation without backends ({written}): write allocation=ENGINE:{written}", *facts)
        return
    changed = _with_engine(changed, sheet.engine)
    sheet.take("allocation", changed, *facts, why=note)
    sheet.nothing("the number of GPUs follows from allocation", *LAYOUT_FACTS, "engine_layout", "trainer_layout")


def _with_engine(text: str, engine: str | None) -> str:
    """The allocation with another engine on the same devices."""

    def replaced(match: re.Match[str]) -> str:
        if engine is None or match[1] not in ("vllm", "sglang", "hf"):
            return match[0]
        return f"{engine}:{_engine_layout(engine, _devices(match[3]), match[3])}"

    return _COMPONENT.sub(replaced, text)


def _devices(layout: str) -> int:
    world = 1
    for letter, size in re.findall(r"([a-z])(\d+)", layout):
        world *= int(size) if letter in "dtpc" else 1
    return world


def _engine_layout(engine: str, devices: int, layout: str) -> str:
    # An engine of hf is one device.
    return f"d{devices}" if engine == "hf" else layout


def _from_sizes(sheet: Sheet, colocated: bool) -> None:
    backend = str(sheet.get("trainer_backend", "megatron")).lower()
    if backend not in _TRAINERS:
        sheet.refuse(f"train by {backend}", "trainer_backend")
    elif backend != "megatron":
        sheet.nothing(f"the trainer is Megatron-Core; {backend} shards as its data parallelism does", "trainer_backend")
    world = sheet.get("nodes", 1) * sheet.get("gpus_per_node", 1)
    if not sheet.has("gpus_per_node"):
        world = sheet.get("gpus", 0)
    if sheet.gpus is not None:
        world = sheet.gpus
    if not world:
        world = sheet.get("t", 1) * sheet.get("p", 1) * sheet.get("c", 1)
        sheet.notes.append(f"the file does not say how many GPUs there are: {world} assumed; give --gpus N")
    engine_text, engine_devices, separate = _engines(
        sheet, world, sheet.get("colocated", colocated or not sheet.of("engine", "engine_d"))
    )
    devices = world - engine_devices if separate else world
    if devices < 1:
        sheet.refuse(f"engines on {engine_devices} of {world} GPUs, which leaves none for the trainer", *LAYOUT_FACTS)
        sheet.missing["allocation"] = "see the keys of GPUs and engines"
        return
    trainer = _trainer(sheet, devices)
    if isinstance(trainer, Unsupported):
        sheet.refuse(trainer.does, *LAYOUT_FACTS)
        sheet.missing["allocation"] = trainer.does
        return
    text = f"{engine_text}{'+' if separate else '|'}{trainer}" if engine_text else trainer
    sheet.take("allocation", text, *LAYOUT_FACTS)


def _trainer(sheet: Sheet, devices: int) -> str | Unsupported:
    sizes = {letter: sheet.get(letter, 1) for letter in "tpvce"}
    sizes["x"] = sheet.get("x", 1)
    each = sizes["t"] * sizes["p"] * sizes["c"]
    if devices % each:
        return Unsupported(f"t{sizes['t']} * p{sizes['p']} * c{sizes['c']} = {each} does not divide {devices} GPUs")
    sizes["d"] = devices // each
    stage = devices // sizes["p"]
    if sizes["e"] > 1 and not sheet.has("x") and stage % (sizes["e"] * sizes["t"]) == 0:
        sizes["x"] = sizes["t"]  # Megatron's own default
    return "megatron:" + _text(sizes)


def _engines(sheet: Sheet, world: int, colocated: bool) -> tuple[str, int, bool]:
    """The engines as text, their number of devices, and whether they have these to themselves."""
    asked = str(sheet.get("engine", "hf")).lower()
    engine = sheet.engine or _ENGINES.get(asked)
    if engine is None:
        sheet.refuse(f"generate by {asked}", "engine")
        engine = "hf"
    tensor, pipeline = sheet.get("engine_t", 1), sheet.get("engine_p", 1)
    separate = not colocated
    each = tensor * pipeline
    if separate:
        devices = sheet.get("engine_d", 1) * each
    else:
        devices = world
        if world % each:
            sheet.refuse(f"engines of {each} GPUs, which do not fill {world}", "engine_t", "engine_p", learns=False)
            each = tensor = pipeline = 1
    sizes = {"d": devices // each, "t": tensor, "p": pipeline}
    return f"{engine}:{_engine_layout(engine, devices, _text(sizes))}", devices, separate


def _text(sizes: dict[str, int]) -> str:
    return "".join(f"{letter}{sizes[letter]}" for letter in _LETTERS if sizes.get(letter, 1) > 1) or "d1"


def _engine_arguments(sheet: Sheet) -> None:
    """Arguments of vLLM go where vLLM generates."""
    engines = re.findall(r"\b(vllm|sglang|hf):", str(sheet.values.get("allocation", "")))
    engine = engines[0] if engines else "none"
    if engine == "vllm":
        share = sheet.get("vllm_share")
        if isinstance(share, float) and 0 < share < 1:
            sheet.take("rollout.vllm.gpu_memory_utilization", share, "vllm_share")
        sheet.refuse("a share of the GPU's memory that is not between 0 and 1", "vllm_share", learns=False)
        return
    why = f"an argument of vLLM's; the engine here is {engine}"
    sheet.nothing(why, "vllm_share")
    for row in sheet.rows:
        if row.verdict == "taken" and row.key.startswith("rollout.vllm."):
            sheet.values.pop(row.key, None)
            row.verdict, row.key, row.value, row.why = "no meaning here", "", None, why
