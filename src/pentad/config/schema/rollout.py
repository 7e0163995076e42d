"""Settings of generation."""

from typing import Any, Literal

from pydantic import Field

from pentad.config.schema.base import Settings


class RolloutSettings(Settings):
    """`rollout.*`"""

    engine: str | None = Field(
        None, pattern=".:.", description="module:Class: an engine of your own; null: the one that the allocation names"
    )
    engine_options: dict[str, Any] = Field({}, description="arguments of the class, with an engine of your own")
    n: int = Field(8, ge=1, description="samples a prompt")
    temperature: float = Field(1.0, gt=0, description="sampling temperature; log-probs are of the scaled distribution")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus sampling; 1 keeps the whole distribution")
    max_response_tokens: int = Field(256, ge=1, description="longest response")
    stop: list[str] = Field(
        default_factory=list, description="strings that end a response, besides the end-of-turn token"
    )
    eval_temperature: float = Field(0.0, ge=0, description="of evaluations; 0 is greedy")
    eval_n: int = Field(
        1, ge=1, description="samples a question in evaluations; of several, eval/<name>/pass_at_<k> is measured"
    )
    batch_size: int = Field(64, ge=1, description="sequences that one engine decodes at once")
    dtype: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: fp32 on CPU, bf16 on GPU")
    vllm: dict[str, Any] = Field(
        default_factory=dict,
        description="with vllm: in allocation, arguments of vLLM's engine, as gpu_memory_utilization, enforce_eager",
    )
    transport: Literal["auto", "ipc", "nccl", "shared", "store"] = Field(
        "auto",
        description="how weights travel to the engines: ipc on one GPU, shared (host memory) on one machine, store "
        "(Ray's object store) anywhere, nccl between GPUs; auto takes the first of ipc, shared and store that fits",
    )
    on_update: Literal["continue", "restart", "finish"] = Field(
        "continue",
        description="what becomes of responses that are being sampled when new weights come: continue under these, "
        "restart from the prompt, or finish first",
    )
    sleep: bool = Field(False, description="release the engines' GPU memory while the trainer works")
    deadline_s: float = Field(
        1800.0,
        gt=0,
        description="longest time that an engine may take for an answer, in seconds; then it is started again",
    )
    max_engine_restarts: int = Field(
        3, ge=0, description="times in a run that an engine which died or was late is started again"
    )
