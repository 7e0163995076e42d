import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pentad.samples.batch import Batch
from pentad.samples.completion import Completion
from pentad.samples.trajectory import Trajectory


@pytest.fixture
def batch() -> Batch:
    trajectories = []
    for number, (prompt, response, version) in enumerate([(2, 1, 3), (1, 3, 4), (3, 2, 3)]):
        completion = Completion(
            response_tokens=torch.arange(response) + 100,
            response_logprobs=-torch.arange(1, response + 1, dtype=torch.float32),
            versions=torch.full((response,), version, dtype=torch.int32),
            finish_reason="stop",
        )
        made = Trajectory.of_completion(torch.arange(prompt), completion, group=number // 2, episode=7 + number)
        trajectories.append(replace(made, reward=[1, 0.5, 0][number]))
    return Batch.from_trajectories(trajectories)


def test_each_value_stands_at_its_token(batch: Batch) -> None:
    assert batch.tokens.tolist() == [0, 1, 100, 0, 100, 101, 102, 0, 1, 2, 100, 101]
    assert batch.cu_seqlens.tolist() == [0, 3, 7, 12]
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.loss_mask.int().tolist() == [0, 0, 1, 0, 1, 1, 1, 0, 0, 0, 1, 1]
    assert batch.per_token["rollout_logprobs"].tolist() == [0, 0, -1, 0, -1, -2, -3, 0, 0, 0, -1, -2]
    assert batch.per_sequence["rewards"].tolist() == [1, 0.5, 0]
    assert batch.per_sequence["rewards"].dtype == torch.float32
    assert batch.per_sequence["weight_versions"].tolist() == [3, 4, 3]
    assert batch.per_sequence["group_ids"].tolist() == [0, 0, 1]
    assert batch.sample_ids.tolist() == [7, 8, 9]
    assert (batch.num_sequences, batch.num_tokens, batch.lengths) == (3, 12, [3, 4, 5])


def test_positions_and_sequence_ids(batch: Batch) -> None:
    assert batch.position_ids().tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 4]
    assert batch.position_ids().dtype == torch.int64
    assert batch.sequence_ids().tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2]


@settings(max_examples=50, deadline=None)
@given(data=st.data(), lengths=st.lists(st.integers(2, 9), min_size=1, max_size=8))
def test_select_agrees_with_python_slices(data: st.DataObject, lengths: list[int]) -> None:
    pairs = [(torch.randint(99, (1,)), torch.randint(99, (n - 1,))) for n in lengths]
    batch = Batch.from_sequences(pairs).with_per_token("advantages", torch.randn(sum(lengths)))
    indices = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=10))
    chosen = batch.select(indices)
    starts = batch.cu_seqlens.tolist()
    for name, get in {
        "tokens": lambda b: b.tokens,
        "mask": lambda b: b.loss_mask,
        "advantages": lambda b: b.per_token["advantages"],
    }.items():
        expected = [x for i in indices for x in get(batch)[starts[i] : starts[i + 1]].tolist()]
        assert get(chosen).tolist() == expected, name
    assert chosen.lengths == [lengths[i] for i in indices]
    assert chosen.sample_ids.tolist() == indices


def test_with_per_token_leaves_the_old_batch_alone(batch: Batch) -> None:
    assert "advantages" in batch.with_per_token("advantages", torch.zeros(12)).per_token
    assert "advantages" not in batch.per_token


def test_pickle_round_trip_of_a_batch(batch: Batch) -> None:
    again = pickle.loads(pickle.dumps(batch))
    assert again.tokens.equal(batch.tokens)
    assert again.per_token["rollout_logprobs"].equal(batch.per_token["rollout_logprobs"])
    again.per_token["rollout_logprobs"].add_(1)  # must be writable


def test_unpickles_from_read_only_buffers(batch: Batch) -> None:
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(batch, protocol=5, buffer_callback=buffers.append)
    again = pickle.loads(data, buffers=[bytes(b) for b in buffers])  # as they come out of Ray's object store
    again.tokens.add_(1)
    assert again.tokens.equal(batch.tokens + 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": torch.zeros(12, dtype=torch.int32)}, "tokens must be torch.int64"),
        ({"tokens": torch.zeros(3, 4, dtype=torch.int64)}, "tokens must be one-dimensional"),
        ({"cu_seqlens": torch.tensor([0, 3, 7, 11], dtype=torch.int32)}, "from 0 to 12"),
        ({"cu_seqlens": torch.tensor([0, 7, 7, 12], dtype=torch.int32)}, "rise strictly; it does not at sequence 1"),
        ({"cu_seqlens": torch.tensor([0, 7, 3, 12], dtype=torch.int32)}, "at sequence 1"),
        ({"cu_seqlens": torch.zeros(0, dtype=torch.int32)}, "leading 0"),
        ({"loss_mask": torch.ones(12, dtype=torch.bool)}, "first token of sequence 0"),
        ({"loss_mask": torch.ones(11, dtype=torch.bool)}, r"loss_mask must be of shape \[12\]"),
        ({"sample_ids": torch.zeros(2, dtype=torch.int64)}, r"sample_ids must be of shape \[3\]"),
        ({"per_token": {"a": torch.zeros(12, dtype=torch.bfloat16)}}, "per_token\\['a'\\] must be torch.float32"),
        ({"per_sequence": {"r": torch.zeros(4)}}, "per_sequence\\['r'\\]"),
        ({"per_sequence": {"r": [0, 0, 0]}}, "must be a tensor, not list"),
    ],
)
def test_inconsistent_parts_are_refused(batch: Batch, change: dict, message: str) -> None:
    parts = {name: getattr(batch, name) for name in ("tokens", "cu_seqlens", "loss_mask", "sample_ids")}
    with pytest.raises(ValueError, match=message):
        Batch(**{**parts, **change})


def test_bad_arguments_are_refused(batch: Batch) -> None:
    with pytest.raises(IndexError, match="sequence 3"):
        batch.select([3])
    with pytest.raises(IndexError, match="sequence -1"):
        batch.select([-1])


def test_empty_batch_is_consistent(batch: Batch) -> None:
    empty = batch.select([])
    assert (empty.num_sequences, empty.num_tokens) == (0, 0)
    assert empty.position_ids().tolist() == []


def trajectory(number: int, response: int, **changes: object) -> Trajectory:
    """Two prompt tokens and some sampled ones, each sampled by another version."""
    length = 2 + response
    sampled = torch.arange(length) >= 2
    versions = torch.where(sampled, torch.arange(length) + number, torch.tensor(-1)).to(torch.int32)
    values = {
        "tokens": torch.arange(length) + 10 * number,
        "sampled": sampled,
        "logprobs": -0.5 * sampled,
        "versions": versions,
        "group": number // 2,
        "episode": 6 + number,
        "reward": float(number),
    }
    return Trajectory(**{**values, **changes})


def test_trajectories_become_a_batch() -> None:
    batch = Batch.from_trajectories([trajectory(0, 3), trajectory(1, 1, status="failed"), trajectory(2, 2)])
    assert batch.lengths == [5, 3, 4]
    assert batch.tokens.tolist() == [0, 1, 2, 3, 4, 10, 11, 12, 20, 21, 22, 23]
    assert batch.sample_ids.tolist() == [6, 7, 8]
    # A failed trajectory is not trained on; its log-probs stay where they are.
    assert batch.loss_mask.tolist() == [False] * 2 + [True] * 3 + [False] * 3 + [False] * 2 + [True] * 2
    assert batch.per_sequence["scored"].tolist() == [True, False, True]
    assert batch.per_sequence["rewards"].tolist() == [0.0, 1.0, 2.0]
    assert batch.per_sequence["group_ids"].tolist() == [0, 0, 1]
    assert batch.per_sequence["weight_versions"].tolist() == [2, 3, 4], "the oldest of each"
    with pytest.raises(ValueError, match="at least one"):
        Batch.from_trajectories([])


@pytest.mark.parametrize(
    "changes",
    [
        {"sampled": torch.tensor([True, False, True])},
        {"versions": torch.tensor([-1, -1, -1], dtype=torch.int32)},
        {"logprobs": torch.zeros(2)},
        {"tokens": torch.tensor([1])},
        {"extras": {"experts": torch.zeros(2, 1)}},
    ],
    ids=["first token sampled", "version without sampling", "length", "one token", "extras"],
)
def test_trajectory_parts_must_agree(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        trajectory(0, 1, **changes)
