"""Weight rules that families share, by part of a decoder layer. Families differ in which parts they have.

Invariant: a name on the Megatron side is the one that `pentad.trainers.megatron` builds; a name on the Hugging Face
side is that of the checkpoint, as transformers writes it.
"""

from pentad.families.rules import QKV, Experts, Gated, Replicated, Row, Rule, Vocab

_LAYER = "model.layers.{layer}."
_DECODER = "decoder.layers.{layer}."


def model_rules(tied: bool, value_head: bool = False) -> tuple[Rule, ...]:
    """The parameters outside decoder layers.

    Args:
        tied: the output layer is the embedding; the last of several pipeline stages holds a copy of it.
        value_head: the output layer gives one value a token, and every rank of the last stage holds all of it.
    """
    output: Rule = Vocab("output_layer.weight", ("model.embed_tokens.weight" if tied else "lm_head.weight",))
    if value_head:
        output = Replicated("output_layer.weight", ("score.weight",))
    return (
        Vocab("embedding.word_embeddings.weight", ("model.embed_tokens.weight",)),
        Replicated("decoder.final_layernorm.weight", ("model.norm.weight",)),
        output,
    )


def _qkv(kind: str) -> Rule:
    names = tuple(f"{_LAYER}self_attn.{x}_proj.{kind}" for x in "qkv")
    return QKV(f"{_DECODER}self_attention.linear_qkv.{kind}", names)


NORMS: tuple[Rule, ...] = (
    Replicated(f"{_DECODER}input_layernorm.weight", (f"{_LAYER}input_layernorm.weight",)),
    Replicated(f"{_DECODER}pre_mlp_layernorm.weight", (f"{_LAYER}post_attention_layernorm.weight",)),
)
ATTENTION: tuple[Rule, ...] = (
    _qkv("weight"),
    Row(f"{_DECODER}self_attention.linear_proj.weight", (f"{_LAYER}self_attn.o_proj.weight",)),
)
QKV_BIAS: tuple[Rule, ...] = (_qkv("bias"),)
QK_NORM: tuple[Rule, ...] = tuple(
    Replicated(f"{_DECODER}self_attention.{x}_layernorm.weight", (f"{_LAYER}self_attn.{x}_norm.weight",)) for x in "qk"
)
DENSE_MLP: tuple[Rule, ...] = (
    Gated(f"{_DECODER}mlp.linear_fc1.weight", tuple(f"{_LAYER}mlp.{x}_proj.weight" for x in ("gate", "up"))),
    Row(f"{_DECODER}mlp.linear_fc2.weight", (f"{_LAYER}mlp.down_proj.weight",)),
)
SHARED_EXPERT: tuple[Rule, ...] = (
    Gated(
        f"{_DECODER}mlp.shared_experts.linear_fc1.weight",
        tuple(f"{_LAYER}mlp.shared_expert.{x}_proj.weight" for x in ("gate", "up")),
    ),
    Row(f"{_DECODER}mlp.shared_experts.linear_fc2.weight", (f"{_LAYER}mlp.shared_expert.down_proj.weight",)),
    Replicated(f"{_DECODER}mlp.shared_experts.gate_weight", (f"{_LAYER}mlp.shared_expert_gate.weight",)),
)


def experts(block: str, gate: str, up: str, down: str) -> tuple[Rule, ...]:
    """Router and experts of a mixture layer.

    Args:
        block: what the checkpoint calls the feed-forward part of a layer, as `mlp`.
        gate, up, down: what it calls the matrices of an expert, in `<block>.experts.<number>.<gate>.weight`.
    """
    name = f"{_LAYER}{block}.experts.{{expert}}."
    fc1, fc2 = f"{_DECODER}mlp.experts.weight1", f"{_DECODER}mlp.experts.weight2"
    gated, row = (f"{name}{gate}.weight", f"{name}{up}.weight"), (f"{name}{down}.weight",)
    return (
        Replicated(f"{_DECODER}mlp.router.weight", (f"{_LAYER}{block}.gate.weight",)),
        Experts(fc1, gated, Gated(fc1, gated)),
        Experts(fc2, row, Row(fc2, row)),
    )


QWEN_EXPERTS = experts("mlp", "gate_proj", "up_proj", "down_proj")
