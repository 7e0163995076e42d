"""Rewards of samples.

Invariant: samples are scored as they are finished; scoring never blocks the event loop.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from pentad.data.rows import PromptRow
from pentad.rewards.pool import RewardPool
from pentad.rewards.types import RewardItem, RewardResult

Decode = Callable[[Sequence[list[int]]], list[str]]


def reward_item(row: PromptRow, response: str, tokens: Sequence[int] | None = None) -> RewardItem:
    """What a reward is given of a row and a response to it; of a conversation, the last message is the prompt."""
    messages = None if isinstance(row.prompt, str) else row.prompt
    prompt = row.prompt if isinstance(row.prompt, str) else row.prompt[-1]["content"]
    return RewardItem(
        prompt,
        response,
        row.ground_truth,
        row.data_source,
        row.extra,
        row.id,
        messages,
        None if tokens is None else tuple(tokens),
    )


class Scorer:
    """Scores responses with the reward pool, one round of calls at a time on a thread of its own.

    What is asked for while a round runs makes up the next one.

    Args:
        pool: the reward processes.
        decode: tokens of several responses to their texts.
        tell: is told of failures: kind and message.
        working: a context that a round of calls is in, for the timeline.
    """

    def __init__(
        self,
        pool: RewardPool,
        decode: Decode,
        tell: Callable[[str, str], None],
        working: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._pool, self._decode, self._tell, self._working = pool, decode, tell, working
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="rewards")
        self._waiting: list[tuple[list[RewardItem], asyncio.Future[list[RewardResult]]]] = []
        self._round: asyncio.Task[None] | None = None
        self.outstanding = 0

    async def score(self, row: PromptRow, responses: Sequence[Tensor]) -> list[RewardResult]:
        """The reward of each response, int64 `[R]`, to a row."""
        tokens = [response.tolist() for response in responses]
        texts = self._decode(tokens)
        future: asyncio.Future[list[RewardResult]] = asyncio.get_running_loop().create_future()
        self._waiting.append(([reward_item(row, *answer) for answer in zip(texts, tokens, strict=True)], future))
        self.outstanding += len(texts)
        if self._round is None or self._round.done():
            self._round = asyncio.ensure_future(self._run())
        try:
            return await future
        finally:
            self.outstanding -= len(texts)

    def check(self, results: Sequence[RewardResult]) -> None:
        """End the run where every reward call failed; a part of them is only counted.

        Raises:
            UserError: that is so.
        """
        self._pool.check_results(results)

    def close(self) -> None:
        """Give the thread back without waiting for a round that runs; the pool ends it."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            items = [item for part, _ in waiting for item in part]
            loop = asyncio.get_running_loop()
            try:
                with self._working():
                    results = await loop.run_in_executor(self._executor, self._pool.score, items, self._tell)
            except BaseException as error:
                # What was asked for in the meantime fails with it; whoever awaits the answers is told.
                for _, future in [*waiting, *self._waiting]:
                    if not future.done():
                        future.set_exception(error)
                self._waiting.clear()
                if isinstance(error, Exception):
                    return
                raise
            for part, future in waiting:
                mine, results = results[: len(part)], results[len(part) :]
                if not future.done():
                    future.set_result(mine)
