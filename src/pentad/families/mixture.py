"""What configurations say of experts: sizes for layouts and plans, routing for Megatron.

Invariant: a model of which no layer has experts is a dense model, whatever else its configuration says.
"""

from typing import Any

from pentad.errors import UserError
from pentad.families.config_values import ConfigValues


def mixture_facts(
    values: ConfigValues, *, experts: str, width: str, dense_layers: tuple[int, ...] = ()
) -> dict[str, Any]:
    """Fields of `ModelFacts` of a model with experts; none for a model without.

    Args:
        experts: the family's name for the number of experts. transformers has two, and may write the other one.
        width: its name for the inner width of an expert.
        dense_layers: layers without experts.
    """
    name = values.first_given("num_local_experts", "num_experts") or experts
    if values.get(name) == 0 or len(dense_layers) == values.size("num_hidden_layers"):
        return {}
    return {
        "num_experts": values.size(name),
        "moe_ffn_hidden_size": values.size(width),
        "experts_per_token": values.size("num_experts_per_tok"),
        "dense_layers": dense_layers,
    }


def dense_layers(values: ConfigValues) -> tuple[int, ...]:
    """Layers without experts: those in `mlp_only_layers`, and all but every `decoder_sparse_step`-th.

    Raises:
        UserError: they are not a list and a whole number above 0.
    """
    named, step = values.get("mlp_only_layers") or (), values.size("decoder_sparse_step")
    if not isinstance(named, list | tuple):
        raise UserError(f"{values.where}: mlp_only_layers is {named!r}", "give a list of layer numbers, as [0, 1]")
    return tuple(layer for layer in range(values.size("num_hidden_layers")) if layer in named or (layer + 1) % step)


def routing(*, normalized: bool) -> dict[str, Any]:
    """Megatron's settings of how tokens choose experts.

    A softmax over all experts, the largest k, normalised to sum to 1, is the softmax over the largest k logits.

    Args:
        normalized: the chosen experts' weights sum to 1.
    """
    return {"moe_router_pre_softmax": not normalized, "moe_router_score_function": "softmax"}
