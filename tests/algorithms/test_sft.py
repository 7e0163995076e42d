"""Supervised loss and its weights."""

import pytest
import torch

from pentad.algorithms.protocol import Outputs
from pentad.algorithms.reduction import count, token_weights
from pentad.algorithms.sft import SFTLoss
from pentad.config.schema.algorithms import SFTSettings
from pentad.samples.batch import Batch

LENGTHS = [(2, 5), (1, 1), (3, 0), (4, 2)]


@pytest.fixture
def batch() -> Batch:
    return Batch.from_sequences(
        [(torch.zeros(p, dtype=torch.int64), torch.zeros(r, dtype=torch.int64)) for p, r in LENGTHS]
    )


def test_means_equal_a_direct_computation(batch):
    logprobs = torch.randn(batch.num_tokens) * batch.loss_mask
    responses = [part[prompt:] for part, (prompt, _) in zip(logprobs.split(batch.lengths), LENGTHS, strict=True)]
    expected = {
        "token": -torch.cat(responses).mean(),
        "sequence": -torch.stack([part.mean() if len(part) else torch.zeros(()) for part in responses]).mean(),
    }
    for mean, value in expected.items():
        loss = SFTLoss(SFTSettings(loss_mean=mean))
        torch.testing.assert_close(loss(Outputs(logprobs, logprobs), batch)[0] / loss.denominator(batch), value)


def test_weights_depend_on_the_own_sequence_only(batch):
    for normalizer in ("token", "sequence"):
        whole = token_weights(batch, normalizer).split(batch.lengths)
        for index, weights in enumerate(whole):
            assert torch.equal(token_weights(batch.select([index]), normalizer), weights)
            assert not weights[: LENGTHS[index][0]].any()


def test_counts(batch):
    assert count(batch, "token") == 8
    assert count(batch, "sequence") == 4
