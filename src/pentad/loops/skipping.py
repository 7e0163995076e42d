"""Optimizer steps that were skipped.

Invariant: each is told; more than `trainer.max_skipped_steps` in a row end the run.
"""

from collections import Counter
from collections.abc import Callable, Mapping

from pentad.config.schema.algorithms.base import Role
from pentad.errors import UserError
from pentad.trainers.protocol import Trained


class SkippedUpdates:
    """Counts optimizer steps whose gradient was not finite.

    Args:
        allowed: how many in a row.
        tell: is told of each.

    Attributes:
        in_a_row: since the last that was taken, by role.
    """

    def __init__(self, allowed: int, tell: Callable[[str], None]) -> None:
        self._allowed, self._tell = allowed, tell
        self.in_a_row: Counter[Role] = Counter()

    def count(self, role: Role, trained: Trained) -> None:
        """Take in what an optimizer step did.

        Raises:
            UserError: too many were skipped, one after the other.
        """
        if not trained.metrics.get("train/skipped_updates"):
            self.in_a_row[role] = 0
            return
        self.in_a_row[role] += 1
        where = f"first in {', '.join(trained.not_finite)}" if trained.not_finite else "though each is finite by itself"
        text = f"the gradient of the {role} is not finite, {where}; the optimizer step was skipped"
        if self.in_a_row[role] > self._allowed:
            section = "critic" if role == "critic" else "trainer"
            raise UserError(
                f"{text}; so were the {self._allowed} before it (trainer.max_skipped_steps)",
                f"lower {section}.optimizer.lr or {section}.optimizer.grad_clip, or go on from an earlier checkpoint "
                "with trainer.resume_mode=PATH",
            )
        self._tell(text)

    def state_dict(self) -> dict[str, int]:
        """Optimizer steps that were skipped in a row, by role."""
        return dict(self.in_a_row)

    def load_state_dict(self, state: Mapping[Role, int] | int) -> None:
        """Go on from `state`; a number is the policy's, of a checkpoint of an earlier version."""
        self.in_a_row = Counter({"policy": state} if isinstance(state, int) else dict(state))
