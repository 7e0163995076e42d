"""Which modules LoRA adapts, and the weight rules of their adapters.

Invariant: an adapter belongs to one Hugging Face module; the rules of A and B follow from the rule of the module's
weight alone, so that they are split as it is. Where Megatron fuses modules, so are their adapters.

Names: `<module>.lora_A.weight` `[rank, in]` and `<module>.lora_B.weight` `[out, rank]`, as in PEFT without its prefix;
on the Megatron side `<module>.lora.A` beside `<module>.weight` (stacked experts: `lora1.A` beside `weight1`).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from pentad.errors import UserError
from pentad.families.catalog import family_named
from pentad.families.facts import ModelFacts
from pentad.families.rules import QKV, Column, Experts, Gated, Replicated, Row, Rule, Stacked

_PARAMETER = re.compile(r"^(?P<module>.+)\.lora(?P<number>\d?)\.(?P<kind>[AB])$")
_ROUTER = ".mlp.router.weight"
A, B = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class AdapterRules:
    """The adapter of one Megatron weight.

    Attributes:
        parts: which of the weight's Hugging Face modules have one, by their places in its rule.
        a, b: rules of the two matrices.
    """

    parts: tuple[int, ...]
    a: Rule
    b: Rule


def base_of(megatron_name: str) -> tuple[str, str] | None:
    """The weight that a parameter of an adapter stands beside, and `A` or `B`; None for any other parameter."""
    match = _PARAMETER.match(megatron_name)
    return (f"{match['module']}.weight{match['number']}", match["kind"]) if match else None


def beside(megatron_name: str) -> str | None:
    """What the adapter of a weight is called: `.lora` beside `.weight`; None for what is no weight of that name."""
    match = re.match(r"^(?P<module>.+)\.weight(?P<number>\d?)$", megatron_name)
    return f"{match['module']}.lora{match['number']}" if match else None


def is_adapter(hugging_face_name: str) -> bool:
    """Whether a tensor is a matrix of an adapter."""
    return hugging_face_name.endswith((A, B))


def adaptable(rule: Rule) -> bool:
    """Whether the modules of a rule are such that an adapter can stand beside them."""
    inner = rule.each if isinstance(rule, Experts) else rule
    weight = beside(rule.megatron) is not None
    return weight and (isinstance(inner, (QKV, Gated, Row, Column)) or rule.megatron.endswith(_ROUTER))


def adaptable_modules(facts: ModelFacts) -> Iterator[tuple[Rule, str]]:
    """Every module of a model that an adapter can stand beside: its rule, and its whole name."""
    family = family_named(facts.family)
    for layer in range(facts.num_layers):
        for rule in family.layer_rules(facts.has_experts(layer)):
            numbers = range(facts.num_experts or 0) if isinstance(rule, Experts) else (0,)
            for name in rule.hugging_face if adaptable(rule) else ():
                whole = module_of(name.replace("{layer}", str(layer)))
                yield from ((rule, whole.replace("{expert}", str(number))) for number in numbers)


def module_of(name: str) -> str:
    """The module of a weight."""
    return name.removesuffix(".weight")


class Targets:
    """Which modules are adapted.

    Args:
        targets, exclude: endings of module names (`q_proj`, `mlp.gate`), or one regular expression for whole names.
            `targets="all-linear"` is every projection, without routers.
    """

    def __init__(self, targets: str | Sequence[str], exclude: str | Sequence[str] = ()) -> None:
        self._targets, self._exclude = targets, exclude
        for key, pattern in (("targets", targets), ("exclude", exclude)):
            if isinstance(pattern, str):
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise UserError(f"model.lora.{key} is no regular expression: {error}", "write a list") from None

    def includes(self, rule: Rule, module: str) -> bool:
        """Whether a module, of that rule, is adapted."""
        if _matches(self._exclude, module):
            return False
        if self._targets == "all-linear":
            return not rule.megatron.endswith(_ROUTER)
        return _matches(self._targets, module)

    def rules_of(self, rule: Rule, names: Sequence[str], experts: int) -> AdapterRules | None:
        """The rules of a weight's adapter; None if it has none.

        Args:
            rule: of the weight.
            names: of its Hugging Face tensors, with the layer's number; `{expert}` may still stand in them.
            experts: of a layer.

        Raises:
            UserError: some experts of a layer are adapted and others not.
        """
        if not adaptable(rule):
            return None
        parts = []
        for part, name in enumerate(names):
            numbers = range(experts) if isinstance(rule, Experts) else (0,)
            chosen = {self.includes(rule, module_of(name.replace("{expert}", str(number)))) for number in numbers}
            if len(chosen) > 1:
                raise UserError(
                    f"model.lora.targets or exclude names some experts of {module_of(name)}, not all",
                    "adapt all experts of a layer, or none",
                )
            if chosen.pop():
                parts.append(part)
        return _rules(rule, [module_of(names[part]) for part in parts], tuple(parts)) if parts else None

    def check(self, modules: Iterable[tuple[Rule, str]]) -> None:
        """Refuse targets that no module has.

        Args:
            modules: all adaptable modules of the model, with their rules.

        Raises:
            UserError: with the modules that there are.
        """
        found = list(modules)
        endings = sorted({name.rpartition(".")[2] for _, name in found})
        wanted = self._targets if not isinstance(self._targets, str) else [self._targets]
        for target in wanted:
            one = Targets(target if isinstance(self._targets, str) else [target])
            if not any(one.includes(rule, name) for rule, name in found):
                raise UserError(
                    f"model.lora.targets: no module that can be adapted is called {target}",
                    f"name some of {', '.join(endings)}",
                )
        if not any(self.includes(rule, name) for rule, name in found):
            raise UserError("model.lora.exclude leaves nothing to adapt", "exclude less")


def _matches(pattern: str | Sequence[str], module: str) -> bool:
    if isinstance(pattern, str):
        return re.fullmatch(pattern, module) is not None
    return any(module == name or module.endswith("." + name) for name in pattern)


def _rules(rule: Rule, modules: list[str], parts: tuple[int, ...]) -> AdapterRules:
    name = beside(rule.megatron)
    a, b = f"{name}.A", f"{name}.B"
    for_a, for_b = tuple(module + A for module in modules), tuple(module + B for module in modules)
    if isinstance(rule, Experts):
        inner = _rules(replace(rule.each, megatron=rule.megatron), modules, parts)
        return AdapterRules(parts, Experts(a, for_a, inner.a), Experts(b, for_b, inner.b))
    if isinstance(rule, Row):
        return AdapterRules(parts, Row(a, for_a), Replicated(b, for_b))
    if isinstance(rule, Replicated):
        return AdapterRules(parts, Replicated(a, for_a), Replicated(b, for_b))
    of_b: Rule
    if isinstance(rule, QKV):
        of_b = QKV(b, for_b, parts)
    elif isinstance(rule, Gated) and len(parts) == 2:
        of_b = Gated(b, for_b)
    else:
        of_b = Column(b, for_b)
    return AdapterRules(parts, Stacked(a, for_a), of_b)
