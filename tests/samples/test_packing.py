import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pentad.errors import UserError
from pentad.samples.packing import Plan, plan_microbatches, split_minibatches


def check(plan: Plan, lengths: list[int], ranks: int, max_tokens: int) -> None:
    """The invariant of a plan, from its words."""
    assert len(plan.microbatches) == ranks
    assert len({len(rank) for rank in plan.microbatches}) == 1
    microbatches = [microbatch for rank in plan.microbatches for microbatch in rank]
    assert sorted(i for microbatch in microbatches for i in microbatch) == list(range(len(lengths)))
    tokens = [sum(lengths[i] for i in microbatch) for microbatch in microbatches]
    assert all(microbatches)
    assert max(tokens) == plan.max_tokens_used <= max_tokens


@settings(max_examples=300, deadline=None)
@given(
    ranks=st.integers(1, 8),
    lengths=st.lists(st.integers(1, 100), min_size=8, max_size=80),
    max_tokens=st.integers(100, 400),
    quadratic=st.sampled_from([0.0, 1e-4, 1e-1]),
)
def test_invariant(ranks: int, lengths: list[int], max_tokens: int, quadratic: float) -> None:
    try:
        plan = plan_microbatches(lengths, ranks, max_tokens, quadratic=quadratic)
    except UserError as error:
        assert len(lengths) % ranks != 0  # a multiple can always be packed
        needed = int(error.fix.split("at least ")[1].split(",")[0])
        check(plan_microbatches(lengths, ranks, needed, quadratic=quadratic), lengths, ranks, needed)
    else:
        check(plan, lengths, ranks, max_tokens)
        assert plan == plan_microbatches(lengths, ranks, max_tokens, quadratic=quadratic)


@settings(max_examples=100, deadline=None)
@given(ranks=st.integers(1, 4), pairs=st.integers(1, 12), seed=st.integers(0, 1000))
def test_what_is_together_is_in_one_microbatch(ranks: int, pairs: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    lengths, numbers = random.integers(1, 50, 2 * pairs * ranks), random.permutation(np.repeat(range(pairs * ranks), 2))
    plan = plan_microbatches(lengths.tolist(), ranks, 100, together=numbers.tolist())
    check(plan, lengths.tolist(), ranks, 100)
    found = [set(numbers[list(microbatch)]) for rank in plan.microbatches for microbatch in rank]
    assert sum(map(len, found)) == pairs * ranks, "a pair is in two microbatches"


def test_a_pair_longer_than_a_microbatch_is_refused() -> None:
    with pytest.raises(UserError, match="has 120 tokens"):
        plan_microbatches([60, 60, 10, 10], 1, 100, together=[0, 0, 1, 1])


@pytest.mark.parametrize(("sequences", "ranks", "max_tokens"), [(512, 4, 4096), (1024, 8, 16384), (512, 4, 2100)])
def test_long_tailed_lengths_are_balanced_and_tight(sequences: int, ranks: int, max_tokens: int) -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(6, 0.8, sequences), 10, 2048).astype(int).tolist()
    plan = plan_microbatches(lengths, ranks, max_tokens)
    check(plan, lengths, ranks, max_tokens)
    assert plan.balance < 1.02
    assert plan.num_microbatches <= sum(lengths) / max_tokens / ranks * 1.1 + 1


def test_balance_counts_the_quadratic_term() -> None:
    # One long and many short: by tokens they are equal, by attention the long one is far more work.
    lengths = [1000] + [100] * 10
    balanced = plan_microbatches(lengths, 2, 10_000, quadratic=1e-2)
    with_long = next(m for rank in balanced.microbatches for m in rank if 0 in m)
    assert with_long == (0,)
    assert balanced.balance == pytest.approx((1000 + 1e-2 * 1000**2) * 2 / (1000 + 1e4 + 10 * (100 + 1e2)))


def test_a_group_of_equal_sequences_is_spread() -> None:
    plan = plan_microbatches([500] * 8 + [10] * 8, ranks=2, max_tokens=4096)
    for rank in plan.microbatches:
        assert sum(i < 8 for microbatch in rank for i in microbatch) == 4


def test_a_tight_set_is_packed_without_an_extra_microbatch() -> None:
    # Only pairs of (60, 40) fit; spreading by cost alone puts 60s and 40s together wrongly or needs more bins.
    plan = plan_microbatches([60, 40] * 6, ranks=2, max_tokens=100)
    assert plan.num_microbatches == 3
    assert plan.max_tokens_used == 100


def test_too_long_a_sequence_names_the_setting_and_the_smallest_value() -> None:
    with pytest.raises(UserError, match=r"sequence 1 has 5000 tokens.*tokens_per_microbatch=4096") as caught:
        plan_microbatches([10, 5000, 4500], 2, 4096)
    assert caught.value.fix == "set trainer.tokens_per_microbatch to at least 5000"


def test_fewer_sequences_than_ranks_is_refused() -> None:
    with pytest.raises(UserError, match="3 sequences cannot occupy 4") as caught:
        plan_microbatches([1, 2, 3], 4, 100)
    assert "trainer.prompts_per_step" in caught.value.fix
    assert "allocation" in caught.value.fix


def test_what_would_leave_a_microbatch_empty_is_refused_with_a_value_that_works() -> None:
    with pytest.raises(UserError, match="without leaving one empty") as caught:
        plan_microbatches([90, 90, 90], 2, 100)
    assert "at least 180" in caught.value.fix
    check(plan_microbatches([90, 90, 90], 2, 180), [90, 90, 90], 2, 180)


@given(
    ranks=st.integers(1, 6),
    multiple=st.integers(1, 3),
    lengths=st.lists(st.integers(1, 50), min_size=18, max_size=60),
)
def test_any_number_is_packed_where_any_two_fit(ranks: int, multiple: int, lengths: list[int]) -> None:
    plan = plan_microbatches(lengths, ranks, 2 * max(lengths), multiple=multiple)
    assert plan.num_microbatches % multiple == 0
    assert sorted(i for rank in plan.microbatches for bin in rank for i in bin) == list(range(len(lengths)))


def test_arguments_out_of_range() -> None:
    with pytest.raises(ValueError, match="sequence 1 has 0 tokens"):
        plan_microbatches([1, 0], 1, 10)
    with pytest.raises(ValueError, match="must be positive"):
        plan_microbatches([1], 0, 10)


@given(num_samples=st.integers(1, 60), parts=st.integers(1, 8))
def test_minibatches_differ_by_one_sample_at_most(num_samples: int, parts: int) -> None:
    if parts > num_samples:
        with pytest.raises(UserError, match=r"algorithm\.optimizer_steps"):
            split_minibatches(num_samples, parts)
        return
    minibatches = split_minibatches(num_samples, parts)
    assert [i for minibatch in minibatches for i in minibatch] == list(range(num_samples))
    sizes = [len(minibatch) for minibatch in minibatches]
    assert len(sizes) == parts
    assert max(sizes) - min(sizes) <= 1


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=12), parts=st.integers(1, 5))
def test_minibatches_keep_groups_whole(sizes: list[int], parts: int) -> None:
    group_ids = [group for group, size in enumerate(sizes) for _ in range(size)]
    if parts > len(sizes):
        with pytest.raises(UserError, match="prompts"):
            split_minibatches(len(group_ids), parts, group_ids)
        return
    minibatches = split_minibatches(len(group_ids), parts, group_ids)
    assert len(minibatches) == parts
    assert sorted(i for minibatch in minibatches for i in minibatch) == list(range(len(group_ids)))
    groups = [{group_ids[i] for i in minibatch} for minibatch in minibatches]
    assert sum(len(group) for group in groups) == len(sizes)
    assert all(groups)


def test_minibatches_of_equal_groups_are_equal() -> None:
    group_ids = [g for g in range(16) for _ in range(8)]
    assert [len(m) for m in split_minibatches(128, 4, group_ids)] == [32] * 4
