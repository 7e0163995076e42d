"""When a run is evaluated, and whether training waits for it.

Invariant: a step is evaluated under its own weights: no others are published before the evaluation has ended or was
left, and one that was left is done again when the run goes on.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from pentad.config.schema.trainer import TrainerSettings
from pentad.loops.evaluation import Evaluation
from pentad.loops.stopping import Stop, StopNow


class Evaluations:
    """The evaluations of a run.

    Args:
        evaluation: None where nothing is evaluated.
        max_staleness: above 0 the next step begins before an evaluation has ended, except where a checkpoint has to
            know how it went (`trainer.keep_best`).
        stop: asks the run to stop.
        publish: brings the engines to the trainer's weights.

    Attributes:
        evaluated: the last step that was; -1 before the first.
    """

    def __init__(
        self,
        evaluation: Evaluation | None,
        settings: TrainerSettings,
        max_staleness: int,
        stop: Stop,
        publish: Callable[[], Awaitable[None]],
    ) -> None:
        self._evaluation, self._settings = evaluation, settings
        self._may_run_beside = max_staleness > 0 and settings.keep_best is None
        self._stop, self._publish = stop, publish
        self._running: asyncio.Task[dict[str, float]] | None = None
        self.evaluated = -1

    def due(self, step: int) -> bool:
        """Whether a step that is done is to be evaluated and is not yet."""
        settings = self._settings
        if self._evaluation is None or self.evaluated >= step:
            return False
        if step == 0:
            return settings.val_before_train
        return step == settings.total_steps or bool(settings.test_freq and step % settings.test_freq == 0)

    def begin(self, step: int) -> bool:
        """Evaluate a step beside the training of the next; returns False where training has to wait for `run`."""
        if not self._may_run_beside or step >= self._settings.total_steps:
            return False
        self._running = asyncio.ensure_future(self._evaluate(step))
        return True

    async def run(self, step: int) -> dict[str, float]:
        """Evaluate a step; returns the metrics.

        Raises:
            StopNow: a stop was asked for.
        """
        return await self._stop.unless(self._evaluate(step))

    async def end(self) -> None:
        """Wait for the evaluation that runs beside training, unless a stop is asked for: then it is left."""
        task, self._running = self._running, None
        if task is not None:
            with suppress(StopNow):
                await self._stop.unless(_result(task))
            task.cancel()

    def cancel(self) -> None:
        """Leave the evaluation that runs."""
        if self._running is not None:
            self._running.cancel()

    async def _evaluate(self, step: int) -> dict[str, float]:
        if self._evaluation is None:
            return {}
        await self._publish()
        metrics = await self._evaluation.run(step)
        self.evaluated = step
        return metrics


async def _result[T](task: asyncio.Task[T]) -> T:
    return await asyncio.shield(task)
