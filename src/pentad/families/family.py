"""What one model family says of itself.

Invariant: a family says everything that tells it from the others; no code elsewhere asks which family it has.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pentad.families.config_values import ConfigValues
from pentad.families.rules import Rule


@dataclass(frozen=True)
class Refusal:
    """Something that a configuration may ask for and that Pentad does not compute.

    Attributes:
        what: the setting.
        why: what is computed instead.
        asks: whether a configuration asks for it.
        fix: what the user can do.
    """

    what: str
    why: str
    asks: Callable[[ConfigValues], Any]
    fix: str = "use a model without it"


def _nothing(values: ConfigValues) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        name: `model_type` in config.json.
        attention: weight rules of what every decoder layer has.
        dense_mlp: those of a layer without experts.
        mixture: those of a layer with experts.
        defaults: what transformers takes where config.json says nothing, beside what all families must say.
        nullable: sizes that may be null, as in transformers, and then follow from the others.
        refused: what is refused, beside what all families refuse.
        facts: fields of `ModelFacts` beside the sizes that all families have.
        transformer: fields of Megatron's TransformerConfig that do not follow from the facts.
        tiny: built-in models for `pentad verify` and `pentad plan`: name -> values of config.json, over those that all
            built-in models have.
    """

    name: str
    attention: tuple[Rule, ...]
    dense_mlp: tuple[Rule, ...] = ()
    mixture: tuple[Rule, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    nullable: frozenset[str] = frozenset()
    refused: tuple[Refusal, ...] = ()
    facts: Callable[[ConfigValues], Mapping[str, Any]] = _nothing
    transformer: Callable[[ConfigValues], Mapping[str, Any]] = _nothing
    tiny: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def layer_rules(self, has_experts: bool) -> tuple[Rule, ...]:
        """Weight rules of a decoder layer."""
        return self.attention + (self.mixture if has_experts else self.dense_mlp)
