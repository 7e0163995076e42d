"""Importance weights against their equations, written out token by token in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pentad.algorithms.importance import importance_weights
from pentad.config.schema.algorithms.correction import CorrectionSettings
from pentad.samples.batch import Batch


def make_batch(seed: int, sequences: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 9, (sequences,), generator=generator)
    total = int(lengths.sum())
    starts = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    mask = torch.rand(total, generator=generator) < 0.7
    mask[starts[:-1]] = False
    behaviour = -3 * torch.rand(total, generator=generator)
    proximal = behaviour + torch.randn(total, generator=generator)
    return Batch(
        tokens=torch.zeros(total, dtype=torch.int64),
        cu_seqlens=starts.to(torch.int32),
        loss_mask=mask,
        sample_ids=torch.arange(sequences),
        per_token={"rollout_logprobs": behaviour, "old_logprobs": proximal},
    )


def written_out(batch: Batch, rule: CorrectionSettings) -> tuple[list[float], list[float]]:
    """The weight of every token, and the unbounded weights of what is weighed."""
    tokens, plain = [0.0] * batch.num_tokens, []
    for first, last in zip(batch.cu_seqlens.tolist(), batch.cu_seqlens.tolist()[1:], strict=False):
        mine = [i for i in range(first, last) if batch.loss_mask[i]]
        ratio = {
            i: float(batch.per_token["old_logprobs"][i].double() - batch.per_token["rollout_logprobs"][i].double())
            for i in mine
        }
        if rule.level == "sequence" and mine:
            whole = sum(ratio.values())
            ratio = dict.fromkeys(mine, whole)
            plain.append(math.exp(whole))
        elif mine:
            plain += [math.exp(ratio[i]) for i in mine]
        for i in mine:
            weight = math.exp(ratio[i])
            if rule.rule == "truncate":
                tokens[i] = min(weight, rule.high)
            else:
                tokens[i] = weight if rule.low <= weight <= rule.high else 0.0
    return tokens, plain


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    sequences=st.integers(1, 6),
    level=st.sampled_from(["token", "sequence"]),
    rule=st.sampled_from(["truncate", "mask"]),
)
def test_weights_are_those_of_the_equation(seed: int, sequences: int, level: str, rule: str) -> None:
    batch = make_batch(seed, sequences)
    asked = CorrectionSettings(level=level, rule=rule, high=1.75, low=0.5)  # ty: ignore
    weighed, metrics = importance_weights(batch, asked)
    expected, plain = written_out(batch, asked)
    assert weighed.per_token["importance_weights"].tolist() == pytest.approx(expected, rel=1e-5)
    assert not weighed.per_token["importance_weights"].requires_grad
    if plain:
        assert metrics["importance/mean"] == pytest.approx(sum(plain) / len(plain), rel=1e-5)
        assert metrics["importance/max"] == pytest.approx(max(plain), rel=1e-5)
        ess = sum(plain) ** 2 / (len(plain) * sum(w * w for w in plain))
        assert metrics["importance/ess"] == pytest.approx(ess, rel=1e-5)
        outside = [w > 1.75 or (rule == "mask" and w < 0.5) for w in plain]
        assert metrics["importance/bounded_fraction"] == pytest.approx(sum(outside) / len(plain))
    else:
        assert metrics == {}


def test_weighted_samples_of_one_policy_have_the_mean_of_another() -> None:
    """Exactly, over all tokens of a small vocabulary: sum over q of q * (p / q) * f = sum of p * f."""
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.5], [1.0, 0.2, -0.4, 0.9]], dtype=torch.float64)
    behaviour, proximal = logits.log_softmax(-1)
    value = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    batch = Batch(
        tokens=torch.zeros(8, dtype=torch.int64),
        cu_seqlens=torch.arange(0, 9, 2, dtype=torch.int32),
        loss_mask=torch.tensor([False, True] * 4),
        sample_ids=torch.arange(4),
        per_token={
            name: torch.stack([torch.zeros(4), each.float()], dim=1).flatten()
            for name, each in (("rollout_logprobs", behaviour), ("old_logprobs", proximal))
        },
    )
    weighed, _ = importance_weights(batch, CorrectionSettings(level="token", high=1e6))
    weights = weighed.per_token["importance_weights"].view(4, 2)[:, 1].double()
    assert float((behaviour.exp() * weights * value).sum()) == pytest.approx(float((proximal.exp() * value).sum()))
    assert float((behaviour.exp() * value).sum()) != pytest.approx(float((proximal.exp() * value).sum()), rel=0.1)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_far_away_policies_do_not_overflow(level: str) -> None:
    batch = make_batch(0, 3)
    batch = batch.with_per_token("old_logprobs", batch.per_token["rollout_logprobs"] + 1e4)
    weighed, metrics = importance_weights(batch, CorrectionSettings(level=level, rule="mask"))  # ty: ignore
    assert not bool(weighed.per_token["importance_weights"].any())
    assert all(math.isfinite(value) for value in metrics.values())


def test_nothing_trained_on_gives_no_metrics() -> None:
    batch = make_batch(0, 2)
    empty = Batch(
        batch.tokens, batch.cu_seqlens, torch.zeros_like(batch.loss_mask), batch.sample_ids, dict(batch.per_token)
    )
    weighed, metrics = importance_weights(empty, CorrectionSettings(level="token"))
    assert metrics == {} and not bool(weighed.per_token["importance_weights"].any())
