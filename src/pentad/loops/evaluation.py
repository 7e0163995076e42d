"""Rewards on evaluation sets.

Invariant: every prompt of every set is answered once, by the weights that the engines hold.
"""

import asyncio
from collections.abc import Mapping
from statistics import fmean

from pentad.data.prompts import EncodedPrompts
from pentad.loops.group import Group
from pentad.loops.journal import Journal
from pentad.loops.roles import Engines
from pentad.loops.scoring import Scorer
from pentad.record.metrics import accuracy_name
from pentad.record.phases import DRIVER
from pentad.samples.request import GenerateRequest, SamplingParams
from pentad.samples.trajectory import Trajectory

# A reward this close to 1 counts as a correct answer.
_CORRECT = 1 - 1e-6


class Evaluation:
    """Answers and scores the evaluation sets.

    Args:
        sets: prompts by the name of the set.
        params: how to sample.
    """

    def __init__(
        self,
        sets: Mapping[str, EncodedPrompts],
        engines: Engines,
        scorer: Scorer,
        journal: Journal,
        params: SamplingParams,
    ) -> None:
        self._sets, self._engines, self._scorer, self._journal = sets, engines, scorer, journal
        self._params = params

    async def run(self, step: int) -> dict[str, float]:
        """Write `eval/<name>/*` of every set at `step`; returns them.

        Raises:
            UserError: before the first step every reward call failed.
        """
        metrics: dict[str, float] = {}
        groups: dict[str, list[Group]] = {}
        with self._journal.timed("eval"), self._journal.timeline.span([DRIVER], "evaluation"):
            for name, prompts in self._sets.items():
                groups[name] = await self._answer(name, prompts)
            if step == 0:  # later there is a model to be kept
                self._scorer.check(
                    [result for answers in groups.values() for group in answers for result in group.results]
                )
            for name, answers in groups.items():
                scores = [group.results[0].score for group in answers]
                metrics[accuracy_name(name)] = fmean(score >= _CORRECT for score in scores)
                metrics[f"eval/{name}/reward"] = fmean(scores)
                lengths = [int(group.trajectories[0].sampled.sum()) for group in answers]
                metrics[f"eval/{name}/response_length_mean"] = fmean(lengths)
                self._journal.keep_samples(step, name, answers)
        self._journal.write(step, metrics)
        return metrics

    async def _answer(self, name: str, prompts: EncodedPrompts) -> list[Group]:
        advance, done = self._journal.progress(f"eval {name}", len(prompts)), 0

        async def answer(index: int) -> Group:
            nonlocal done
            prompt, row = prompts.tokens[index], prompts.rows[index]
            completion = await self._engines.generate(GenerateRequest(prompt, f"eval-{name}-{index}", self._params))
            done += 1
            advance(done)
            results = await self._scorer.score(row, [completion.response_tokens])
            trajectory = Trajectory.of_completion(prompt, completion, group=index, episode=index)
            return Group(row, prompt, (trajectory,), tuple(results), (completion.finish_reason,))

        return list(await asyncio.gather(*(answer(index) for index in range(len(prompts)))))
