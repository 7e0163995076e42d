"""What a loss is.

Invariant: a loss returns sums over the tokens that it is given, never means, so that gradients cannot depend on how
a minibatch was cut into microbatches.
"""

from typing import Literal, Protocol

from torch import Tensor

from pentad.samples.batch import Batch


class Loss(Protocol):
    """A loss on the log-probs of the trained tokens.

    Attributes:
        normalizer: what the loss sum is divided by, counted over the whole minibatch: tokens with loss, or
            sequences.
    """

    normalizer: Literal["tokens", "sequences"]

    def __call__(self, logprobs: Tensor, microbatch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """
        Args:
            logprobs: float32 `[t]`, at the token that each is about; 0 where `microbatch.loss_mask` is false.
            microbatch: the sequences with all that the loss needs in `per_token`.

        Returns:
            the loss sum (a scalar), and sums over tokens of metrics, which are reported divided by the number of
            tokens.
        """
        ...
