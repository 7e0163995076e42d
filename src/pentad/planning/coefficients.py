"""The numbers of the memory prediction that are not sizes.

Invariant: every one of them has a name here, and `pentad.planning.memory` has no other. They follow from what PyTorch's
autograd keeps of Pentad's modules; where measurements differ, this table is what is calibrated.
"""

from dataclasses import dataclass

GIB = 2**30
# Of one element.
BYTES = {"bf16": 2, "fp32": 4}


@dataclass(frozen=True)
class Coefficients:
    """What a component takes for each element, token or parameter.

    "Copies" are tensors in the model's dtype with one row for each token that the rank sees.
    """

    # Bytes of a parameter. The gradient buffer is fp32 and not sharded; the optimizer's state is sharded.
    gradient: float = 4
    master: float = 4
    moments: float = 8
    # Bytes of a parameter of the optimizer's shard, only while it steps: one unfused AdamW intermediate.
    step: float = 4

    # Copies of the residual stream's width that a layer keeps, split by t: what goes into its two norms and comes out.
    norm_inputs: float = 2
    norm_outputs: float = 2
    # Copies of the projections' widths: rotated queries, rotated keys and values, the attention's output.
    queries: float = 1
    keys_values: float = 2
    attention_output: float = 1
    # The output again, back from the exchange of context-parallel ranks, or put together of two runs.
    context_output: float = 1
    # With norms of queries and keys: queries before the norm, and the whole projection, of which keys are a part.
    normed_queries: float = 1
    normed_projection: float = 1
    # Cosine and sine for queries and for keys, in the model's dtype, of a head's width.
    rotary: float = 4
    # Bytes for each token and head: the log-sum-exp of the scores.
    log_sum_exp: float = 4

    # Copies of the inner width: gate and up (2), silu(gate), up again, their product.
    feed_forward: float = 5
    # Of experts: gate and up (2), silu(gate), the product without and with the router's weight.
    expert: float = 5
    # Copies of the residual width for each pair of token and expert: the sorted tokens.
    expert_input: float = 1
    # Bytes for each pair of token and chosen expert: indices of permuting and of its undoing.
    expert_index: float = 24
    # Bytes for each token and expert: probabilities and map (fp32, bool), places in sorted order (int64).
    router: float = 13
    # The fullest expert rank's tokens over the mean.
    imbalance: float = 1.0
    # Copies of the residual width, split by t: the shared expert's output before its gate.
    shared_gate: float = 1

    # Backward through one layer, beyond what the forward pass kept: copies of the inner width, of the residual width,
    # and weight gradients (of the largest matrix) before they are added to the buffer.
    backward_inner: float = 4
    backward_expert_inner: float = 6
    backward_residual: float = 2
    backward_expert_residual: float = 3
    weight_gradient: float = 1

    # The output layer: elements of a chunk of logits; bytes for each of them (logits and probabilities in fp32, and
    # their gradient in the model's dtype); bytes of an element of its weight's gradient in fp32; copies of the hidden
    # states (gathered, selected, and the gradients of both).
    logits_chunk: float = 2**26
    logits_fp32: float = 8
    logits_model: float = 1
    head_gradient_fp32: float = 4
    head_gradient_model: float = 1
    head_hidden: float = 4

    # Copies of the residual width: the gathered sequence (t > 1); sent and received between stages, split by t (p > 1).
    gathered: float = 1
    stage_exchange: float = 2
    # Copies of the projections, or of all keys and values: the exchange between context-parallel ranks (c > 1), or the
    # gathering of keys and values and the reduction of their gradients.
    context_exchange: float = 2

    # Bytes for each sequence and token of the vocabulary while a rollout engine samples: logits, probabilities and a
    # sorted copy of them, in fp32.
    engine_logits: float = 12

    # Outside the allocator's count: CUDA context and libraries; each NCCL group; fragmentation, as a part of the rest.
    context_bytes: float = 0.7 * GIB
    group_bytes: float = 0.25 * GIB
    fragmentation: float = 0.03


DEFAULT = Coefficients()
