"""Small models with random weights, ragged batches, and what transformers says of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from rollout_models import CONFIGS, SHAPE, reference_model
from torch import Tensor
from transformers import (
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)
from transformers.core_model_loading import revert_weight_conversion

from pentad.samples.batch import Batch
from pentad.samples.packing import Plan

_THETA = {"rope_theta": 10000.0}
_ROPE_SCALING: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0, **_THETA},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
        **_THETA,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, **_THETA},
}
DENSE: dict[str, PreTrainedConfig] = {
    "llama": CONFIGS["llama"],
    "llama_tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "mistral": MistralConfig(**SHAPE, sliding_window=None),
    "qwen2": CONFIGS["qwen2"],
    "qwen3": CONFIGS["qwen3"],
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MIXTURE: dict[str, PreTrainedConfig] = {
    "qwen3_moe": CONFIGS["qwen3_moe"],
    # Of their two layers one is dense.
    "qwen3_moe_dense": Qwen3MoeConfig(**SHAPE, **_EXPERTS, head_dim=16, decoder_sparse_step=2),
    "qwen2_moe": Qwen2MoeConfig(**SHAPE, **_EXPERTS, shared_expert_intermediate_size=64),
    "qwen2_moe_dense": Qwen2MoeConfig(**SHAPE, **_EXPERTS, shared_expert_intermediate_size=64, mlp_only_layers=[1]),
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2),
}
ROPE: dict[str, PreTrainedConfig] = {
    f"llama_{kind}": LlamaConfig(**SHAPE, tie_word_embeddings=True, rope_parameters=parameters)
    for kind, parameters in _ROPE_SCALING.items()
}


@dataclass(frozen=True)
class TinyModel:
    """A transformers model and the directory that it was saved to."""

    model: PreTrainedModel
    directory: Path


@cache
def tiny_model(name: str, folder: Path) -> TinyModel:
    """The model of that name in `DENSE`, `MIXTURE` or `ROPE`, saved below `folder`."""
    model = reference_model({**DENSE, **MIXTURE, **ROPE}[name])
    directory = folder / name
    model.save_pretrained(directory)
    return TinyModel(model, directory)


def ragged_batch(seed: int = 1, lengths: Sequence[tuple[int, int]] | None = None) -> Batch:
    """Eight sequences of 6 to 43 random tokens, in four groups of two, one of them without a response.

    Args:
        lengths: prompt and response tokens of each sequence instead of those.
    """
    lengths = lengths or [(3, 7), (1, 12), (9, 2), (6, 0), (2, 41), (4, 5), (8, 1), (3, 4)]
    random = torch.Generator().manual_seed(seed)
    sequences = [
        tuple(torch.randint(0, SHAPE["vocab_size"], (count,), generator=random) for count in pair) for pair in lengths
    ]
    return Batch.from_sequences(sequences)


def grpo_batch(model: PreTrainedModel, seed: int = 1) -> Batch:
    """A ragged batch with all that GRPO reads: old and reference log-probs near the model's own, and advantages."""
    batch = ragged_batch(seed)
    random = torch.Generator().manual_seed(seed)
    own = transformers_logprobs(model, batch)[0].detach()
    for name, spread in (("old_logprobs", 0.3), ("ref_logprobs", 0.5)):
        noise = torch.randn(batch.num_tokens, generator=random) * spread
        batch = batch.with_per_token(name, (own + noise) * batch.loss_mask)
    advantages = torch.randn(batch.num_sequences, generator=random)
    return batch.with_per_token("advantages", advantages[batch.sequence_ids()] * batch.loss_mask)


def transformers_logprobs(model: PreTrainedModel, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies, `[T]` each, of one plain forward pass a sequence; 0 outside the loss mask."""
    logprobs, entropies = [], []
    for tokens in batch.tokens.split(batch.lengths):
        logits = model(input_ids=tokens[None], use_cache=False).logits[0, :-1].float() / temperature
        scores = torch.log_softmax(logits, dim=-1)
        zero = torch.zeros(1)
        logprobs.append(torch.cat([zero, scores.gather(1, tokens[1:, None])[:, 0]]))
        entropies.append(torch.cat([zero, -(scores.exp() * scores).sum(-1)]))
    return torch.cat(logprobs) * batch.loss_mask, torch.cat(entropies) * batch.loss_mask


def trained(values: Tensor, batch: Batch) -> list[Tensor]:
    """The part of `[T]` that belongs to tokens in the loss mask, by sequence."""
    pairs = zip(values.split(batch.lengths), batch.loss_mask.split(batch.lengths), strict=True)
    return [value[mask] for value, mask in pairs]


def gradients_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """Copies of all gradients, by the names of the checkpoint."""
    held = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    return dict(revert_weight_conversion(model, held))


def one_by_one(sequences: int, ranks: int) -> Plan:
    """A plan in which every microbatch holds one sequence."""
    dealt = tuple(tuple((index,) for index in range(rank, sequences, ranks)) for rank in range(ranks))
    return Plan(microbatches=dealt, max_tokens_used=0, balance=1.0)


def distance(one: Tensor, other: Tensor) -> float:
    """Norm of the difference over the norm of the second."""
    return float((one.double() - other.double()).norm() / other.double().norm().clamp(min=1e-30))
