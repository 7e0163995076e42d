"""Optimizer steps that were skipped.

Invariant: each is told; more than `trainer.max_skipped_steps` in a row end the run.
"""

from collections.abc import Callable

from pentad.config.schema.algorithms.base import Role
from pentad.errors import UserError
from pentad.trainers.protocol import Trained


class SkippedUpdates:
    """Counts optimizer steps whose gradient was not finite.

    Args:
        allowed: how many in a row.
        tell: is told of each.

    Attributes:
        in_a_row: since the last that was taken.
    """

    def __init__(self, allowed: int, tell: Callable[[str], None]) -> None:
        self._allowed, self._tell = allowed, tell
        self.in_a_row = 0

    def count(self, role: Role, trained: Trained) -> None:
        """Take in what an optimizer step did.

        Raises:
            UserError: too many were skipped, one after the other.
        """
        if not trained.metrics.get("train/skipped_updates"):
            self.in_a_row = 0
            return
        self.in_a_row += 1
        where = f"first in {', '.join(trained.not_finite)}" if trained.not_finite else "though each is finite by itself"
        text = f"the gradient of the {role} is not finite, {where}; the optimizer step was skipped"
        if self.in_a_row > self._allowed:
            raise UserError(
                f"{text}; so were the {self._allowed} before it (trainer.max_skipped_steps)",
                "lower trainer.optimizer.lr or trainer.optimizer.grad_clip, or go on from an earlier checkpoint with "
                "trainer.resume_mode=PATH",
            )
        self._tell(text)
