import pickle

import pytest
import torch

from pentad.samples.completion import Completion
from pentad.samples.request import GenerateRequest, SamplingParams

VERSIONS = torch.full((2,), 3, dtype=torch.int32)


def test_pickle_of_a_slice_takes_only_the_slice() -> None:
    huge = torch.arange(1_000_000)
    small = Completion(huge[8:10], torch.zeros(1_000_000)[:2], VERSIONS, "length")
    pickled = pickle.dumps(small)
    assert len(pickled) < 2000
    again = pickle.loads(pickled)
    assert again.response_tokens.tolist() == [8, 9]
    assert again.versions.tolist() == [3, 3]
    assert again.finish_reason == "length"


def test_parts_that_do_not_agree_are_refused() -> None:
    with pytest.raises(ValueError, match=r"response_logprobs must be of shape \[2\]"):
        Completion(torch.arange(2), torch.zeros(1), VERSIONS, "stop")
    with pytest.raises(ValueError, match=r"versions must be of shape \[1\]"):
        Completion(torch.arange(1), torch.zeros(1), VERSIONS, "stop")
    with pytest.raises(ValueError, match="finish_reason"):
        Completion(torch.arange(2), torch.zeros(2), VERSIONS, "error")  # type: ignore[arg-type]


def test_only_an_abort_may_be_empty() -> None:
    nothing = (torch.arange(0), torch.zeros(0), VERSIONS[:0])
    with pytest.raises(ValueError, match="at least one token"):
        Completion(*nothing, "length")
    assert len(Completion(*nothing, "abort").response_tokens) == 0


def test_requests_out_of_range_are_refused() -> None:
    prompt = torch.arange(3)
    with pytest.raises(ValueError, match="sample must not be negative: -1"):
        GenerateRequest(prompt, "r", sample=-1)
    with pytest.raises(ValueError, match="P >= 1"):
        GenerateRequest(prompt[:0], "r")
    with pytest.raises(ValueError, match=r"SamplingParams\.max_tokens"):
        SamplingParams(max_tokens=0)
