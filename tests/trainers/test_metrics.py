"""Metrics of a loss, whose names may differ between ranks and microbatches."""

import pytest
import torch
from ranks import Rank, run_on

from pentad.algorithms.protocol import Mean
from pentad.errors import UserError
from pentad.layout import Layout


def sums(rank: Rank, reports: list[list[list[tuple[str, float, float]]]]) -> dict[str, tuple[float, float]]:
    """What all ranks make of the metrics of each microbatch of each data-parallel rank."""
    from pentad.trainers.megatron.last_stage import as_pairs, is_last_stage, sum_over_microbatches

    mine = reports[rank.groups.dp.rank()] if is_last_stage(rank.groups) else []
    results = [as_pairs({name: Mean(torch.tensor(total), count) for name, total, count in part}) for part in mine]
    return sum_over_microbatches(results, rank.groups, torch.device("cpu"))


@pytest.mark.parametrize("layout", [Layout(data=2), Layout(data=2, pipeline=2)], ids=str)
def test_metrics_are_summed_by_name(layout: Layout) -> None:
    first = [[("train/loss", 1.0, 2.0), ("train/short", 10.0, 1.0)], [("train/loss", 2.0, 3.0)]]
    second = [[("train/loss", 4.0, 5.0), ("train/tall", 100.0, 4.0)]]
    expected = {"train/loss": (7.0, 10.0), "train/short": (10.0, 1.0), "train/tall": (100.0, 4.0)}
    assert run_on(layout, sums, [first, second]) == [expected] * layout.world


def test_a_name_that_is_none_is_refused() -> None:
    from pentad.trainers.megatron.last_stage import as_pairs

    with pytest.raises(UserError, match="'kl'"):
        as_pairs({"kl": Mean(torch.tensor(1.0), 1.0)})
