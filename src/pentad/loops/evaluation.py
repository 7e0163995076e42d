"""Evaluation sets: answers and their rewards, or the loss of given responses.

Invariant: every prompt of every set is answered as often as the set says, by the weights that the engines hold.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from statistics import fmean

from pentad.config.schema.evaluation import pass_ks
from pentad.data.prompts import EncodedPrompts
from pentad.loops.group import Group
from pentad.loops.held_out import HeldOut
from pentad.loops.journal import Journal
from pentad.loops.roles import Engines
from pentad.loops.scoring import Scorer
from pentad.record.metrics import accuracy_name
from pentad.record.phases import DRIVER
from pentad.samples.completion import Completion
from pentad.samples.request import GenerateRequest, SamplingParams
from pentad.samples.trajectory import Trajectory

# A reward this close to 1 counts as a correct answer.
_CORRECT = 1 - 1e-6

Progress = Callable[[str, int], Callable[[int], None]]


@dataclass(frozen=True)
class EvaluationSet:
    """Questions that engines answer.

    Attributes:
        params: how to sample.
        samples: of each question.
        scorer: gives the rewards.
    """

    prompts: EncodedPrompts
    params: SamplingParams
    samples: int
    scorer: Scorer


class Evaluation:
    """Evaluates all sets.

    Args:
        sets: what is answered, by the name of the set.
        engines: None where nothing is answered.
        held_out: what has its loss measured; None for nothing.
    """

    def __init__(
        self,
        sets: Mapping[str, EvaluationSet],
        engines: Engines | None,
        journal: Journal,
        held_out: HeldOut | None = None,
    ) -> None:
        self._sets, self._engines, self._journal, self._held_out = sets, engines, journal, held_out

    @property
    def generates(self) -> bool:
        """Whether engines are needed, with the current weights."""
        return bool(self._sets)

    async def run(self, step: int) -> dict[str, float]:
        """Write `eval/<name>/*` of every set at `step`; returns them.

        Raises:
            UserError: before the first step every reward call of a set failed.
        """
        metrics: dict[str, float] = {}
        groups: dict[str, list[Group]] = {}
        with self._journal.timed("eval"), self._journal.timeline.span([DRIVER], "evaluation"):
            if self._held_out is not None:
                metrics |= await self._held_out.run(self._journal.progress)
            for name, one in self._sets.items():
                if self._engines is None:
                    raise RuntimeError("answers need engines")
                groups[name] = await answer_all(name, one, self._engines, self._journal.progress)
            if step == 0:  # later there is a model to be kept
                self._check(groups)
            for name, answers in groups.items():
                metrics |= measure(name, answers)
                self._journal.keep_samples(step, name, answers)
        self._journal.write(step, metrics)
        return metrics

    def _check(self, groups: Mapping[str, Sequence[Group]]) -> None:
        """End the run where all calls of one reward failed."""
        for scorer in dict.fromkeys(one.scorer for one in self._sets.values()):
            mine = [groups[name] for name, one in self._sets.items() if one.scorer is scorer]
            scorer.check([result for answers in mine for group in answers for result in group.results])


async def answer_all(name: str, one: EvaluationSet, engines: Engines, progress: Progress) -> list[Group]:
    """The answers to a set with their rewards: for each question, in order, a group of all its samples."""
    prompts, samples = one.prompts, one.samples
    advance, done = progress(f"eval {name}", len(prompts) * samples), 0

    async def generate(request: GenerateRequest) -> Completion:
        nonlocal done
        completion = await engines.generate(request)
        done += 1
        advance(done)
        return completion

    async def answer(index: int) -> Group:
        prompt, row, asked = prompts.tokens[index], prompts.rows[index], f"eval-{name}-{index}"
        requests = [GenerateRequest(prompt, asked, one.params, sample=sample) for sample in range(samples)]
        completions = await asyncio.gather(*map(generate, requests))
        results = await one.scorer.score(row, [completion.response_tokens for completion in completions])
        trajectories = (
            Trajectory.of_completion(prompt, completion, group=index, episode=index * samples + sample)
            for sample, completion in enumerate(completions)
        )
        reasons = tuple(completion.finish_reason for completion in completions)
        return Group(row, prompt, tuple(trajectories), tuple(results), reasons)

    return list(await asyncio.gather(*(answer(index) for index in range(len(prompts)))))


def measure(name: str, answers: Sequence[Group]) -> dict[str, float]:
    """The metrics of a set, from all answers to it; each question has equally many.

    A reward that failed counts as 0.
    """
    scores = [[result.score for result in group.results] for group in answers]
    right = [sum(score >= _CORRECT for score in each) for each in scores]
    samples = len(scores[0])
    lengths = [int(one.sampled.sum()) for group in answers for one in group.trajectories]
    metrics = {
        accuracy_name(name): fmean(count / samples for count in right),
        f"eval/{name}/reward": fmean(score for each in scores for score in each),
        f"eval/{name}/response_length_mean": fmean(lengths),
    }
    if samples > 1:
        metrics[f"eval/{name}/mean_at_{samples}"] = metrics[accuracy_name(name)]
    for k in pass_ks(samples):
        metrics[f"eval/{name}/pass_at_{k}"] = fmean(pass_at_k(samples, count, k) for count in right)
    return metrics


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate of the probability that one of `k` samples is correct, from `n` samples.

    `1 - C(n - correct, k) / C(n, k)`: Chen et al. 2021, https://arxiv.org/abs/2107.03374, equation 1.

    Raises:
        ValueError: `k` is not from 1 to `n`, or `correct` not from 0 to `n`.
    """
    if not (1 <= k <= n and 0 <= correct <= n):
        raise ValueError(f"pass@{k} of {correct} correct among {n} samples")
    # Both binomials without their common factors, which are huge.
    return 1.0 - prod(1.0 - k / i for i in range(n - correct + 1, n + 1))
