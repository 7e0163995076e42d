"""What is compared of a model: log-probs and GRPO's loss of a policy, or values and their squared error of a critic.

Invariant: which of the two follows from the model alone, so no layout can be asked for another than the reference.
"""

from collections.abc import Mapping

from torch import Tensor

from pentad.algorithms.policy_loss import PolicyLoss
from pentad.algorithms.protocol import Mean, Outputs
from pentad.samples.batch import Batch
from pentad.samples.packing import Plan
from pentad.trainers.megatron.trainer import Trainer
from pentad.verify.batch import LOSS, TEMPERATURE, with_objective, with_returns


class SquaredError:
    """Half the squared distance of values to `returns`, a mean over all tokens."""

    reads = frozenset({"returns"})
    differentiates_entropy = False

    def denominator(self, minibatch: Batch) -> float:
        """Tokens in the loss mask."""
        return float(minibatch.loss_mask.sum())

    def __call__(self, outputs: Outputs, microbatch: Batch) -> tuple[Tensor, Mapping[str, Mean]]:
        if outputs.values is None:
            raise ValueError("the squared error needs values")
        error = (outputs.values - microbatch.per_token["returns"]).square() * microbatch.loss_mask
        return error.sum() / 2, {}


def score(trainer: Trainer, batch: Batch, plan: Plan) -> Tensor:
    """Float32 `[T]`: a policy's log-probs or a critic's values, 0 outside the loss mask."""
    if trainer.is_critic:
        return trainer.values(batch, plan)
    return trainer.logprobs(batch, plan, TEMPERATURE)[0]


def differentiate(trainer: Trainer, batch: Batch, plan: Plan, scores: Tensor) -> float:
    """Gradients of the objective around some scores, which are the same on every layout; returns the loss."""
    if trainer.is_critic:
        metrics = trainer.forward_backward(with_returns(batch, scores), plan, SquaredError())
    else:
        metrics = trainer.forward_backward(with_objective(batch, scores), plan, PolicyLoss(LOSS), TEMPERATURE)
    return metrics["train/loss"]
