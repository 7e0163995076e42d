import pytest

from pentad.data.sampler import PromptSampler
from pentad.errors import UserError


def test_each_epoch_takes_every_row_once_in_another_order() -> None:
    sampler = PromptSampler(range(10), seed=1)
    epochs = [sampler.next(10) for _ in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_order_depends_on_the_seed_only() -> None:
    assert PromptSampler(range(50), 1).next(120) == PromptSampler(range(50), 1).next(120)
    assert PromptSampler(range(50), 1).next(50) != PromptSampler(range(50), 2).next(50)


def test_how_many_are_taken_at_once_does_not_change_the_order() -> None:
    one, other = PromptSampler(range(7), 3), PromptSampler(range(7), 3)
    assert one.next(20) == [i for n in (1, 6, 3, 10) for i in other.next(n)]


def test_without_shuffle_the_rows_come_in_order() -> None:
    sampler = PromptSampler(range(3), seed=1, shuffle=False)
    assert sampler.next(7) == [0, 1, 2, 0, 1, 2, 0]
    assert sampler.epoch == 2


@pytest.mark.parametrize("taken", [0, 3, 10, 17, 20])
def test_a_sampler_goes_on_where_another_stood(taken: int) -> None:
    sampler = PromptSampler(range(10), seed=5)
    sampler.next(taken)
    resumed = PromptSampler(range(10), seed=5)
    resumed.load_state_dict(sampler.state_dict())
    assert resumed.next(25) == sampler.next(25)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (PromptSampler(range(11), 5), "number of training rows was 10"),
        (PromptSampler(range(10), 6), "experiment.seed was 5"),
        (PromptSampler(range(10), 5, shuffle=False), "data.shuffle was True"),
    ],
)
def test_state_of_another_order_is_refused(other: PromptSampler, named: str) -> None:
    with pytest.raises(UserError, match=named):
        other.load_state_dict(PromptSampler(range(10), 5).state_dict())


def test_no_rows() -> None:
    with pytest.raises(ValueError, match="no rows"):
        PromptSampler([], 1)
