"""A synchronisation that went wrong is refused, and says which tensor."""

import pytest
import torch

from pentad.weights.proof import PROBE_MEAN_TOLERANCE, PROBE_TOLERANCE, SyncError, check_checksums, check_probe

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


def test_probe_returns_the_largest_difference():
    trainer = [torch.tensor([0.0, -1.0, -2.0]), torch.tensor([0.0, -3.0])]
    engine = [trainer[0], trainer[1] + torch.tensor([0.0, 2e-4])]
    assert check_probe(trainer, engine, torch.float32, "engine 0") == pytest.approx(2e-4, rel=0.01)


@pytest.mark.parametrize("dtype", PROBE_TOLERANCE, ids=str)
def test_probe_refuses_more_than_rounding(dtype):
    one, all_tokens, undefined = torch.zeros(10_000), torch.zeros(10_000), torch.zeros(10_000)
    one[7] = 1.01 * PROBE_TOLERANCE[dtype]
    all_tokens += 1.01 * PROBE_MEAN_TOLERANCE[dtype]
    undefined[7] = float("nan")
    for difference in (one, all_tokens, undefined):
        with pytest.raises(SyncError, match="engine 1 and the trainer disagree"):
            check_probe([torch.zeros(10_000)], [difference], dtype, "engine 1")
