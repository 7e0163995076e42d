"""How far the engines' log-probs of sampled tokens are from the trainer's, step by step."""

from torch import Tensor

from pentad.samples.batch import Batch
from pentad.weights.proof import divergence


def drift(batch: Batch) -> dict[str, float]:
    """How far the engines' log-probs of sampled tokens are from the trainer's; nothing where either is not known."""
    if not {"rollout_logprobs", "old_logprobs"} <= batch.per_token.keys():
        return {}
    engine: Tensor = batch.per_token["rollout_logprobs"][batch.loss_mask]
    trainer: Tensor = batch.per_token["old_logprobs"][batch.loss_mask]
    difference = (engine - trainer).abs()
    return {
        "rollout/logprob_diff_max": float(difference.max()),
        "rollout/logprob_diff_mean": float(difference.mean()),
        "rollout/kl": divergence(engine, trainer),
    }
