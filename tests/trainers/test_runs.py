"""Where keys are gathered, every token is held once, sees its own sequence, and ranks have the same work."""

import random

import pytest
import torch

from pentad.trainers.megatron.runs import KeyBounds, in_order, runs_of

CPU = torch.device("cpu")
RANKS = (1, 2, 3, 4)


@pytest.mark.parametrize("method", ["a2a", "all_gather"])
@pytest.mark.parametrize("ranks", RANKS)
def test_every_token_is_held_once(ranks, method):
    tokens = 24 * ranks
    held = [list(runs_of(tokens, rank, ranks, method)) for rank in range(ranks)]
    places = [place for runs in held for run in runs for place in run]
    assert sorted(places) == list(range(tokens))
    assert {sum(map(len, runs)) for runs in held} == {24}
    if method == "a2a":
        assert places == list(range(tokens))
        return
    assert in_order(torch.tensor(places), ranks).tolist() == list(range(tokens))
    # One sequence of the whole pack: a query at place n sees n + 1 keys.
    assert len({sum(place + 1 for run in runs for place in run) for runs in held}) == 1


def seen_by_each_token(lengths):
    """Token -> the tokens that it sees, one by one."""
    sequence = [number for number, length in enumerate(lengths) for _ in range(length)]
    return {
        place: [other for other in range(place + 1) if sequence[other] == sequence[place]]
        for place in range(len(sequence))
    }


def seen_by_bounds(run, bounds):
    """The same, as the bounds of a run say it."""
    found, query, key = {}, run.start, bounds.keys.start
    for queries, keys in zip(bounds.query_lengths, bounds.key_lengths, strict=True):
        for number in range(queries):
            found[query + number] = list(range(key, key + keys - queries + number + 1))
        query, key = query + queries, key + keys
    assert query == run.stop and key == bounds.keys.stop
    return found


@pytest.mark.parametrize("ranks", RANKS)
def test_queries_see_the_keys_of_their_sequence_up_to_their_place(ranks):
    chance, total = random.Random(ranks), 48
    for sequences in (1, 2, 5, 12, total):
        cuts = sorted(chance.sample(range(1, total), sequences - 1))
        lengths = [stop - start for start, stop in zip([0, *cuts], [*cuts, total], strict=True)]
        expected, found = seen_by_each_token(lengths), {}
        for rank in range(ranks):
            for run in runs_of(total, rank, ranks, "all_gather"):
                bounds = KeyBounds.of(run, lengths, CPU)
                found |= seen_by_bounds(run, bounds)
                for tensor, sizes in (
                    (bounds.cu_seqlens_q, bounds.query_lengths),
                    (bounds.cu_seqlens_k, bounds.key_lengths),
                ):
                    assert tensor.dtype == torch.int32
                    assert tensor.tolist() == [sum(sizes[:number]) for number in range(len(sizes) + 1)]
        assert found == expected
