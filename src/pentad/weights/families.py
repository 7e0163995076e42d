"""The model families that Pentad trains, each as data: Megatron settings and weight names.

Invariant: a family says everything that tells it from the others; no code elsewhere asks which family it has.
`pentad.families.hf_config` refuses what a configuration asks for and Pentad would not compute as transformers does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from pentad.errors import UserError
from pentad.families.hf_config import check_supported
from pentad.weights.sharding import QKV, Experts, Gated, Replicated, Row, Rule, Vocab

_LAYER = "model.layers.{layer}."
_DECODER = "decoder.layers.{layer}."

_EMBEDDING = Vocab("embedding.word_embeddings.weight", ("model.embed_tokens.weight",))
_HEAD = Vocab("output_layer.weight", ("lm_head.weight",))
_TIED_HEAD = Vocab("output_layer.weight", ("model.embed_tokens.weight",))
_FINAL_NORM = Replicated("decoder.final_layernorm.weight", ("model.norm.weight",))


def _qkv(kind: str) -> Rule:
    names = tuple(f"{_LAYER}self_attn.{x}_proj.{kind}" for x in "qkv")
    return QKV(f"{_DECODER}self_attention.linear_qkv.{kind}", names)


_NORMS = (
    Replicated(f"{_DECODER}input_layernorm.weight", (f"{_LAYER}input_layernorm.weight",)),
    Replicated(f"{_DECODER}pre_mlp_layernorm.weight", (f"{_LAYER}post_attention_layernorm.weight",)),
)
_ATTENTION = (
    _qkv("weight"),
    Row(f"{_DECODER}self_attention.linear_proj.weight", (f"{_LAYER}self_attn.o_proj.weight",)),
)
_QK_NORM = tuple(
    Replicated(f"{_DECODER}self_attention.{x}_layernorm.weight", (f"{_LAYER}self_attn.{x}_norm.weight",)) for x in "qk"
)
_DENSE_MLP = (
    Gated(f"{_DECODER}mlp.linear_fc1.weight", tuple(f"{_LAYER}mlp.{x}_proj.weight" for x in ("gate", "up"))),
    Row(f"{_DECODER}mlp.linear_fc2.weight", (f"{_LAYER}mlp.down_proj.weight",)),
)

_ROUTER = f"{_DECODER}mlp.router.weight"


def _experts(prefix: str, gate: str, up: str, down: str) -> tuple[Rule, ...]:
    """Routed experts whose tensors are called `<prefix>.experts.<number>.<gate>.weight` and so on."""
    name = f"{_LAYER}{prefix}.experts.{{expert}}."
    fc1, fc2 = f"{_DECODER}mlp.experts.weight1", f"{_DECODER}mlp.experts.weight2"
    gated, row = (f"{name}{gate}.weight", f"{name}{up}.weight"), (f"{name}{down}.weight",)
    return (
        Replicated(_ROUTER, (f"{_LAYER}{prefix}.gate.weight",)),
        Experts(fc1, gated, Gated(fc1, gated)),
        Experts(fc2, row, Row(fc2, row)),
    )


_QWEN_EXPERTS = _experts("mlp", "gate_proj", "up_proj", "down_proj")
_SHARED_EXPERT = (
    Gated(
        f"{_DECODER}mlp.shared_experts.linear_fc1.weight",
        tuple(f"{_LAYER}mlp.shared_expert.{x}_proj.weight" for x in ("gate", "up")),
    ),
    Row(f"{_DECODER}mlp.shared_experts.linear_fc2.weight", (f"{_LAYER}mlp.shared_expert.down_proj.weight",)),
    Replicated(f"{_DECODER}mlp.shared_experts.gate_weight", (f"{_LAYER}mlp.shared_expert_gate.weight",)),
)


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        model_type: as in config.json.
        layer_rules: weights of one decoder layer.
        transformer: fields of Megatron's TransformerConfig besides the sizes, from the configuration.
    """

    model_type: str
    layer_rules: tuple[Rule, ...]
    transformer: Callable[[PreTrainedConfig], dict[str, Any]] = lambda config: {}

    def rules(self, tied: bool) -> tuple[Rule, ...]:
        """All rules of a model. The last of several pipeline stages holds a tied embedding's copy as output layer."""
        return (_EMBEDDING, *self.layer_rules, _FINAL_NORM, _TIED_HEAD if tied else _HEAD)


def _routing(normalized: bool) -> dict[str, Any]:
    """How tokens choose experts.

    A softmax over all experts, the largest k, normalised to sum to 1, is the softmax over the largest k logits.

    Args:
        normalized: the chosen experts' weights sum to 1.
    """
    return {"moe_router_pre_softmax": not normalized, "moe_router_score_function": "softmax"}


FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family(
            "llama",
            (*_NORMS, *_ATTENTION, *_DENSE_MLP),
        ),
        Family(
            "qwen2",
            (*_NORMS, *_ATTENTION, _qkv("bias"), *_DENSE_MLP),
            transformer=lambda config: {"add_qkv_bias": True},
        ),
        Family(
            "qwen3",
            (*_NORMS, *_ATTENTION, *_QK_NORM, *_DENSE_MLP),
            transformer=lambda config: {"qk_layernorm": True},
        ),
        Family(
            "qwen3_moe",
            (*_NORMS, *_ATTENTION, *_QK_NORM, *_QWEN_EXPERTS),
            transformer=lambda config: {"qk_layernorm": True, **_routing(config.norm_topk_prob)},
        ),
        Family(
            "qwen2_moe",
            (*_NORMS, *_ATTENTION, _qkv("bias"), *_QWEN_EXPERTS, *_SHARED_EXPERT),
            transformer=lambda config: {
                "add_qkv_bias": True,
                "moe_shared_expert_intermediate_size": config.shared_expert_intermediate_size,
                "moe_shared_expert_gate": True,
                **_routing(config.norm_topk_prob),
            },
        ),
        Family(
            "mixtral",
            (*_NORMS, *_ATTENTION, *_experts("block_sparse_moe", "w1", "w3", "w2")),
            transformer=lambda config: _routing(True),
        ),
    )
}


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a Hugging Face configuration.

    Raises:
        UserError: the architecture, or something that its configuration asks for, is not supported.
    """
    check_supported(config.to_dict())
    if getattr(config, "mlp_only_layers", None) or getattr(config, "decoder_sparse_step", 1) != 1:
        raise UserError(
            "the model's config.json has layers without experts among those with them (mlp_only_layers, "
            "decoder_sparse_step), which Pentad plans but does not train",
            "use a model without them",
        )
    return FAMILIES[config.model_type]
