"""From what a run knows of an engine to a vLLM engine."""

from pathlib import Path

import torch

from pentad.config.schema.rollout import RolloutSettings
from pentad.engines.protocol import EngineSpec
from pentad.engines.vllm.arguments import VllmSetup
from pentad.engines.vllm.engine import VllmEngine
from pentad.errors import UserError


def setup_of(settings: RolloutSettings, directory: Path, tokenizer: str, longest: int) -> VllmSetup:
    """The part of the setup that settings decide."""
    return VllmSetup(
        directory,
        tokenizer if settings.stop else None,
        batch_size=settings.batch_size,
        longest=longest,
        temperature=settings.temperature,
        top_p=settings.top_p,
        eval_temperature=settings.eval_temperature,
        sleeps=settings.sleep,
        passed=settings.vllm,
    )


def make_vllm(spec: EngineSpec) -> VllmEngine:
    """One replica on this process's GPU.

    Raises:
        UserError: there is no GPU, or vLLM cannot do what the settings ask for.
    """
    if spec.device.type != "cuda" or spec.dtype != torch.bfloat16:
        raise UserError(
            f"vllm: in allocation needs a GPU and bfloat16, not {spec.device.type} and {spec.dtype}",
            "set rollout.dtype to bf16 on a machine with GPUs, or generate with hf: in allocation",
        )
    from dataclasses import replace

    from vllm.platforms import current_platform

    from pentad.engines.hf.model import as_list
    from pentad.engines.vllm.lora import choose
    from pentad.families.hf_config import facts_from_config
    from pentad.weights.mapping import expected_shapes
    from pentad.weights.source import load_config, load_tokenizer

    config = load_config(spec.directory)
    lora = None if spec.lora is None else choose(config, spec.lora)
    setup = replace(
        setup_of(spec.settings, spec.directory, spec.tokenizer, spec.longest),
        is_mixture=facts_from_config(config.to_dict()).num_experts is not None,
        tensor=spec.tensor,
        seed=spec.seed,
        shares_gpu=spec.shares_device,
        lora=None if isinstance(lora, str) else lora,
        merges_because=lora if isinstance(lora, str) else "",
    )
    tokenizer = load_tokenizer(spec.tokenizer)
    ends = {*as_list(config.eos_token_id), *_generation_eos(spec.directory), *as_list(tokenizer.eos_token_id)}
    return VllmEngine(
        setup,
        expected_shapes(config),
        current_platform.get_device_total_memory(),
        eos=ends,
        name=f"rollout engine {spec.replica}",
        deadline_s=spec.deadline_s,
    )


def _generation_eos(directory: Path) -> list[int]:
    from transformers import GenerationConfig

    from pentad.engines.hf.model import as_list

    try:
        return as_list(GenerationConfig.from_pretrained(directory).eos_token_id)
    except OSError:  # the file is optional
        return []
