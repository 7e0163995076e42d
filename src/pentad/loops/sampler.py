"""From prompts to scored groups.

Invariant: the group of a number is that of the prompt at that place of the sampler's order, whatever was sampled
before; its random numbers follow from the number alone.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from pentad.config.schema.reward import OnFailure
from pentad.data.prompts import EncodedPrompts
from pentad.data.sampler import Order
from pentad.loops.group import Group
from pentad.loops.roles import Engines
from pentad.loops.scoring import Scorer
from pentad.rewards.failed import with_reward
from pentad.samples.completion import Completion
from pentad.samples.request import GenerateRequest, SamplingParams
from pentad.samples.trajectory import Trajectory


class GroupSampler:
    """Samples `samples` responses to each prompt and scores them.

    Attributes:
        quiet: set while no request runs.
        generated: responses so far.
        aborted: responses of which a part was sampled and thrown away.
        on_sample: is called after each response.

    Args:
        prompts: what is sampled from.
        order: which prompt has which number.
        engines: that sample.
        scorer: that scores.
        params: how to sample.
        samples: of one prompt.
        groups_per_step: goes into the requests' ids.
        on_failure: what becomes of a sample without a reward.
    """

    def __init__(
        self,
        prompts: EncodedPrompts,
        order: Order,
        engines: Engines,
        scorer: Scorer,
        params: SamplingParams,
        *,
        samples: int,
        groups_per_step: int,
        on_failure: OnFailure,
    ) -> None:
        self._prompts, self._order, self._engines, self._scorer = prompts, order, engines, scorer
        self._params, self._samples, self._per_step = params, samples, groups_per_step
        self._on_failure = on_failure
        # Of the numbers that were given out and are not finished: the index of the prompt.
        self._indices: dict[int, int] = {}
        self._given = 0
        self._asked = 0
        self.quiet = asyncio.Event()
        self.quiet.set()
        # Cleared while new weights are awaited.
        self._open = asyncio.Event()
        self._open.set()
        self.generated = 0
        self.aborted = 0
        self.on_sample: Callable[[], None] = lambda: None

    async def group(self, number: int) -> Group:
        """Sample and score the group of a number."""
        while self._given <= number:
            self._indices[self._given] = self._order.next(1)[0]
            self._given += 1
        index = self._indices[number]
        row, prompt = self._prompts.rows[index], self._prompts.tokens[index]
        step, place = divmod(number, self._per_step)
        name = f"{step + 1}-{place}"
        requests = [GenerateRequest(prompt, name, self._params, sample=sample) for sample in range(self._samples)]
        completions = await asyncio.gather(*(self._generate(request) for request in requests))
        results = await self._scorer.score(row, [completion.response_tokens for completion in completions])
        trajectories = tuple(
            with_reward(
                Trajectory.of_completion(prompt, completion, group=number, episode=number * self._samples + sample),
                result,
                self._on_failure,
            )
            for sample, (completion, result) in enumerate(zip(completions, results, strict=True))
        )
        del self._indices[number]
        reasons = tuple(completion.finish_reason for completion in completions)
        return Group(row, prompt, trajectories, tuple(results), reasons, index)

    async def drain(self) -> None:
        """Make no more requests, and wait for those that run; until `go_on`."""
        self._open.clear()
        await self.quiet.wait()

    def go_on(self) -> None:
        """Make requests again."""
        self._open.set()

    async def _generate(self, request: GenerateRequest) -> Completion:
        """One response. A request that is aborted, because new weights come, is made again."""
        while True:
            if not self._open.is_set():
                await self._open.wait()
            self._asked += 1
            self.quiet.clear()
            try:
                completion = await self._engines.generate(request)
            finally:
                self._asked -= 1
                if not self._asked:
                    self.quiet.set()
            if completion.finish_reason != "abort":
                break
            self.aborted += 1
        self.generated += 1
        self.on_sample()
        return completion

    def plain(self, groups: Mapping[int, Group]) -> dict[int, Any]:
        """Groups by number, as plain values and tensors."""
        return {number: group.plain() for number, group in groups.items()}

    def from_plain(self, groups: Mapping[int, Any]) -> dict[int, Group]:
        """The groups that `plain` describes."""
        return {number: Group.from_plain(state, self._prompts) for number, state in groups.items()}

    def sample_again(self, groups: Mapping[int, Group]) -> None:
        """These numbers will be asked for once more."""
        self._indices |= {number: group.index for number, group in groups.items()}

    def state_dict(self) -> dict[str, Any]:
        """Which prompts the unfinished numbers have, and where the order stands."""
        return {"order": self._order.state_dict(), "given": self._given, "indices": dict(self._indices)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._order.load_state_dict(state["order"])
        self._given, self._indices = state["given"], dict(state["indices"])
