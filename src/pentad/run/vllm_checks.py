"""What vLLM cannot do, and settings of its that nothing would read. vLLM is not imported."""

from collections.abc import Iterator

from pentad.config.schema.run import RunSettings
from pentad.engines.vllm.arguments import passed_problems, sampling_problems
from pentad.errors import UserError
from pentad.layout import Allocation


def check_vllm(settings: RunSettings, allocation: Allocation) -> Iterator[UserError]:
    """What is wrong with `rollout.*` for the engines of an allocation."""
    rollout = settings.rollout
    if allocation.rollout is None or allocation.rollout.backend != "vllm":
        if rollout.vllm:
            yield UserError(
                f"rollout.vllm is set, but allocation {allocation} generates without vLLM", "remove rollout.vllm"
            )
        return
    yield from sampling_problems(rollout.temperature, rollout.top_p, rollout.eval_temperature)
    for name, one in settings.data.eval.items():
        if one.temperature is not None:
            setting = f"data.eval.{name}.temperature"
            problems = sampling_problems(rollout.temperature, rollout.top_p, one.temperature, setting)
            yield from (problem for problem in problems if setting in problem.cause)
    yield from passed_problems(rollout.vllm)
    if rollout.dtype == "fp32":
        yield UserError("rollout.dtype is fp32; vLLM engines compute in bfloat16", "set rollout.dtype to auto or bf16")
