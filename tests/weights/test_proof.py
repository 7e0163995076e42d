"""A synchronisation that went wrong is refused, and says which tensor."""

import math

import pytest
import torch

from pentad.weights.proof import BOUNDS, SyncError, check_checksums, check_probe, divergence, rounding_units

SENT = {"embed": 1, "layers.0.up": 2, "layers.0.down": 3}


def test_equal_checksums_pass():
    check_checksums(SENT, dict(reversed(SENT.items())), "engine 0")


@pytest.mark.parametrize(
    "held, message",
    [
        ({**SENT, "embed": 7}, "embed arrived changed"),
        ({"embed": 1, "layers.0.up": 2}, "layers.0.down did not arrive"),
        ({**SENT, "lm_head": 4}, "lm_head was not sent"),
        ({"embed": 1, "layers.0.up": 3, "layers.0.down": 2}, "layers.0.down arrived changed, layers.0.up arrived"),
    ],
)
def test_names_the_tensor_and_the_engine(held, message):
    with pytest.raises(SyncError, match=message) as caught:
        check_checksums(SENT, held, "engine 3")
    assert "engine 3" in str(caught.value)


def test_many_problems_are_counted():
    with pytest.raises(SyncError, match="and 15 more"):
        check_checksums({f"w{i:02}": i for i in range(20)}, {}, "engine 0")


LAYERS, TOKENS = 9, 10_000
SCORES = -3 + 2 * torch.randn(TOKENS, generator=torch.Generator().manual_seed(0))


def rounded(dtype: torch.dtype, units: float) -> torch.Tensor:
    """The scores with noise of so many machine epsilons of their spread a layer."""
    noise = torch.randn(TOKENS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return SCORES + units * LAYERS**0.5 * torch.finfo(dtype).eps * float(SCORES.std()) * noise


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_a_unit_is_what_rounding_makes_of_a_spread(dtype):
    # The log-softmax in float32 adds a little to what the layers do in float32.
    expected = {torch.bfloat16: (0.98, 1.02), torch.float32: (0.8, 1.02)}[dtype]
    assert expected[0] < rounding_units(SCORES.double(), rounded(dtype, 1.0), dtype, LAYERS) < expected[1]
    assert rounding_units(SCORES, SCORES, dtype, LAYERS) == 0
    # Scores that do not depend on the token are known to a part of their size.
    flat = torch.full((TOKENS,), -4.0)
    assert rounding_units(flat, flat + 1e-6, dtype, LAYERS) < 3


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_probe_refuses_more_than_rounding(dtype):
    first = torch.zeros(1)
    trainer, bound = [torch.cat([first, SCORES])], BOUNDS[dtype].probe
    check_probe(trainer, [torch.cat([first + 9, rounded(dtype, 0.9 * bound)])], dtype, LAYERS, "engine 1")
    undefined = SCORES.clone()
    undefined[7] = float("nan")
    for engine in (rounded(dtype, 1.3 * bound), undefined):
        with pytest.raises(SyncError, match=r"engine 1 and the trainer disagree .* same 10000 tokens") as caught:
            check_probe(trainer, [torch.cat([first, engine])], dtype, LAYERS, "engine 1")
    assert "nats a token" in str(caught.value)


def test_divergence_is_the_mean_of_k3():
    sampler, other = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0])
    expected = (math.exp(-0.5) - 1 + 0.5 + math.exp(1.0) - 1 - 1.0) / 2
    assert divergence(sampler, other) == pytest.approx(expected, rel=1e-6)
