"""Predicted time of one optimizer step: good enough to put layouts in order, not to promise a speed.

Invariant: times are of the slowest pipeline stage, and every second belongs to exactly one named part. Communication is
not overlapped with computation, and every link is as fast as the slowest that its group crosses.
"""

from dataclasses import dataclass, replace

from pentad.families.facts import ModelFacts
from pentad.layout.context import context_method
from pentad.layout.layout import Layout
from pentad.layout.pipeline import Chunk, distinct_stages, layer_kinds, pipeline_chunks
from pentad.planning.coefficients import BYTES
from pentad.planning.gpus import Gpu
from pentad.planning.memory import Workload
from pentad.planning.parameters import RankParameters, chunk_parameters, flops_per_token

PARTS = ("compute", "tensor", "context", "expert", "pipeline", "data", "optimizer", "critic")


@dataclass(frozen=True)
class Rates:
    """Every number of the prediction that is neither a size nor the GPU's. Calibrate here."""

    # Parts of the GPU's peak that are reached: dense layers with all that is not a matrix product, the output layer,
    # routed experts with the moving of their tokens, the attention kernel, and anything in fp32.
    dense: float = 0.50
    head: float = 0.55
    experts: float = 0.21
    attention: float = 0.35
    fp32: float = 0.70
    # Tokens of an expert in one microbatch at which its products reach half of that.
    expert_half_rows: float = 256
    # Matrix products, forward and backward together, for each weight; the output layer computes its logits again.
    products: float = 3
    head_products: float = 4
    # A layer cannot be faster than its kernels can be launched, in seconds, forward and backward.
    launch_dense: float = 0.5e-3
    launch_experts: float = 1.5e-3
    # Part of a link's bandwidth that collectives reach, and seconds until they start.
    link: float = 0.75
    latency: float = 20e-6
    # Gathers and scatters of a column- and a row-parallel pair: forward 2; backward 3, as inputs are gathered again.
    tensor_forward: float = 2
    tensor_backward: float = 3
    # Bytes of a parameter that the optimizer reads and writes: gradient, masters, moments, and intermediates.
    optimizer_bytes: float = 44
    optimizer_bandwidth: float = 0.6


DEFAULT = Rates()


@dataclass(frozen=True)
class StepTime:
    """Predicted time of one step.

    Attributes:
        parts: part (`PARTS`) -> seconds.
        bubble: part of the pipeline's time in which a stage waits: `(p - 1) / (v * m)` of its work.
        tokens_per_second: of all GPUs together.
        mfu: model FLOPs utilization: the model's operations over what the GPUs could do.
    """

    parts: dict[str, float]
    bubble: float
    tokens_per_second: float
    mfu: float

    @property
    def total(self) -> float:
        """Seconds."""
        return sum(self.parts.values())


def predict_time(
    facts: ModelFacts,
    layout: Layout,
    work: Workload,
    gpu: Gpu,
    rates: Rates = DEFAULT,
    step_tokens: int | None = None,
) -> StepTime:
    """Predicted time of one optimizer step. The layout must be legal for the model.

    A critic is trained on the same tokens, and has scored them before: a forward pass, a third of the products.

    Args:
        step_tokens: what the step is wanted for, where its microbatches are not all full: speed and utilization count
            these tokens only, the time that of full microbatches. None if all are full.
    """
    stages = [pipeline_chunks(facts, layout)[stage] for stage in distinct_stages(facts, layout)]
    per_microbatch = max(
        (_microbatch(facts, layout, work, gpu, chunks, rates) for chunks in stages),
        key=lambda parts: sum(parts.values()),
    )
    microbatch = sum(per_microbatch.values())
    bubble = (layout.pipeline - 1) / (layout.virtual * work.microbatches)
    parts = {part: seconds * work.microbatches for part, seconds in per_microbatch.items()}
    parts["pipeline"] += bubble * work.microbatches * microbatch
    updates = [_update(layout, work, gpu, chunk_parameters(facts, layout, chunks), rates) for chunks in stages]
    parts["data"], parts["optimizer"] = max(updates, key=sum)
    tokens = work.tokens * work.microbatches * layout.data if step_tokens is None else step_tokens
    operations = flops_per_token(facts, work.sequence) * tokens
    parts["critic"] = 0.0
    if work.critic is not None:
        alone = predict_time(work.critic, layout, replace(work, critic=None), gpu, rates, step_tokens)
        parts["critic"] = alone.total + _scoring(alone, rates)
        operations += flops_per_token(work.critic, work.sequence) * tokens * (1 + 1 / rates.products)
    total = sum(parts.values())
    peak = gpu.tflops[work.dtype] * 1e12 * layout.world
    return StepTime({part: parts[part] for part in PARTS}, bubble, tokens / total, operations / total / peak)


def predict_scoring_time(facts: ModelFacts, layout: Layout, work: Workload, gpu: Gpu, rates: Rates = DEFAULT) -> float:
    """Predicted seconds of one forward pass over the tokens of an optimizer step."""
    return _scoring(predict_time(facts, layout, replace(work, critic=None), gpu, rates), rates)


def _scoring(alone: StepTime, rates: Rates) -> float:
    return (alone.total - alone.parts["data"] - alone.parts["optimizer"]) / rates.products


def _microbatch(
    facts: ModelFacts, layout: Layout, work: Workload, gpu: Gpu, chunks: tuple[Chunk, ...], rates: Rates
) -> dict[str, float]:
    """Seconds of one microbatch, forward and backward, on one stage, without waiting."""
    parts = dict.fromkeys(("compute", "tensor", "context", "expert", "pipeline"), 0.0)
    for layer, count in layer_kinds(facts, chunks).items():
        for part, seconds in _layer(facts, layout, work, gpu, facts.has_experts(layer), rates).items():
            parts[part] += count * seconds
    tokens = work.tokens / layout.context
    residual = tokens * facts.hidden_size * BYTES[work.dtype]
    if chunks[-1].head and not facts.value_head:
        operations = 2 * rates.head_products * tokens * facts.padded_vocab(layout.tensor) / layout.tensor
        parts["compute"] += operations * facts.hidden_size / _speed(gpu, work, rates.head, rates)
        if layout.tensor > 1:
            parts["tensor"] += 2 * _exchange(residual, layout.tensor, layout.tensor, gpu, rates)
    if layout.pipeline > 1:
        # Every chunk sends its output and gets its gradient; neighbours are as far apart as all ranks of a stage.
        bandwidth = gpu.network_gbs if layout.world > gpu.per_node else gpu.nvlink_gbs
        send = residual / layout.tensor / (bandwidth * 1e9 * rates.link) + rates.latency
        parts["pipeline"] += 2 * len(chunks) * send
    return parts


def _layer(
    facts: ModelFacts, layout: Layout, work: Workload, gpu: Gpu, has_experts: bool, rates: Rates
) -> dict[str, float]:
    """Seconds of one decoder layer, forward and backward."""
    tokens, width = work.tokens / layout.context, BYTES[work.dtype]
    split, hidden = tokens / layout.tensor, facts.hidden_size
    again = 1 / rates.products if work.recompute == "full" else 0.0
    query = facts.num_heads * facts.head_dim
    key = max(facts.num_kv_heads, layout.tensor) * facts.head_dim

    dense = 2 * hidden * (query + (facts.num_kv_heads * facts.head_dim))
    dense += 3 * hidden * (facts.shared_ffn_hidden_size if has_experts else facts.ffn_hidden_size)
    seconds = 2 * rates.products * split * dense / _speed(gpu, work, rates.dense, rates)
    if has_experts:
        routed = 3 * hidden * (facts.moe_ffn_hidden_size or 0) * facts.experts_per_token
        rows = split * facts.experts_per_token * layout.expert * layout.expert_tensor / (facts.num_experts or 1)
        reached = rates.experts * rows / (rows + rates.expert_half_rows)
        seconds += 2 * rates.products * split * routed / _speed(gpu, work, reached, rates)
    # Scores and values, half of them masked, forward; the backward pass has five products for two.
    scores = 2 * split * query * work.sequence
    attention = scores / _speed(gpu, work, rates.attention, rates)
    seconds *= 1 + again
    seconds += 3.5 * attention + (attention if work.recompute != "none" else 0.0)
    launch = rates.launch_experts if has_experts else rates.launch_dense
    parts = {"compute": max(seconds, launch * (1 + again))}

    gathers = rates.tensor_forward * (1 + (work.recompute == "full")) + rates.tensor_backward
    if layout.tensor > 1:
        pairs = 2 if not has_experts or facts.shared_ffn_hidden_size else 1
        one = _exchange(tokens * hidden * width, layout.tensor, layout.tensor, gpu, rates)
        parts["tensor"] = pairs * gathers * one
    passes = 2 + (work.recompute == "full")
    if layout.context > 1:
        # Queries, keys, values there and the attention's output back; or keys and values of all tokens.
        gathers_keys = context_method(facts, layout) == "all_gather"
        moved = work.tokens * 2 * key if gathers_keys else tokens * (2 * query + 2 * key)
        moved *= width / layout.tensor
        parts["context"] = passes * _exchange(moved, layout.context, layout.tensor * layout.context, gpu, rates)
    if has_experts:
        rows = split * facts.experts_per_token * hidden * width
        span = layout.expert_tensor * layout.expert
        # To the experts and back.
        parts["expert"] = 2 * passes * _exchange(rows, layout.expert, span, gpu, rates)
        if layout.expert_tensor > 1:
            whole = rows * layout.expert_tensor
            one = _exchange(whole, layout.expert_tensor, layout.expert_tensor, gpu, rates)
            parts["expert"] += gathers * one
    return parts


def _update(layout: Layout, work: Workload, gpu: Gpu, parameters: RankParameters, rates: Rates) -> tuple[float, float]:
    """Seconds of reducing gradients and gathering weights, and of the optimizer's step."""
    model_ranks, replicas = layout.tensor, layout.data * layout.context
    gradient_and_weight = 4 + BYTES[work.dtype]
    span = model_ranks * replicas
    reduce = _exchange(parameters.dense * gradient_and_weight, replicas, span, gpu, rates)
    if parameters.expert:
        reduce += _exchange(parameters.expert * gradient_and_weight, layout.expert_data, span, gpu, rates)
    shard = parameters.dense / replicas + parameters.expert / layout.expert_data
    step = shard * rates.optimizer_bytes / (gpu.hbm_gbs * 1e9 * rates.optimizer_bandwidth)
    return reduce, step


def _speed(gpu: Gpu, work: Workload, efficiency: float, rates: Rates) -> float:
    """Operations per second."""
    reached = rates.fp32 if work.dtype == "fp32" else efficiency
    return gpu.tflops[work.dtype] * 1e12 * reached


def _exchange(size: float, ranks: int, span: int, gpu: Gpu, rates: Rates) -> float:
    """Seconds of a gather, scatter or exchange after which, or before which, each rank has `size` bytes.

    Args:
        span: ranks from the first to the last of the group; Megatron numbers t first, then c (or e), then d, then p.
    """
    if ranks == 1:
        return 0.0
    bandwidth = gpu.nvlink_gbs if span <= gpu.per_node else gpu.network_gbs
    return size * (ranks - 1) / ranks / (bandwidth * 1e9 * rates.link) + rates.latency
