"""What evaluations measure, over plain objects."""

import asyncio
from itertools import combinations
from math import isclose
from typing import Any

import pytest
import torch
from loop_world import Engine, Events, Journal
from torch import Tensor

from pentad.config.schema.evaluation import pass_ks
from pentad.data.preferences import EncodedPreferences
from pentad.data.prompts import EncodedExamples, EncodedPrompts
from pentad.data.rows import PromptRow
from pentad.loops.evaluation import EvaluationSet, answer_all, measure, pass_at_k
from pentad.loops.held_out import HeldOut
from pentad.rewards.types import RewardResult
from pentad.samples.batch import Batch
from pentad.samples.request import SamplingParams


def test_pass_at_k_is_the_part_of_all_subsets_with_a_correct_sample() -> None:
    for n in range(1, 8):
        for correct in range(n + 1):
            samples = [True] * correct + [False] * (n - correct)
            for k in range(1, n + 1):
                subsets = list(combinations(samples, k))
                expected = sum(map(any, subsets)) / len(subsets)
                assert isclose(pass_at_k(n, correct, k), expected, abs_tol=1e-12)
    assert 0 < pass_at_k(4096, 1, 2048) < 1, "no overflow"
    with pytest.raises(ValueError, match="pass@5 of 1 correct among 4 samples"):
        pass_at_k(4, 1, 5)


def test_which_k() -> None:
    assert [pass_ks(n) for n in (1, 2, 3, 8, 12)] == [(), (2,), (2, 3), (2, 4, 8), (2, 4, 8, 12)]


class Lengths:
    """Right is an answer of at least so many tokens as the question's number."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    async def score(self, row: PromptRow, responses: list[Tensor]) -> list[RewardResult]:
        self.asked.append((row.id, len(responses)))
        return [RewardResult(float(len(response) >= int(row.id))) for response in responses]


def test_each_question_is_answered_as_often_as_the_set_says() -> None:
    rows = tuple(PromptRow(id=str(i), prompt=str(i)) for i in (1, 2, 5))
    prompts = EncodedPrompts(rows, tuple(torch.tensor([i, i]) for i in range(3)), 0)
    engine, scorer = Engine(Events()), Lengths()
    engine.version = 0
    one = EvaluationSet(prompts, SamplingParams(temperature=0.7), 4, scorer)  # ty: ignore
    groups = asyncio.run(answer_all("x", one, engine, Journal().progress))  # ty: ignore
    asked = [(request.request_id, request.sample) for request in engine.requests]
    assert asked == [(f"eval-x-{index}", sample) for index in range(3) for sample in range(4)]
    assert scorer.asked == [("1", 4), ("2", 4), ("5", 4)]
    metrics = measure("x", groups)
    # Responses have 1, 2, 3 and 4 tokens: 4, 3 and 0 of them are right.
    assert metrics == {
        "eval/x/accuracy": pytest.approx(7 / 12),
        "eval/x/reward": pytest.approx(7 / 12),
        "eval/x/response_length_mean": 2.5,
        "eval/x/mean_at_4": pytest.approx(7 / 12),
        "eval/x/pass_at_2": pytest.approx(2 / 3),
        "eval/x/pass_at_4": pytest.approx(2 / 3),
    }


class Scores:
    """A model whose log-prob of a token is a multiple of the token; notes what it is given."""

    def __init__(self, factor: float) -> None:
        self.factor, self.batches = factor, []

    async def logprobs(self, batch: Batch, temperature: float, progress: Any) -> Tensor:
        self.batches.append(batch)
        return self.factor * batch.tokens * batch.loss_mask


def test_loss_counts_every_trained_token_once() -> None:
    pairs = tuple((torch.tensor([9]), torch.arange(1, length + 1)) for length in (1, 2, 3))
    masks = (None, torch.tensor([False, True]), None)
    examples = EncodedExamples(tuple(PromptRow(id=str(i), prompt="") for i in range(3)), pairs, 0, masks)
    model = Scores(-0.5)
    found = asyncio.run(HeldOut({"x": examples}, {"policy": model}, 4).run(Journal().progress))  # ty: ignore
    assert found == {"eval/x/loss": pytest.approx(0.5 * (1 + 2 + 1 + 2 + 3) / 5)}
    assert model.batches[0].num_sequences == 4, "one row again, for four ranks"


def test_preferences_are_those_against_the_reference() -> None:
    # The policy likes large tokens, as the reference does, but less.
    both = [(torch.tensor([9]), torch.tensor([token])) for token in (1, 3, 3, 1, 5, 2)]
    pairs = EncodedPreferences(tuple(PromptRow(id=str(i), prompt="") for i in range(3)), tuple(both), 0)
    roles: Any = {"policy": Scores(0.25), "reference": Scores(0.5)}
    found = asyncio.run(HeldOut({"x": pairs}, roles, 2).run(Journal().progress))
    assert found == {"eval/x/preference_accuracy": pytest.approx(1 / 3)}
    assert roles["policy"].batches[0].per_sequence["pair_ids"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
