"""Requests and answers in vLLM's terms; the answers here have the members of vLLM's that are read."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pentad.engines.vllm.sampling import Draft, check_sampling, read_scores
from pentad.engines.vllm.seeds import sample_seed
from pentad.samples.request import GenerateRequest, SamplingParams


@dataclass
class Flat:
    """As vLLM's FlatLogprobs: some tokens at every position, the sampled one first."""

    token_ids: list[int]
    logprobs: list[float]
    start_indices: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.start_indices = self.start_indices or list(range(len(self.token_ids)))

    def __len__(self) -> int:
        return len(self.start_indices)


def output(tokens: list[int], logprobs: Any, reason: str) -> Any:
    answer = SimpleNamespace(token_ids=tokens, logprobs=logprobs, finish_reason=reason)
    return SimpleNamespace(request_id="r", outputs=[answer])


def test_a_response_in_two_parts_carries_both_versions() -> None:
    draft = Draft()
    assert draft.add(output([5, 6], Flat([5, 6], [-1.0, -2.0]), "abort"), 3) == "abort"
    assert draft.add(output([7], Flat([7], [-0.5]), "stop"), 4) == "stop"
    completion = draft.completion("stop")
    assert completion.response_tokens.tolist() == [5, 6, 7]
    assert completion.response_logprobs.tolist() == [-1.0, -2.0, -0.5]
    assert completion.versions.tolist() == [3, 3, 4]
    assert draft.completion("stop", 2).response_tokens.tolist() == [5, 6]


def test_the_sampled_token_is_the_first_of_a_position() -> None:
    draft = Draft()
    draft.add(output([5, 6], Flat([5, 9, 6, 9], [-1.0, -0.1, -2.0, -0.2], [0, 2]), "length"), 0)
    assert draft.logprobs == [-1.0, -2.0]


def test_an_aborted_request_may_have_nothing() -> None:
    draft = Draft()
    assert draft.add(output([], None, "abort"), 1) == "abort"
    assert len(draft.completion("abort").response_tokens) == 0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (output([5, 6], Flat([5], [-1.0]), "stop"), "1 log-probs for 2 tokens"),
        (output([5], Flat([5], [-1.0]), "repetition"), "ended request r with 'repetition'"),
    ],
)
def test_an_answer_that_is_not_whole_is_an_error(answer: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        Draft().add(answer, 0)


def test_scores_are_those_of_the_given_tokens() -> None:
    found = SimpleNamespace(prompt_logprobs=Flat([8, 9], [-1.0, -2.0], [0, 0, 1]))
    assert read_scores(found, torch.tensor([7, 8, 9])).tolist() == [0.0, -1.0, -2.0]
    with pytest.raises(RuntimeError, match="other tokens"):
        read_scores(found, torch.tensor([7, 9, 8]))
    with pytest.raises(RuntimeError, match="scored 3 of 2 tokens"):
        read_scores(found, torch.tensor([7, 8]))


@pytest.mark.parametrize(
    ("mode", "temperature", "top_p", "right"),
    [
        ("processed_logprobs", 0.7, 1.0, True),
        ("processed_logprobs", 0.0, 1.0, True),
        ("processed_logprobs", 1.0, 0.9, False),
        ("raw_logprobs", 1.0, 0.9, True),
        ("raw_logprobs", 0.7, 1.0, False),
        ("processed_logprobs", 0.001, 1.0, False),
        ("processed_logprobs", 2.5, 1.0, False),
    ],
)
def test_a_request_whose_log_probs_would_be_others_is_refused(
    mode: Any, temperature: float, top_p: float, right: bool
) -> None:
    request = GenerateRequest(torch.tensor([1]), "r", SamplingParams(temperature=temperature, top_p=top_p))
    if right:
        check_sampling(request, mode)
    else:
        with pytest.raises(ValueError, match="request r"):
            check_sampling(request, mode)


def test_seeds_differ_by_all_that_they_depend_on() -> None:
    seeds = {sample_seed(a, b, c, d) for a in (0, 1) for b in ("x", "y") for c in (0, 1) for d in (0, 1)}
    assert len(seeds) == 16
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sample_seed(1, "x", 0, 0) == sample_seed(1, "x", 0, 0)
