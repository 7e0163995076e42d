"""Predicted peak memory of each rank, component by component.

Invariant: a prediction is a sum of named components, each a product of sizes and of coefficients in `Coefficients`;
nothing is fitted elsewhere. Bytes are those that PyTorch's allocator holds at the highest moment of a step
(`torch.cuda.max_memory_allocated`), except `overhead`, which is outside of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from pentad.families.facts import ModelFacts
from pentad.layout.context import context_method
from pentad.layout.layout import Layout
from pentad.layout.pipeline import Chunk, chunks_in_flight, distinct_stages, layer_kinds, pipeline_chunks
from pentad.planning.adapters import AdapterParameters, AdapterWork, adapter_parameters
from pentad.planning.coefficients import BYTES, DEFAULT, Coefficients
from pentad.planning.engine import EngineMemory
from pentad.planning.parameters import RankParameters, chunk_parameters

Recompute = Literal["none", "selective", "full"]
RECOMPUTE: tuple[Recompute, ...] = get_args(Recompute)

COMPONENTS = (
    "weights",
    "gradients",
    "optimizer",
    "activations",
    "logits",
    "buffers",
    "reference",
    "critic",
    "engine",
    "cache",
    "overhead",
)
# Those that are there only while a model is trained.
_WORKING = ("activations", "logits", "buffers")


@dataclass(frozen=True)
class Workload:
    """What is trained in one step.

    Attributes:
        tokens: of one microbatch on one data-parallel rank.
        microbatches: of one step on one data-parallel rank.
        sequence: tokens of a typical sequence.
        dtype: `bf16` (with fp32 masters) or `fp32`.
        recompute: activations that are computed again in the backward pass: `none`; `selective`, the attention;
            `full`, whole layers, one by one.
        reference: whether the weights of a frozen reference model are held too.
        critic: facts of the critic that is trained too, on the same layout; None without one.
        engine: of a rollout engine on the same GPU, if there is one.
        adapters: that are trained instead of the model; a reference is then the same model with them off.
    """

    tokens: int
    microbatches: int = 8
    sequence: int = 4096
    dtype: str = "bf16"
    recompute: Recompute = "none"
    reference: bool = False
    critic: ModelFacts | None = None
    engine: EngineMemory | None = None
    adapters: AdapterWork | None = None


@dataclass(frozen=True)
class RankMemory:
    """Predicted peak of each rank of one pipeline stage.

    Attributes:
        stage: the pipeline stage.
        parameters: that each of its ranks holds, without adapters.
        adapters: parameters of adapters beside them; None where the model itself is trained.
        components: component (`COMPONENTS`) -> bytes at the highest moment.
    """

    stage: int
    parameters: RankParameters
    components: Mapping[str, int] = field(default_factory=dict)
    adapters: AdapterParameters | None = None

    @property
    def total(self) -> int:
        """Bytes of the GPU's memory."""
        return sum(self.components.values())

    @property
    def allocated(self) -> int:
        """Bytes that PyTorch's allocator holds: what `torch.cuda.max_memory_allocated` shows."""
        return self.total - self.components["overhead"]


def predict_memory(
    facts: ModelFacts, layout: Layout, work: Workload, coefficients: Coefficients = DEFAULT
) -> tuple[RankMemory, ...]:
    """Predicted peak of each rank, for each pipeline stage. The layout must be legal for the model."""
    return tuple(
        _stage_memory(facts, layout, work, stage, chunks, coefficients)
        for stage, chunks in enumerate(pipeline_chunks(facts, layout))
    )


def predict_peak(facts: ModelFacts, layout: Layout, work: Workload, coefficients: Coefficients = DEFAULT) -> RankMemory:
    """The rank that needs most; faster than looking at all of them."""
    chunks = pipeline_chunks(facts, layout)
    ranks = (
        _stage_memory(facts, layout, work, stage, chunks[stage], coefficients)
        for stage in distinct_stages(facts, layout)
    )
    return max(ranks, key=lambda rank: rank.total)


def predict_scoring(
    facts: ModelFacts, layout: Layout, work: Workload, coefficients: Coefficients = DEFAULT
) -> tuple[RankMemory, ...]:
    """The same of a model that is never trained: its weights, and what one layer needs while it is computed."""
    found, width, table = [], BYTES[work.dtype], coefficients
    whole = replace(work, recompute="none")
    for stage, chunks in enumerate(pipeline_chunks(facts, layout)):
        parameters = chunk_parameters(facts, layout, chunks)
        layers = layer_kinds(facts, chunks)
        rows = facts.padded_vocab(layout.tensor) // layout.tensor if chunks[-1].head and not facts.value_head else 0
        tokens = work.tokens / layout.context
        components = {
            "weights": parameters.total * width,
            "activations": max(layer_activations(facts, layout, whole, layer, table) for layer in layers),
            "logits": min(table.logits_chunk, tokens * rows) * (table.logits_fp32 + table.logits_model * width),
            "buffers": _exchanges(facts, layout, work, table),
        }
        outside = table.context_bytes + table.group_bytes * _groups(layout)
        components["overhead"] = outside + table.fragmentation * sum(components.values())
        found.append(RankMemory(stage, parameters, {name: int(components.get(name, 0)) for name in COMPONENTS}))
    return tuple(found)


def layer_activations(
    facts: ModelFacts, layout: Layout, work: Workload, layer: int, table: Coefficients = DEFAULT
) -> float:
    """Bytes that one layer keeps from the forward to the backward pass of one microbatch."""
    width, tokens = BYTES[work.dtype], work.tokens / layout.context
    split = tokens / layout.tensor
    residual = split * facts.hidden_size * width
    if work.recompute == "full":
        return residual
    return (
        (table.norm_inputs + table.norm_outputs) * residual
        + _attention(facts, layout, work, table)
        + _feed_forward(facts, layout, work, layer, table)
    )


def _projections(facts: ModelFacts, layout: Layout) -> tuple[float, float]:
    """Widths of this rank's queries, and of its keys (or values), of which a rank has at least one head."""
    heads = facts.num_heads / layout.tensor
    kv_heads = max(1.0, facts.num_kv_heads / layout.tensor)
    return heads * facts.head_dim, kv_heads * facts.head_dim


def _attention(facts: ModelFacts, layout: Layout, work: Workload, table: Coefficients) -> float:
    width, tokens = BYTES[work.dtype], work.tokens / layout.context
    query, key = _projections(facts, layout)
    method = context_method(facts, layout)
    # With all tokens of its own heads a rank has as many keys, unless heads are repeated; gathered, it has them all.
    repeated = max(1.0, layout.tensor * layout.context / facts.num_kv_heads) if method == "a2a" else 1.0
    kept = (
        table.queries * query
        + table.keys_values * key * (layout.context if method == "all_gather" else min(repeated, layout.context))
        + table.attention_output * query
        + table.rotary * facts.head_dim * (layout.context if method == "a2a" else 1)
    )
    if method is not None:
        kept += table.context_output * query
    if work.recompute == "selective":
        # What goes into the attention (queries, and the projection that keys and values are part of) and comes out.
        kept = table.queries * query + (query + 2 * key) + table.attention_output * query
    if facts.qk_norm:
        kept += table.normed_queries * query
        if work.recompute != "selective":
            kept += table.normed_projection * (query + 2 * key)
    scores = table.log_sum_exp * facts.num_heads / layout.tensor if work.recompute == "none" else 0.0
    return tokens * (kept * width + scores)


def _feed_forward(facts: ModelFacts, layout: Layout, work: Workload, layer: int, table: Coefficients) -> float:
    width, tokens = BYTES[work.dtype], work.tokens / layout.context
    if not facts.has_experts(layer):
        return table.feed_forward * tokens * facts.ffn_hidden_size / layout.tensor * width
    assert facts.num_experts is not None
    split = tokens / layout.tensor
    rows = _expert_rows(facts, layout, work, table)
    inner, hidden = _expert_width(facts, layout), facts.hidden_size
    kept = split * facts.num_experts * table.router
    kept += rows * ((table.expert_input * hidden + table.expert * inner) * width + table.expert_index)
    if shared := facts.shared_ffn_hidden_size:
        kept += table.feed_forward * tokens * shared / layout.tensor * width
        kept += table.shared_gate * split * hidden * width
    return kept


def _expert_width(facts: ModelFacts, layout: Layout) -> float:
    return (facts.moe_ffn_hidden_size or 0) / layout.expert_tensor


def _expert_rows(facts: ModelFacts, layout: Layout, work: Workload, table: Coefficients) -> float:
    """Pairs of token and expert that a rank computes. The ranks that split an expert all have all of its tokens."""
    split = work.tokens / layout.context / layout.tensor
    uneven = table.imbalance if layout.expert > 1 else 1.0
    return split * facts.experts_per_token * layout.expert_tensor * uneven


def _backward_workspace(
    facts: ModelFacts, layout: Layout, work: Workload, layer: int, parameters: RankParameters, table: Coefficients
) -> float:
    """Bytes that the backward pass of one layer needs for itself."""
    width, tokens = BYTES[work.dtype], work.tokens / layout.context
    hidden = facts.hidden_size
    inner = facts.shared_ffn_hidden_size if facts.has_experts(layer) else facts.ffn_hidden_size
    needed = tokens * (table.backward_inner * inner / layout.tensor + table.backward_residual * hidden)
    if facts.has_experts(layer):
        rows = _expert_rows(facts, layout, work, table)
        experts = table.backward_expert_inner * _expert_width(facts, layout)
        needed = max(needed, rows * (experts + table.backward_expert_residual * hidden))
    needed += table.weight_gradient * parameters.largest
    needed *= width
    if work.recompute == "full":
        # The layer's own activations are back while it is differentiated.
        whole = Workload(work.tokens, work.microbatches, work.sequence, work.dtype)
        needed += layer_activations(facts, layout, whole, layer, table)
    elif work.recompute == "selective":
        needed += _attention(facts, layout, Workload(work.tokens, dtype=work.dtype), table)
    return needed


def _logits(facts: ModelFacts, layout: Layout, work: Workload, table: Coefficients) -> float:
    """Bytes of the output layer's backward pass: the larger of its two."""
    width, tokens = BYTES[work.dtype], work.tokens / layout.context
    rows = facts.padded_vocab(layout.tensor) // layout.tensor
    chunk = min(table.logits_chunk, tokens * rows)
    gradient = rows * facts.hidden_size * (table.head_gradient_fp32 + table.head_gradient_model * width)
    if work.adapters is not None:
        gradient = 0.0  # it is frozen
    hidden = table.head_hidden * tokens * facts.hidden_size * width
    return chunk * (table.logits_fp32 + table.logits_model * width) + gradient + hidden


def _exchanges(facts: ModelFacts, layout: Layout, work: Workload, table: Coefficients) -> float:
    """Bytes of what is sent and received."""
    width, tokens = BYTES[work.dtype], work.tokens / layout.context
    residual = tokens * facts.hidden_size * width
    query, key = _projections(facts, layout)
    needed = 0.0
    if layout.tensor > 1:
        needed += table.gathered * residual
    if layout.pipeline > 1:
        needed += table.stage_exchange * residual / layout.tensor
    if (method := context_method(facts, layout)) is not None:
        moved = query + 2 * key if method == "a2a" else 2 * key * layout.context
        needed += table.context_exchange * tokens * moved * width
    return needed


def _groups(layout: Layout) -> int:
    """Process groups of more than one rank that a rank is in."""
    dense = (layout.tensor, layout.pipeline, layout.context, layout.data * layout.context)
    return sum(size > 1 for size in (*dense, layout.expert, layout.expert_tensor))


def _stage_memory(
    facts: ModelFacts, layout: Layout, work: Workload, stage: int, chunks: tuple[Chunk, ...], table: Coefficients
) -> RankMemory:
    width = BYTES[work.dtype]
    parameters = chunk_parameters(facts, layout, chunks)
    adapters = None if work.adapters is None else adapter_parameters(facts, layout, chunks, work.adapters)
    dense, expert = (parameters.dense, parameters.expert) if adapters is None else (adapters.dense, adapters.expert)
    trained, held = dense + expert, parameters.total + (adapters.total if adapters is not None else 0)
    state = table.moments + (table.master if work.dtype != "fp32" else 0)
    shard = dense / (layout.data * layout.context) + expert / layout.expert_data
    if adapters is not None:
        # Frozen weights have no gradients, which would need room before they are added up.
        parameters = replace(parameters, largest=0)

    kinds = layer_kinds(facts, chunks)
    a_layer = {facts.has_experts(layer): layer_activations(facts, layout, work, layer, table) for layer in kinds}

    def kept(chunk: Chunk) -> float:
        layers = sum(count * a_layer[facts.has_experts(layer)] for layer, count in layer_kinds(facts, (chunk,)).items())
        # The final norm keeps what goes in; what comes out is counted with the output layer.
        final = work.tokens / layout.context / layout.tensor * facts.hidden_size * width if chunk.head else 0.0
        return layers + final

    activations = chunks_in_flight(layout, stage, work.microbatches, tuple(kept(chunk) for chunk in chunks))
    if adapters is not None:
        activations += chunks_in_flight(
            layout, stage, work.microbatches, _adapter_activations(layout, work, adapters, chunks)
        )
    exchanges = _exchanges(facts, layout, work, table)
    workspace = max(_backward_workspace(facts, layout, work, layer, parameters, table) for layer in kinds)
    logits = _logits(facts, layout, work, table) if chunks[-1].head and not facts.value_head else 0.0
    # The output layer and a decoder layer are not differentiated at the same time.
    if logits > workspace:
        workspace = 0.0
    else:
        logits = 0.0
    step = table.step * shard
    if step > activations + logits + workspace:
        # The optimizer's step is the highest moment; there are no activations then.
        activations, logits, workspace = 0.0, 0.0, step
    components = {
        "weights": held * width,
        "gradients": trained * table.gradient,
        "optimizer": shard * state,
        "activations": activations,
        "logits": logits,
        "buffers": workspace + exchanges,
        "reference": parameters.total * width if work.reference and adapters is None else 0,
    }
    if work.critic is not None:
        components |= _with_critic(components, _critic_memory(layout, work, stage, table))
    outside = table.context_bytes + table.group_bytes * _groups(layout)
    if work.engine is not None:
        outside += table.context_bytes  # the engine is another process
        components |= _with_engine(components, work.engine)
    components["overhead"] = outside + table.fragmentation * sum(components.values())
    return RankMemory(stage, parameters, {name: int(components.get(name, 0)) for name in COMPONENTS}, adapters)


def _critic_memory(layout: Layout, work: Workload, stage: int, table: Coefficients) -> RankMemory:
    """What the critic needs on the ranks of a stage; the two models take turns."""
    assert work.critic is not None
    own = replace(work, reference=False, critic=None, engine=None, adapters=None)
    return _stage_memory(work.critic, layout, own, stage, pipeline_chunks(work.critic, layout)[stage], table)


def _with_critic(components: Mapping[str, float], critic: RankMemory) -> dict[str, float]:
    """What changes in a rank's components with a critic: its state is held; the model that needs more is the peak."""
    held = {"critic": float(sum(critic.components[name] for name in ("weights", "gradients", "optimizer")))}
    if sum(components[name] for name in _WORKING) >= sum(critic.components[name] for name in _WORKING):
        return held
    return held | {name: float(critic.components[name]) for name in _WORKING}


def _adapter_activations(
    layout: Layout, work: Workload, adapters: AdapterParameters, chunks: tuple[Chunk, ...]
) -> tuple[float, ...]:
    """Bytes that adapters keep of one microbatch, by chunk: `A x`, and what an adapted MLP has between products."""
    if work.recompute == "full":
        return (0.0,) * len(chunks)
    each = (adapters.inner + 2 * adapters.mlp) * work.tokens / layout.context * BYTES[work.dtype]
    return (each / len(chunks),) * len(chunks)


def _with_engine(components: Mapping[str, float], engine: EngineMemory) -> dict[str, float]:
    """What changes in a rank's components with an engine on the same GPU."""
    parts = engine.components
    held = {"engine": float(parts["weights"]), "cache": float(parts["cache"])}
    if not engine.work.sleeps:
        return held
    # Only one of the two works at a time; the larger need is the peak.
    if sum(components[name] for name in _WORKING) >= sum(held.values()) + parts["logits"]:
        return {}
    return {**dict.fromkeys(_WORKING, 0.0), **held, "logits": float(parts["logits"])}
