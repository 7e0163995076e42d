"""When a run is evaluated.

Invariant: a step is evaluated under its own weights, and no others are published meanwhile.
"""

from collections.abc import Awaitable, Callable

from pentad.config.schema.trainer import TrainerSettings
from pentad.loops.evaluation import Evaluation
from pentad.loops.stopping import Stop


class Evaluations:
    """The evaluations of a run. Training waits for them; where samples may be stale, sampling goes on beside them.

    Args:
        evaluation: None where nothing is evaluated.
        stop: asks the run to stop.
        publish: brings the engines to the trainer's weights.

    Attributes:
        evaluated: the last step that was; -1 before the first.
    """

    def __init__(
        self,
        evaluation: Evaluation | None,
        settings: TrainerSettings,
        stop: Stop,
        publish: Callable[[], Awaitable[None]],
    ) -> None:
        self._evaluation, self._settings = evaluation, settings
        self._stop, self._publish = stop, publish
        self.evaluated = -1

    def due(self, step: int) -> bool:
        """Whether a step that is done is to be evaluated and is not yet."""
        settings = self._settings
        if self._evaluation is None or self.evaluated >= step:
            return False
        if step == 0:
            return settings.val_before_train
        return step == settings.total_steps or bool(settings.test_freq and step % settings.test_freq == 0)

    async def run(self, step: int) -> dict[str, float]:
        """Evaluate a step; returns the metrics.

        Raises:
            StopNow: a stop was asked for.
        """
        return await self._stop.unless(self._evaluate(step))

    async def _evaluate(self, step: int) -> dict[str, float]:
        if self._evaluation is None:
            return {}
        if self._evaluation.generates:
            await self._publish()
        metrics = await self._evaluation.run(step)
        self.evaluated = step
        return metrics
