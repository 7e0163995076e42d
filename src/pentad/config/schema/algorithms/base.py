"""What all algorithms' settings share.

Invariant: an algorithm states which batch columns it reads; which roles exist, which stages run and what memory is
planned follows from that. No other code asks for an algorithm by its name.
"""

from collections.abc import Callable, Iterator
from typing import ClassVar, Literal

from pydantic import Field

from pentad.config.schema.algorithms.correction import CorrectionSettings
from pentad.config.schema.base import Settings
from pentad.config.schema.rollout import RolloutSettings
from pentad.errors import UserError

Role = Literal["policy", "reference", "critic"]

# Columns that are computed before training -> the role whose forward pass gives them.
COLUMN_ROLES: dict[str, Role] = {"old_logprobs": "policy", "ref_logprobs": "reference", "values": "critic"}


class AlgorithmSettings(Settings):
    """`algorithm.*`"""

    # rollouts: prompts are answered by the engines and rewarded. examples: the data has the responses. preferences: the
    # data has a chosen and a rejected response of each prompt.
    trains_on: ClassVar[Literal["rollouts", "examples", "preferences"]] = "rollouts"

    name: str

    @property
    def columns(self) -> frozenset[str]:
        """Keys of COLUMN_ROLES that the algorithm reads."""
        return frozenset()

    @property
    def sampled_columns(self) -> frozenset[str]:
        """Those of `columns` that are taken from the rollouts instead of being computed."""
        return frozenset()

    @property
    def roles(self) -> frozenset[Role]:
        """The models that a run needs."""
        return frozenset({"policy"} | {COLUMN_ROLES[column] for column in self.columns})

    @property
    def updates(self) -> int:
        """Optimizer steps of one batch."""
        return 1

    def unread(self) -> Iterator[tuple[tuple[str, ...], str, str]]:
        """Fields that nothing would read: their names, why, and what would make them be read."""
        return iter(())

    def impossible(self, rollout: RolloutSettings, named: Callable[[str], str]) -> Iterator[UserError]:
        """What cannot work.

        Args:
            rollout: how samples are made.
            named: a dotted name with the place where it was set.
        """
        return iter(())


class RolloutAlgorithmSettings(AlgorithmSettings):
    """Settings of every algorithm that trains on rollouts."""

    optimizer_steps: int = Field(1, ge=1, description="optimizer steps per rollout batch (minibatches)")
    old_logprobs: Literal["trainer", "rollout"] = Field(
        "trainer",
        description="what a probability ratio is taken to: trainer: log-probs of the trainer at the beginning of the "
        "batch, one more forward pass; rollout: those that the engine sampled with",
    )
    correction: CorrectionSettings = CorrectionSettings()

    @property
    def sampled_columns(self) -> frozenset[str]:
        return self.columns & {"old_logprobs"} if self.old_logprobs == "rollout" else frozenset()

    @property
    def updates(self) -> int:
        return self.optimizer_steps
