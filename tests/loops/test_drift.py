"""A divergence that is too large ends a run, one that is unusual is told of once."""

import pytest
import torch

from pentad.loops.drift import DriftWatch
from pentad.weights.proof import BOUNDS, SyncError


def watched(values: list[float], dtype: torch.dtype = torch.bfloat16, temperature: float = 1.0) -> list[str]:
    told: list[str] = []
    watch = DriftWatch(dtype, temperature, told.append)
    for kl in values:
        watch.check(kl)
    return told


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_bounds(dtype):
    bounds = BOUNDS[dtype]
    assert watched([0.0, 0.99 * bounds.warned] * 3, dtype) == []
    (told,) = watched([1.01 * bounds.warned, 2 * bounds.warned], dtype)
    assert f"rollout/kl is {1.01 * bounds.warned:.3g}" in told
    for kl in (1.01 * bounds.refused, float("nan")):
        with pytest.raises(SyncError, match="likely the engine computes in lower precision"):
            watched([kl], dtype)


def test_low_temperatures_enlarge_rounding():
    bounds = BOUNDS[torch.bfloat16]
    assert watched([3.9 * bounds.warned], temperature=0.5) == []
    assert watched([1.1 * bounds.warned], temperature=2.0)
    with pytest.raises(SyncError):
        watched([4.1 * bounds.refused], temperature=0.5)


def test_growth_is_told_once_where_it_lasts():
    first = BOUNDS[torch.bfloat16].warned / 20
    assert watched([first, 11 * first, 11 * first, first, 11 * first]) == []
    (told,) = watched([first] + [11 * first] * 5)
    assert "more than 10 times its first value" in told
    assert watched([first / 1000] + [first] * 5) == [], "rounding far below what is unusual"


def test_goes_on_after_a_pause():
    first, told = BOUNDS[torch.bfloat16].warned / 20, []
    before = DriftWatch(torch.bfloat16, 1.0, told.append)
    for kl in (first, 11 * first, 11 * first):
        before.check(kl)
    after = DriftWatch(torch.bfloat16, 1.0, told.append)
    after.load_state_dict(before.state_dict())
    after.check(11 * first)
    assert len(told) == 1
