"""Models to verify with: built-in tiny ones, and small versions of real ones, with random weights.

Invariant: equal arguments give equal weights. No weight is at a special value (no norm of 1, no bias of 0), so that
none can be mistaken for another; and no expert is chosen by a narrow margin, so that rounding cannot change the choice.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from pentad.config.schema.lora import LoraSettings
from pentad.errors import UserError
from pentad.families.builtin import LAYERS, builtin_config, builtin_models
from pentad.families.hf_config import facts_from_config
from pentad.families.lora import A, Targets
from pentad.weights.adapters import adapter_shapes, peft_config, write_adapter
from pentad.weights.mapping import WeightMapping
from pentad.weights.source import load_config

# Deviation of random weights of tiny models; larger ones have that of their architecture.
_TINY_STD, _TINY_WIDTH = 0.06, 256
_EMBEDDING_STD, _RESIDUAL_SCALE, _OWN_LOGIT = 1.0, 0.25, 4.0
# Part of an embedding that tells the class of a token, over the rest.
_CLASS_SIZE = 2.0
# Deviation of what an adapter makes of an input element of deviation 1, over the root of the rank.
_ADAPTER_STD = 0.02


def tiny_config(name: str, *, layers: int = LAYERS) -> PreTrainedConfig:
    """The configuration of a built-in model.

    Raises:
        KeyError: there is none of that name.
    """
    return AutoConfig.for_model(**builtin_config(name, layers))


def small_config(model: str, *, layers: int, experts: int, scale: int) -> PreTrainedConfig:
    """The configuration of a real model with fewer layers and experts.

    Args:
        model: a directory, or a hub id, of which only the configuration is read.
        layers, experts: at most so many are kept.
        scale: divides all widths and the vocabulary.

    Raises:
        UserError: the configuration cannot be read, or a width is not a multiple of `scale`.
    """
    config = load_config(Path(model).expanduser()) if Path(model).expanduser().is_dir() else _from_hub(model)
    config.num_hidden_layers = min(layers, config.num_hidden_layers)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    for name in ("num_experts", "num_local_experts"):
        if (count := getattr(config, name, None)) is not None:
            setattr(config, name, min(experts, count))
            config.num_experts_per_tok = min(config.num_experts_per_tok, getattr(config, name))
    if scale > 1:
        _scale_widths(config, model, scale)
    return config


def _scale_widths(config: PreTrainedConfig, model: str, scale: int) -> None:
    widths = (
        "hidden_size",
        "intermediate_size",
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
        "head_dim",
    )
    for name in widths:
        if not (width := getattr(config, name, None)):
            continue
        if width % scale:
            raise UserError(f"--scale {scale} does not divide {name}={width} of {model}", "give a power of 2")
        setattr(config, name, width // scale)
    config.vocab_size = -(-config.vocab_size // scale)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, None)


def _from_hub(model: str) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        known = ", ".join(builtin_models())
        raise UserError(
            f"{model} is neither a directory here nor a model on the hub that can be read: {reason}",
            f"give a directory with a config.json, a hub id, or one of {known}",
        ) from None


def value_head(config: PreTrainedConfig) -> bool:
    """Whether a configuration is of a critic."""
    return facts_from_config(config.to_dict()).value_head


@torch.no_grad()
def write_random_model(config: PreTrainedConfig, directory: Path, dtype: torch.dtype, seed: int = 0) -> None:
    """A model of that configuration with random weights, as a Hugging Face directory."""
    torch.manual_seed(seed)
    kind = AutoModelForTokenClassification if value_head(config) else AutoModelForCausalLM
    model = kind.from_config(config, dtype=torch.float32)
    tiny = config.hidden_size <= _TINY_WIDTH
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.normal_(mean=1.0 if "norm" in name else 0.0, std=0.1)
        elif "embed_tokens" in name and not config.tie_word_embeddings:
            parameter.normal_(std=_EMBEDDING_STD)
        elif tiny:
            parameter.normal_(std=_TINY_STD)
    _calm(model, config)
    if facts_from_config(config.to_dict()).num_experts:
        _decide_routes(model, config)
    model.to(dtype).save_pretrained(directory)


def lora_of_everything(rank: int) -> LoraSettings:
    """Adapters beside every module that can have one, routers included."""
    return LoraSettings(rank=rank, alpha=2 * rank, targets=r".*(_proj|\.w[123]|\.gate)")


def write_random_adapter(
    checkpoint: Path, settings: LoraSettings, directory: Path, dtype: torch.dtype, seed: int = 1
) -> LoraSettings:
    """An adapter of a model with random matrices, none of them zero, in PEFT's format.

    It changes each weight by about a tenth of its size, so that it is seen and routes stay what they are.

    Returns:
        the settings, with the adapter as what is begun from.
    """
    config = load_config(checkpoint)
    mapping = WeightMapping(config, None, Targets(settings.targets, settings.exclude))
    random = torch.Generator().manual_seed(seed)
    matrices = {}
    for name, shape in adapter_shapes(config, mapping, settings.rank).items():
        std = shape[1] ** -0.5 if name.endswith(A) else _ADAPTER_STD / settings.scale
        matrices[name] = (torch.randn(shape, generator=random) * std).to(dtype)
    directory.mkdir()
    write_adapter(matrices.items(), directory, peft_config(settings, str(checkpoint), mapping.adapted_modules()))
    return settings.model_copy(update={"adapter": directory})


def _calm(model: PreTrainedModel, config: PreTrainedConfig) -> None:
    """Keep what a layer adds to the residual stream small beside it, and log-probs moderate.

    As in trained models, rounding in one layer is then not blown up by the next, which in bf16 would hide more than it
    shows. A tied output layer would give a token's own id a logit of width times deviation.
    """
    parameters = dict(model.named_parameters())
    embedding = parameters["model.embed_tokens.weight"]
    spread = float(embedding.std())
    for name, parameter in parameters.items():
        if name.removesuffix(".weight").endswith(("o_proj", "down_proj")):
            parameter.mul_(_RESIDUAL_SCALE * spread)
    if config.tie_word_embeddings:
        parameters["model.norm.weight"].mul_(min(1.0, _OWN_LOGIT / (config.hidden_size * spread)))


def _decide_routes(model: PreTrainedModel, config: PreTrainedConfig) -> None:
    """Let tokens of different classes prefer different experts, clearly.

    The class of a token is its id modulo the number of experts. It is written into the embedding as one of as many
    orthogonal directions, which the routers read. In each layer a class goes to other experts.
    """
    facts = facts_from_config(config.to_dict())
    experts, chosen = facts.num_experts or 0, facts.experts_per_token
    directions = torch.linalg.qr(torch.randn(facts.hidden_size, experts))[0].t()
    embedding: Any = model.get_input_embeddings().weight
    embedding.add_(_CLASS_SIZE * facts.hidden_size**0.5 * directions[torch.arange(embedding.shape[0]) % experts])
    # The chosen experts get different weights; all others get next to nothing.
    wishes = torch.zeros(experts)
    wishes[:chosen] = torch.linspace(1.0, 0.6, chosen)
    routers = [value for name, value in model.named_parameters() if name.endswith(".gate.weight")]
    for layer, router in enumerate(routers):
        table = torch.stack([wishes.roll(number + layer) for number in range(experts)])
        # The norm before the router gives a token a length of the root of the width.
        router.normal_(std=0.2).add_(4.0 * table.t() @ directions).mul_(facts.hidden_size**-0.5)
