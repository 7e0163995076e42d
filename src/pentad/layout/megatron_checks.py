"""Whether fields of `megatron.transformer` suit a model and its layout.

Pure: takes facts, a layout and the fields, returns problems with the smallest change that would do.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pentad.families.facts import ModelFacts
from pentad.layout.layout import Layout
from pentad.layout.pipeline import pipeline_chunks
from pentad.layout.validate import Problem

# Values that ask for nothing.
_OFF = (None, False, 0, "none")


def check_transformer(facts: ModelFacts, layout: Layout, fields: Mapping[str, Any]) -> list[Problem]:
    """Fields that the model or the layout leaves without their effect. The layout must be legal for the model."""
    return [*_recompute(facts, layout, fields), *_experts(facts, fields)]


def _recompute(facts: ModelFacts, layout: Layout, fields: Mapping[str, Any]) -> Iterator[Problem]:
    layers = fields.get("recompute_num_layers")
    if type(layers) is not int:
        return
    most = max(len(chunk.layers) for stage in pipeline_chunks(facts, layout) for chunk in stage)
    if layers > most:
        where = "the model" if layout.pipeline == 1 else f"a stage of megatron:{layout}"
        yield Problem(
            f"recompute_num_layers is {layers}, but {where} has {most} layer{'s' if most > 1 else ''}",
            f"set megatron.transformer.recompute_num_layers to {most} or less; 1 keeps least in memory",
        )


def _experts(facts: ModelFacts, fields: Mapping[str, Any]) -> Iterator[Problem]:
    if facts.num_experts is None:
        for name in sorted(name for name, value in fields.items() if name.startswith("moe_") and value not in _OFF):
            yield Problem(
                f"{name} is for models with experts, and {facts.family} has none",
                f"remove megatron.transformer.{name}",
            )
    elif fields.get("moe_shared_expert_overlap") and not facts.shared_ffn_hidden_size:
        yield Problem(
            f"moe_shared_expert_overlap is for models with a shared expert, and {facts.family} has none",
            "remove megatron.transformer.moe_shared_expert_overlap",
        )
