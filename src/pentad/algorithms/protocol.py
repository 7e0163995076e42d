"""What an algorithm and a loss are.

Invariant: a loss returns sums over the tokens that it is given, never means, so that gradients cannot depend on how
a minibatch was cut into microbatches. An algorithm knows no process, engine or step.

Example, the whole of REINFORCE with a baseline (as `algorithm.name: my_module:Reinforce`)::

    class Reinforce:
        columns = frozenset()

        def admit(self, group):
            return any(trajectory.status != "failed" for trajectory in group)

        def credit(self, batch):
            rewards, scored = batch.per_sequence["rewards"], batch.per_sequence["scored"]
            advantages = (rewards - rewards[scored].mean()) * scored
            return batch.with_per_token("advantages", spread_over_tokens(advantages, batch))

        def losses(self):
            return {"policy": ReinforceLoss()}
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from pentad.config.schema.algorithms.base import Role
from pentad.samples.batch import Batch
from pentad.samples.trajectory import Trajectory


@dataclass(frozen=True)
class Outputs:
    """What a model gives for the tokens of a microbatch, at the token that each value is about.

    Attributes:
        logprobs: float32 `[t]`, differentiable; 0 outside the loss mask, and everywhere for a critic.
        entropies: float32 `[t]`, nats, of the distribution that each token was drawn from; 0 outside the loss mask.
            Differentiable where the loss asks for it; 0 for a critic.
        values: float32 `[t]`, of a critic, differentiable; None for a policy. The value at a token is predicted from
            the tokens before it; 0 outside the loss mask.
    """

    logprobs: Tensor
    entropies: Tensor
    values: Tensor | None = None


class Mean(NamedTuple):
    """A metric as a sum and what it is divided by, both summed over the whole minibatch before they are divided.

    Microbatches may report different names. `train/loss` and `train/entropy` are reported by Pentad.
    """

    total: Tensor
    count: Tensor | float


class Loss(Protocol):
    """A loss of one role. It is pickled to the ranks.

    Attributes:
        reads: names of `per_token` and `per_sequence` that it needs.
        differentiates_entropy: `Outputs.entropies` must carry a gradient; it costs a second term in the backward pass.
    """

    reads: frozenset[str]
    differentiates_entropy: bool

    def denominator(self, minibatch: Batch) -> float:
        """What the loss sum is divided by, over the whole minibatch: tokens, sequences, or a constant; positive."""
        ...

    def __call__(self, outputs: Outputs, microbatch: Batch) -> tuple[Tensor, Mapping[str, Mean]]:
        """
        Args:
            outputs: of the role's model.
            microbatch: the sequences with all that the loss reads.

        Returns:
            the loss sum (a scalar), and metrics.
        """
        ...


@runtime_checkable
class _HasState(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Algorithm(Protocol):
    """How samples become gradients.

    A user's own class is made with `algorithm.options` as keyword arguments, and states in `columns` which of
    `old_logprobs`, `ref_logprobs` and `values` are to be computed before `credit`. A sample whose reward failed has
    reward 0, `scored` False and no token in the loss mask.
    """

    def admit(self, group: Sequence[Trajectory]) -> bool:
        """Whether a finished group is trained on. A group that is not gives its place to another prompt.

        A run ends when none of many groups in a row is admitted.
        """
        ...

    def credit(self, batch: Batch) -> Batch:
        """The batch with what the losses read beside the columns, such as `advantages`."""
        ...

    def losses(self) -> Mapping[Role, Loss]:
        """The loss of each role that is trained."""
        ...


def algorithm_state(algorithm: Algorithm) -> dict[str, Any] | None:
    """What an algorithm must know to go on, as plain values and tensors; None where it has no `state_dict`."""
    return algorithm.state_dict() if isinstance(algorithm, _HasState) else None


def load_algorithm_state(algorithm: Algorithm, state: dict[str, Any] | None) -> None:
    """Give an algorithm its state back, by `load_state_dict`, where it has one."""
    if state is not None and isinstance(algorithm, _HasState):
        algorithm.load_state_dict(state)
