"""Direct preference optimisation: the policy learns which of two responses is preferred, without samples of its own.

https://arxiv.org/abs/2305.18290, equation 7. Both responses of a pair are in one microbatch.
"""

from collections.abc import Mapping

from torch import Tensor
from torch.nn.functional import logsigmoid

from pentad.algorithms.given import Given
from pentad.algorithms.protocol import Mean, Outputs
from pentad.algorithms.reduction import sum_over_sequences
from pentad.config.schema.algorithms.dpo import DPOSettings
from pentad.samples.batch import Batch


class DPOLoss:
    """`-log sigmoid(beta (log-ratio of the chosen response - log-ratio of the rejected one))`, the mean over pairs."""

    reads = frozenset({"ref_logprobs", "pair_ids", "chosen"})
    differentiates_entropy = False

    def __init__(self, settings: DPOSettings) -> None:
        self._settings = settings

    def denominator(self, minibatch: Batch) -> float:
        return minibatch.num_sequences / 2

    def __call__(self, outputs: Outputs, microbatch: Batch) -> tuple[Tensor, Mapping[str, Mean]]:
        columns = microbatch.per_sequence
        log_ratio = sum_over_sequences(outputs.logprobs - microbatch.per_token["ref_logprobs"], microbatch)
        signed = log_ratio.where(columns["chosen"], -log_ratio)
        # The two of a pair side by side, in whatever order they are packed.
        margin = self._settings.dpo_beta * signed[columns["pair_ids"].argsort()].view(-1, 2).sum(dim=1)
        right, pairs = (margin.detach() > 0).sum(), float(len(margin))
        return -logsigmoid(margin).sum(), {
            "train/preference_accuracy": Mean(right, pairs),
            "train/preference_margin": Mean(margin.detach().sum(), pairs),
        }


class DPO(Given[DPOSettings]):
    """The algorithm."""

    loss = DPOLoss
