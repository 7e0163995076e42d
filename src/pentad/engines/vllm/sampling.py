"""Requests and answers in vLLM's terms.

Invariant: what is handed on are the tokens that were sampled, each with the log-prob that it was sampled with; an
answer of vLLM's that lacks one is an error.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pentad.engines.vllm.arguments import LogprobsMode
from pentad.engines.vllm.seeds import sample_seed
from pentad.samples.completion import Completion, FinishReason
from pentad.samples.request import GenerateRequest

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import RequestOutput


@dataclass
class Draft:
    """A response on its way, which vLLM may give in several parts, each under its own version of the weights."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    parts: int = 0

    def add(self, output: "RequestOutput", version: int) -> FinishReason:
        """Take the next part from vLLM's answer; returns how it ended.

        Raises:
            RuntimeError: it has not a log-prob for each token, or ended in a way that was not asked for.
        """
        answer = output.outputs[0]
        tokens = list(answer.token_ids)
        values = _first_of_each(answer.logprobs) if tokens else []
        if len(values) != len(tokens):
            raise RuntimeError(
                f"vLLM gave {len(values)} log-probs for {len(tokens)} tokens (request {output.request_id})"
            )
        if answer.finish_reason not in ("stop", "length", "abort"):
            raise RuntimeError(f"vLLM ended request {output.request_id} with {answer.finish_reason!r}")
        self.tokens += tokens
        self.logprobs += values
        self.versions += [version] * len(tokens)
        self.parts += 1
        return answer.finish_reason

    def completion(self, finish_reason: FinishReason, length: int | None = None) -> Completion:
        """What there is, or its first `length` tokens."""
        return Completion(
            torch.tensor(self.tokens[:length], dtype=torch.int64),
            torch.tensor(self.logprobs[:length], dtype=torch.float32),
            torch.tensor(self.versions[:length], dtype=torch.int32),
            finish_reason,
        )


def check_sampling(request: GenerateRequest, mode: LogprobsMode) -> None:
    """Refuse what this engine cannot sample with the log-probs that are promised.

    Raises:
        ValueError: that is so. `pentad.engines.vllm.arguments.sampling_problems` tells users before the run.
    """
    params = request.params
    right = params.top_p == 1 if mode == "processed_logprobs" else params.temperature in (0, 1)
    if not right or 0 < params.temperature < 0.01 or params.temperature > 2:
        raise ValueError(
            f"request {request.request_id}: this engine gives {mode}, which are not those of temperature "
            f"{params.temperature:g} before top_p {params.top_p:g}"
        )


def sampling_params(request: GenerateRequest, draft: Draft, seed: int, eos: Sequence[int]) -> "SamplingParams":
    """vLLM's parameters for what is missing of a response."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = request.params
    return SamplingParams(
        seed=sample_seed(seed + params.seed, request.request_id, request.sample, draft.parts),
        temperature=params.temperature,
        top_p=params.top_p,
        max_tokens=params.max_tokens - len(draft.tokens),
        logprobs=0,
        flat_logprobs=True,
        # All tokens that end a response are given by number; vLLM's own notion of the end is not asked.
        ignore_eos=True,
        stop_token_ids=sorted({*eos, *params.stop_token_ids}),
        stop=list(params.stop) or None,
        detokenize=bool(params.stop),
        skip_special_tokens=False,
        include_stop_str_in_output=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def scoring_params() -> "SamplingParams":
    """vLLM's parameters for scoring a prompt."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        prompt_logprobs=0,
        flat_logprobs=True,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def read_scores(output: "RequestOutput", tokens: Tensor) -> Tensor:
    """The log-probs of a prompt's tokens, float32 `[L]`, 0 at the first.

    Raises:
        RuntimeError: vLLM gave them for other tokens.
    """
    found: Any = output.prompt_logprobs
    if len(found) != len(tokens):
        raise RuntimeError(f"vLLM scored {len(found)} of {len(tokens)} tokens")
    places = found.start_indices[1:]
    if [found.token_ids[place] for place in places] != tokens[1:].tolist():
        raise RuntimeError("vLLM gave log-probs of other tokens than the prompt's")
    return torch.tensor([0.0, *(found.logprobs[place] for place in places)], dtype=torch.float32)


def _first_of_each(flat: Any) -> list[float]:
    """The sampled token's log-prob at every position: vLLM puts it first."""
    return [flat.logprobs[start] for start in flat.start_indices]
