"""From Pentad's settings to vLLM's arguments and environment.

Invariant: every argument that decides what is computed is set here, whatever vLLM's default is; a setting of the user's
is passed on under vLLM's own name, or refused with the setting of Pentad's that decides it. vLLM is not imported.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pentad.engines.vllm.lora import HotLora
from pentad.errors import UserError

LogprobsMode = Literal["raw_logprobs", "processed_logprobs"]

# vLLM takes (0, 0.01) for 0.01 and refuses more than 2.
_LOWEST_TEMPERATURE, _HIGHEST_TEMPERATURE = 0.01, 2.0
_GIB = 2**30
# Activations, CUDA graphs and communication of an engine, besides weights and cache.
_WORKING_BYTES = 6 * _GIB
_TOKENS_PER_PASS = 16384
_SHARE_ALONE, _SHARE_BESIDE_TRAINER = 0.88, 0.45


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _fraction(value: Any) -> bool:
    return isinstance(value, float) and 0 < value < 1


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(_positive(item) for item in value)


# What is passed on, by vLLM's name: whether a value is valid, and what it has to be.
PASSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "gpu_memory_utilization": (_fraction, "a number between 0 and 1"),
    "kv_cache_memory_bytes": (_positive, "a number of bytes"),
    "max_num_batched_tokens": (_positive, "a positive integer"),
    "block_size": (_positive, "a positive integer"),
    "enforce_eager": (_flag, "true or false"),
    "optimization_level": (lambda value: value in (0, 1, 2, 3) and not isinstance(value, bool), "0, 1, 2 or 3"),
    "cudagraph_capture_sizes": (_sizes, "a list of positive integers"),
    "max_cudagraph_capture_size": (_positive, "a positive integer"),
    "enable_prefix_caching": (_flag, "true or false"),
    "enable_chunked_prefill": (_flag, "true or false"),
    "enable_expert_parallel": (_flag, "true or false"),
    "disable_custom_all_reduce": (_flag, "true or false"),
    "async_scheduling": (_flag, "true or false"),
    "attention_backend": (_text, "the name of a backend, such as FLASH_ATTN"),
}

# What Pentad decides: vLLM's name -> where.
_SETTLED = {
    "model": "model.path",
    "tokenizer": "model.tokenizer",
    "tensor_parallel_size": "the t of vllm in allocation",
    "data_parallel_size": "the d of vllm in allocation",
    "pipeline_parallel_size": "allocation, which gives vllm d and t only",
    "dtype": "rollout.dtype",
    "max_num_seqs": "rollout.batch_size",
    "max_model_len": "data.max_prompt_tokens and rollout.max_response_tokens",
    "seed": "experiment.seed",
    "enable_sleep_mode": "rollout.sleep",
    "logprobs_mode": "rollout.temperature and rollout.top_p",
    "load_format": "the trainer, which sends the weights",
    "distributed_executor_backend": "allocation",
    "worker_extension_cls": "Pentad, which receives the weights in it",
    "hf_overrides": "Pentad, which keeps the output layer in float32",
    "moe_backend": "Pentad: the others rearrange the weights, and then no checksum can be taken of them",
    "generation_config": "rollout.*",
    "enable_lora": "model.lora",
    "max_lora_rank": "model.lora.rank",
    "lora_target_modules": "model.lora.targets",
    "max_logprobs": "Pentad, which asks for those of the sampled tokens",
}
# What would compute something else, or what Pentad could not vouch for.
_UNSUPPORTED = {
    "quantization": "quantised weights are not the trainer's, so no checksum can vouch for them",
    "kv_cache_dtype": "a cache of another precision than the trainer's moves the log-probs",
    "speculative_config": "Pentad has not shown that its log-probs are those of the sampled tokens",
    "weight_transfer_config": "Pentad has a transport of its own",
    "cpu_offload_gb": "the weights would not be where they are certified",
}


@dataclass(frozen=True)
class VllmSetup:
    """What an engine is to be.

    Attributes:
        directory: of the model: configuration and tokenizer; weights are not read.
        tokenizer: directory or hub id; None where no request has stop strings.
        tensor: GPUs, over which the weights are split.
        is_mixture: whether the model has experts.
        batch_size: sequences decoded at once.
        longest: most tokens of prompt and response.
        temperature, top_p: of training.
        eval_temperature: of evaluation, which samples from all tokens.
        seed: of the run.
        shares_gpu: whether a trainer uses the same GPUs.
        sleeps: whether memory is released while the trainer works.
        passed: `rollout.vllm`.
        lora: adapters that it takes beside the weights.
        merges_because: why it does not, though adapters are trained.
    """

    directory: Path
    tokenizer: str | None
    tensor: int = 1
    is_mixture: bool = False
    batch_size: int = 256
    longest: int = 4096
    temperature: float = 1.0
    top_p: float = 1.0
    eval_temperature: float = 0.0
    seed: int = 0
    shares_gpu: bool = False
    sleeps: bool = False
    passed: Mapping[str, Any] = field(default_factory=dict)
    lora: HotLora | None = None
    merges_because: str = ""


def sampling_problems(
    temperature: float, top_p: float, eval_temperature: float, setting: str = "rollout.eval_temperature"
) -> list[UserError]:
    """Why vLLM cannot sample so, or cannot give log-probs of the temperature-scaled distribution before top-p.

    Args:
        setting: that says the temperature of the evaluation.
    """
    found = []
    for name, value in (("rollout.temperature", temperature), (setting, eval_temperature)):
        if 0 < value < _LOWEST_TEMPERATURE or value > _HIGHEST_TEMPERATURE:
            found.append(
                UserError(
                    f"{name} is {value:g}; vLLM samples at 0 and from {_LOWEST_TEMPERATURE:g} to "
                    f"{_HIGHEST_TEMPERATURE:g}",
                    f"choose such a temperature for {name}, or generate with hf: in allocation",
                )
            )
    if top_p < 1 and temperature != 1:
        found.append(
            UserError(
                f"rollout.top_p is {top_p:g} and rollout.temperature {temperature:g}: vLLM then gives log-probs before "
                "the temperature or after top-p, and training needs those after the temperature and before top-p",
                "set rollout.temperature to 1 or rollout.top_p to 1, or generate with hf: in allocation",
            )
        )
    if top_p < 1 and eval_temperature not in (0, 1):
        found.append(
            UserError(
                f"rollout.top_p is {top_p:g}, for which vLLM's log-probs are taken before the temperature; "
                f"{setting} is {eval_temperature:g}",
                f"set {setting} to 0 or 1, or rollout.top_p to 1",
            )
        )
    return found


def logprobs_mode(top_p: float) -> LogprobsMode:
    """Which log-probs vLLM is to report: after the temperature where nothing is cut off, otherwise the raw ones."""
    return "processed_logprobs" if top_p == 1 else "raw_logprobs"


def passed_problems(passed: Mapping[str, Any]) -> list[UserError]:
    """Entries of `rollout.vllm` that cannot be passed on."""
    found = []
    for name, value in passed.items():
        key = f"rollout.vllm.{name}"
        if name in PASSED:
            valid, wanted = PASSED[name]
            if not valid(value):
                found.append(UserError(f"{key} is {value!r}", f"it must be {wanted}"))
        elif name in _SETTLED:
            found.append(UserError(f"{key} is decided by {_SETTLED[name]}", f"remove {key}"))
        elif name in _UNSUPPORTED:
            found.append(UserError(f"{key} is not supported: {_UNSUPPORTED[name]}", f"remove {key}"))
        else:
            near = difflib.get_close_matches(name, PASSED, n=1)
            fix = f"did you mean rollout.vllm.{near[0]}?" if near else f"choose among {', '.join(sorted(PASSED))}"
            found.append(UserError(f"{key} is not passed on to vLLM", fix))
    if "gpu_memory_utilization" in passed and "kv_cache_memory_bytes" in passed:
        found.append(
            UserError(
                "rollout.vllm.gpu_memory_utilization is not read where rollout.vllm.kv_cache_memory_bytes is given",
                "remove one of the two",
            )
        )
    return found


def check_setup(setup: VllmSetup) -> None:
    """Refuse what vLLM cannot do.

    Raises:
        UserError: the first problem.
    """
    for problem in [
        *sampling_problems(setup.temperature, setup.top_p, setup.eval_temperature),
        *passed_problems(setup.passed),
    ]:
        raise problem


def environment(setup: VllmSetup) -> dict[str, str]:
    """Environment variables that the engine's processes need, before vLLM is imported."""
    return {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        # Its kernels would be compiled at start, for which many machines have no compiler.
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        # Which of its two runners vLLM takes differs between families; random numbers differ between runners.
        "VLLM_USE_V2_MODEL_RUNNER": "0" if setup.is_mixture else "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }


def engine_arguments(setup: VllmSetup, weight_bytes: int, gpu_bytes: int) -> dict[str, Any]:
    """Arguments of vLLM's AsyncEngineArgs.

    Args:
        weight_bytes: of the whole model.
        gpu_bytes: memory of one GPU.

    Raises:
        UserError: the model does not fit into the engine's share of the GPU.
    """
    check_setup(setup)
    arguments: dict[str, Any] = {
        "model": str(setup.directory),
        "tokenizer": setup.tokenizer or str(setup.directory),
        "skip_tokenizer_init": setup.tokenizer is None,
        "generation_config": "vllm",
        "load_format": "dummy",
        "dtype": "bfloat16",
        "hf_overrides": {"head_dtype": "float32"},
        "moe_backend": "triton",
        "seed": setup.seed,
        "tensor_parallel_size": setup.tensor,
        # Its own choice, inside a placement group, would be Ray, which may take the trainer's devices.
        "distributed_executor_backend": "uni" if setup.tensor == 1 else "mp",
        "worker_extension_cls": "pentad.engines.vllm.worker.PentadWorkerExtension",
        # One more: a probe scores a whole sequence and samples one token.
        "max_model_len": setup.longest + 1,
        "max_num_seqs": setup.batch_size,
        # vLLM's default is for serving, where a long prompt must not hold up the others.
        "max_num_batched_tokens": _TOKENS_PER_PASS,
        "logprobs_mode": logprobs_mode(setup.top_p),
        "max_logprobs": 1,
        "enable_sleep_mode": setup.sleeps,
        "disable_log_stats": True,
    }
    if setup.lora is not None:
        arguments |= setup.lora.arguments()
    return arguments | dict(setup.passed) | _memory(setup, weight_bytes, gpu_bytes)


def _memory(setup: VllmSetup, weight_bytes: int, gpu_bytes: int) -> dict[str, Any]:
    # vLLM refuses to start where less than this fraction is free, and beside a trainer the free memory moves.
    beside = {"gpu_memory_utilization": 0.05}
    if "kv_cache_memory_bytes" in setup.passed:
        return beside
    default = _SHARE_BESIDE_TRAINER if setup.shares_gpu else _SHARE_ALONE
    share = setup.passed.get("gpu_memory_utilization", default)
    if not setup.shares_gpu:
        return {"gpu_memory_utilization": share}
    cache = int(share * gpu_bytes - weight_bytes / setup.tensor - _WORKING_BYTES)
    if cache < _GIB:
        needed = (weight_bytes / setup.tensor + _WORKING_BYTES + _GIB) / gpu_bytes
        raise UserError(
            f"an engine that shares its GPU with the trainer has {share:.0%} of {gpu_bytes / _GIB:.0f} GiB, too little "
            f"for {weight_bytes / setup.tensor / _GIB:.1f} GiB of weights and a cache",
            f"set rollout.vllm.gpu_memory_utilization to {needed + 0.01:.2f} or more, or split vllm over more GPUs (t)",
        )
    # With its size given, vLLM does not measure memory, which it could not beside a trainer that starts too.
    return beside | {"kv_cache_memory_bytes": cache}
