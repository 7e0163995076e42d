"""Small random models with weights large enough that a wrong mask, position or cache shows."""

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.core_model_loading import revert_weight_conversion

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "pad_token_id": None,
    "eos_token_id": 0,
}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=False),
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=True),
    "qwen3_moe": Qwen3MoeConfig(
        **SHAPE, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, tie_word_embeddings=False
    ),
}


def endless(config: PretrainedConfig) -> PretrainedConfig:
    """The same configuration without an end-of-sequence token."""
    return config.__class__(**{**config.to_dict(), "eos_token_id": None})


def reference_model(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A transformers model in float32 with random weights."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        std = 0.3 if "embed" in name or "lm_head" in name or "bias" in name else 0.15
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=std)
    return model.eval()


def checkpoint(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What a trainer would send: the tensors of the model's Hugging Face checkpoint."""
    parameters = {name: parameter.data for name, parameter in model.named_parameters()}
    return revert_weight_conversion(model, parameters)


@torch.no_grad()
def full_logprobs(model: PreTrainedModel, tokens: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Float32 `[L]`: the log-prob of each token by one plain forward pass; 0 at the first."""
    logits = model(input_ids=tokens[None], use_cache=False).logits[0, :-1].float() / temperature
    taken = torch.log_softmax(logits, dim=-1).gather(1, tokens[1:, None])[:, 0]
    return torch.cat([torch.zeros(1), taken])
