"""What goes to vLLM, and what is refused before it is started."""

from pathlib import Path

import pytest

from pentad.engines.vllm.arguments import (
    VllmSetup,
    check_setup,
    engine_arguments,
    environment,
    logprobs_mode,
    passed_problems,
    sampling_problems,
)
from pentad.errors import UserError

GIB = 2**30
H200 = 140 * GIB


def setup(**changes) -> VllmSetup:
    return VllmSetup(Path("/model"), None, **changes)


@pytest.mark.parametrize(
    "temperature, top_p, eval_temperature, mode",
    [
        (1.0, 1.0, 0.0, "processed_logprobs"),
        (0.7, 1.0, 0.6, "processed_logprobs"),
        (1.0, 0.9, 0.0, "raw_logprobs"),
        (1.0, 0.9, 1.0, "raw_logprobs"),
    ],
)
def test_log_probs_are_after_the_temperature_and_before_top_p(temperature, top_p, eval_temperature, mode):
    assert sampling_problems(temperature, top_p, eval_temperature) == []
    assert logprobs_mode(top_p) == mode


@pytest.mark.parametrize(
    "temperature, top_p, eval_temperature, message",
    [
        (0.7, 0.9, 0.0, "rollout.top_p is 0.9 and rollout.temperature 0.7"),
        (2.5, 1.0, 0.0, "rollout.temperature is 2.5"),
        (0.005, 1.0, 0.0, "rollout.temperature is 0.005"),
        (1.0, 1.0, 3.0, "rollout.eval_temperature is 3"),
        (1.0, 0.9, 0.5, "rollout.eval_temperature is 0.5"),
    ],
)
def test_what_vllm_cannot_sample_is_refused(temperature, top_p, eval_temperature, message):
    with pytest.raises(UserError, match=message) as caught:
        check_setup(setup(temperature=temperature, top_p=top_p, eval_temperature=eval_temperature))
    assert caught.value.fix


@pytest.mark.parametrize(
    "name, value, cause, fix",
    [
        ("tensor_parallel_size", 2, "decided by the t of vllm in allocation", "remove"),
        ("logprobs_mode", "raw_logprobs", "decided by rollout.temperature", "remove"),
        ("quantization", "fp8", "not supported: quantised weights", "remove"),
        ("enforce_eagr", True, "not passed on", "did you mean rollout.vllm.enforce_eager"),
        ("enforce_eager", 1, "is 1", "true or false"),
        ("gpu_memory_utilization", 1.5, "is 1.5", "between 0 and 1"),
        ("optimization_level", True, "is True", "0, 1, 2 or 3"),
    ],
)
def test_settings_are_passed_on_or_refused(name, value, cause, fix):
    problem, *more = passed_problems({name: value})
    assert not more
    assert cause in problem.cause and f"rollout.vllm.{name}" in problem.cause
    assert fix in problem.fix


def test_two_sizes_of_the_cache_are_refused():
    both = {"gpu_memory_utilization": 0.5, "kv_cache_memory_bytes": GIB}
    assert [problem.fix for problem in passed_problems(both)] == ["remove one of the two"]


def test_arguments_decide_what_is_computed():
    arguments = engine_arguments(setup(tensor=2, longest=100, passed={"enforce_eager": True}), 2 * GIB, H200)
    assert arguments["hf_overrides"] == {"head_dtype": "float32"}
    assert arguments["moe_backend"] == "triton"
    assert arguments["distributed_executor_backend"] == "mp"
    assert arguments["max_model_len"] == 101
    assert arguments["enforce_eager"] is True
    assert arguments["gpu_memory_utilization"] == 0.88
    assert "kv_cache_memory_bytes" not in arguments


def test_beside_a_trainer_the_cache_has_a_size_of_its_own():
    arguments = engine_arguments(setup(shares_gpu=True), 10 * GIB, H200)
    assert arguments["kv_cache_memory_bytes"] == int(0.45 * H200) - 16 * GIB
    assert arguments["gpu_memory_utilization"] < 0.1
    smaller = engine_arguments(setup(shares_gpu=True, passed={"gpu_memory_utilization": 0.2}), 10 * GIB, H200)
    assert smaller["kv_cache_memory_bytes"] == int(0.2 * H200) - 16 * GIB
    assert smaller["gpu_memory_utilization"] < 0.1


def test_a_model_that_does_not_fit_beside_a_trainer_is_refused():
    with pytest.raises(UserError, match="too little") as caught:
        engine_arguments(setup(shares_gpu=True), 60 * GIB, H200)
    assert "rollout.vllm.gpu_memory_utilization to 0.49" in caught.value.fix


def test_the_runner_follows_the_family():
    assert environment(setup())["VLLM_USE_V2_MODEL_RUNNER"] == "1"
    assert environment(setup(is_mixture=True))["VLLM_USE_V2_MODEL_RUNNER"] == "0"
