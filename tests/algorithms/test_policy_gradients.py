"""Every algorithm against plain loops in float64, on ragged batches that are packed and cut in many ways.

Samples have failed rewards, truncated ends, tokens that nobody sampled in between, and groups of any size.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import policy_gradients as oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pentad.algorithms.gae import gae
from pentad.algorithms.make import make_algorithm
from pentad.algorithms.policy_gradient import PolicyGradient
from pentad.algorithms.protocol import Loss, Outputs, algorithm_state, load_algorithm_state
from pentad.algorithms.rewards import overlong_cost
from pentad.config.schema.algorithms import ALGORITHMS, GRPOSettings, PolicyGradientSettings
from pentad.samples.batch import Batch
from pentad.samples.trajectory import Trajectory

LONGEST = 12
NAMES = [name for name, made in ALGORITHMS.items() if issubclass(made, PolicyGradientSettings)]
# Of each algorithm its defaults, and what leads through every branch.
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "clip": {"clip_low": 0.05, "clip_high": 0.1, "entropy_coef": 0.02},
    "kl in loss": {"kl_coef": 0.3, "kl_in": "loss", "kl_estimator": "k2", "loss_mean": "sequence"},
    "kl in reward": {"kl_coef": 0.3, "kl_in": "reward", "kl_estimator": "k1", "loss_mean": "constant"},
    "adapted kl": {"kl_coef": 0.2, "kl_in": "loss", "kl_estimator": "k3", "kl_target": 0.05, "kl_gain": 0.5},
    "overlong": {"overlong_filter": True, "overlong_buffer": 0.5, "overlong_penalty": 0.7, "loss_mean": "sequence"},
    "rewards": {"normalize_rewards": True, "reward_clip": 0.8, "normalize_advantages": True},
}
OWN: dict[str, list[dict[str, Any]]] = {
    "grpo": [{"advantage_std": False}],
    "gspo": [{"advantage_std": False, "loss_mean": "token"}],
    "cispo": [{"clip_low": 0.1, "clip_high": 0.1}],
    "reinforce_pp": [{"group_baseline": True, "kl_coef": 0.2, "kl_in": "reward"}],
    "ppo": [
        {"gamma": 0.9, "gae_lambda": 0.7, "kl_coef": 0.1, "value_clip": 0.05},
        {"gae_lambda": 0.0, "value_clip": None, "normalize_advantages": False},
    ],
}
CASES = [(name, options) for name in NAMES for options in (*OPTIONS.values(), *OWN.get(name, []))]


@st.composite
def rollouts(draw: st.DrawFn) -> tuple[list[Trajectory], int]:
    """Groups of 1 to 4 samples and a seed for all numbers."""
    found = []
    for group in range(draw(st.integers(1, 4))):
        same = draw(st.booleans())
        for _ in range(draw(st.integers(1, 4))):
            sampled = draw(st.lists(st.booleans(), min_size=1, max_size=LONGEST))
            status = draw(st.sampled_from(["done", "done", "truncated", "failed"]))
            reward = 0.25 if same else draw(st.sampled_from([0.0, 0.5, 1.0, -2.0]))
            found.append(trajectory(sampled, group, len(found), 0.0 if status == "failed" else reward, status))
    return found, draw(st.integers(0, 2**31))


def trajectory(sampled: Sequence[bool], group: int, episode: int, reward: float, status: Any) -> Trajectory:
    mask = torch.tensor([False, *sampled])
    return Trajectory(
        tokens=torch.zeros(len(mask), dtype=torch.int64),
        sampled=mask,
        logprobs=torch.zeros(len(mask)),
        versions=torch.where(mask, 0, -1).to(torch.int32),
        group=group,
        episode=episode,
        reward=reward,
        status=status,
    )


class Case:
    """A batch with its columns, the policy's outputs, and the same as plain samples."""

    def __init__(self, trajectories: Sequence[Trajectory], seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        batch = Batch.from_trajectories(trajectories)
        count = batch.num_tokens
        old = (-torch.rand(count, generator=random) * 3) * batch.loss_mask
        for name, value in {
            "old_logprobs": old,
            "ref_logprobs": (old + torch.randn(count, generator=random) * 0.4) * batch.loss_mask,
            "values": torch.randn(count, generator=random) * batch.loss_mask,
            "importance_weights": torch.rand(count, generator=random) * 2,
        }.items():
            batch = batch.with_per_token(name, value)
        self.batch = batch

        def output(values: Tensor) -> Tensor:
            return (values.double() * batch.loss_mask).requires_grad_()

        self.logprobs = output(old + torch.randn(count, generator=random) * 0.3)
        self.entropies = output(torch.rand(count, generator=random))
        self.values = output(batch.per_token["values"] + torch.randn(count, generator=random) * 0.2)
        columns = {name: self.by_sample(value) for name, value in batch.per_token.items()}
        self.samples = [
            oracle.Sample(
                group=one.group,
                reward=one.reward,
                scored=one.status != "failed",
                truncated=one.status == "truncated",
                old=columns["old_logprobs"][number].tolist(),
                reference=columns["ref_logprobs"][number].tolist(),
                values=columns["values"][number].tolist(),
            )
            for number, one in enumerate(trajectories)
        ]
        self.weights = [part.tolist() for part in columns["importance_weights"]]

    def by_sample(self, values: Tensor, batch: Batch | None = None) -> list[Tensor]:
        """The trained tokens of each sequence."""
        parts, masks = values.split(self.batch.lengths), self.batch.loss_mask.split(self.batch.lengths)
        return [part[mask] for part, mask in zip(parts, masks, strict=True)]

    def loss(self, loss: Loss, credited: Batch, parts: Sequence[Sequence[int]]) -> Tensor:
        """The loss of a minibatch that is cut into microbatches."""
        total = torch.zeros((), dtype=torch.float64)
        places = torch.arange(credited.num_tokens).split(credited.lengths)
        for part in parts:
            chosen = torch.cat([places[number] for number in part])
            outputs = Outputs(self.logprobs[chosen], self.entropies[chosen], self.values[chosen])
            total = total + loss(outputs, credited.select(list(part)))[0]
        return total / loss.denominator(credited)


def cuts(count: int, seed: int) -> list[list[list[int]]]:
    """All in one, one by one, and some of a random order."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return [[list(range(count))], [[number] for number in order], [order[: count // 2 + 1], order[count // 2 + 1 :]]]


def close(got: Tensor, wanted: Tensor) -> None:
    scale = max(1.0, float(wanted.detach().abs().max())) if wanted.numel() else 1.0
    torch.testing.assert_close(got.double(), wanted.double(), rtol=1e-6, atol=1e-6 * scale)


def flat(numbers: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(list(chain.from_iterable(numbers)), dtype=torch.float64)


def gradients(loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    if not loss.requires_grad:
        return [torch.zeros_like(one) for one in inputs]
    found = torch.autograd.grad(loss, inputs, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(one) if grad is None else grad for one, grad in zip(inputs, found, strict=True)]


def check(name: str, options: dict[str, Any], trajectories: Sequence[Trajectory], seed: int) -> None:
    chosen = ALGORITHMS[name](name=name, **options)
    algorithm = make_algorithm(chosen, LONGEST)
    case, plain = Case(trajectories, seed), chosen.model_dump()
    credited = algorithm.credit(case.batch)
    advantages, returns = oracle.credit(case.samples, plain, LONGEST)
    close(torch.cat(case.by_sample(credited.per_token["advantages"])), flat(advantages))
    inputs = [case.logprobs, case.entropies, case.values]
    wanted = {
        "policy": oracle.policy_loss(
            case.samples,
            advantages,
            case.by_sample(case.logprobs),
            case.by_sample(case.entropies),
            case.weights,
            plain,
            LONGEST,
            plain["kl_coef"],
        )
    }
    if name == "ppo":
        close(torch.cat(case.by_sample(credited.per_token["returns"])), flat(returns))
        wanted["critic"] = oracle.value_loss(case.samples, returns, case.by_sample(case.values), plain)
    assert algorithm.losses().keys() == wanted.keys()
    for role, loss in algorithm.losses().items():
        assert loss.reads <= credited.per_token.keys() | credited.per_sequence.keys()
        expected = gradients(wanted[role], inputs)
        for parts in cuts(credited.num_sequences, seed):
            got = case.loss(loss, credited, [part for part in parts if part])
            close(got, wanted[role])
            for mine, theirs in zip(gradients(got, inputs), expected, strict=True):
                close(mine, theirs)
    assert isinstance(algorithm, PolicyGradient)
    assert algorithm.kl.value == pytest.approx(oracle.adapted(plain["kl_coef"], case.samples, plain), rel=1e-9)


def all_kinds() -> list[Trajectory]:
    """Groups of one sample, of equal rewards, with a failed and a truncated sample, and with a mask that has a hole."""
    rows = [
        (0, 5, 1.0, "done"),
        (1, 3, 1.0, "done"),
        (1, 12, 0.0, "truncated"),
        (1, 8, -0.5, "done"),
        (1, 4, 0.0, "failed"),
        (2, 2, 0.25, "done"),
        (2, 9, 0.25, "truncated"),
        (3, 1, 2.0, "done"),
        (3, 11, 0.5, "done"),
        (4, 3, 0.0, "failed"),
    ]
    made = [trajectory([True] * length, group, 0, reward, status) for group, length, reward, status in rows]
    return [*made, trajectory([False, True, True, False, False, True], 3, 0, 0.0, "done")]


@pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{name}-{number}" for number, (name, _) in enumerate(CASES)])
def test_credit_loss_and_gradient_equal_plain_loops(name, options):
    check(name, options, all_kinds(), seed=0)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_so_they_do_on_any_batch(name, data):
    options = data.draw(st.sampled_from([options for which, options in CASES if which == name]))
    check(name, options, *data.draw(rollouts()))


def test_weights_of_correction_multiply_the_surrogate_alone():
    case = Case(all_kinds(), seed=1)
    for name in NAMES:
        own = {"kl_coef": 0.1, "kl_in": "loss", "kl_estimator": "k3", "entropy_coef": 0.1}
        algorithm = make_algorithm(ALGORITHMS[name](name=name, **own), LONGEST)
        credited, loss = algorithm.credit(case.batch), algorithm.losses()["policy"]
        nothing = torch.zeros(case.batch.num_tokens)
        found = {
            factor: case.loss(loss, credited.with_per_token("importance_weights", nothing + factor), [range(11)])
            for factor in (0.0, 1.0, 2.0)
        }
        columns = {column: value for column, value in credited.per_token.items() if column != "importance_weights"}
        without = case.loss(loss, replace(credited, per_token=columns), [range(11)])
        torch.testing.assert_close(found[1.0], without)
        torch.testing.assert_close(found[2.0] - found[1.0], found[1.0] - found[0.0])
        assert found[0.0] != 0, "penalty and entropy are multiplied, too"
        assert found[1.0] != found[0.0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("distance", [1e4, -1e4])
def test_far_policies_give_no_overflow(name, distance):
    case = Case(all_kinds(), seed=2)
    algorithm = make_algorithm(ALGORITHMS[name](name=name, kl_coef=0.1, kl_in="loss", kl_estimator="k3"), LONGEST)
    credited = algorithm.credit(case.batch)
    logprobs = (case.logprobs.detach().float() + distance * case.batch.loss_mask).requires_grad_()
    outputs = Outputs(logprobs, torch.zeros_like(logprobs), case.values.float())
    value, metrics = algorithm.losses()["policy"](outputs, credited)
    (gradient,) = torch.autograd.grad(value, logprobs)
    assert value.isfinite() and gradient.isfinite().all()
    assert all(metric.total.isfinite() for metric in metrics.values())


def test_groups_of_equal_rewards_are_left_out_by_dynamic_sampling():
    def group(*rewards: float, failed: int = 0) -> list[Trajectory]:
        made = [trajectory([True], 0, 0, reward, "done") for reward in rewards]
        return [*made, *[trajectory([True], 0, 0, 0.0, "failed")] * failed]

    dapo, grpo = make_algorithm(ALGORITHMS["dapo"](name="dapo"), LONGEST), make_algorithm(GRPOSettings())
    for some, wanted in [
        (group(1.0, 0.0), True),
        (group(1.0, 1.0), False),
        (group(1.0, 1.0, failed=1), False),
        (group(1.0), False),
        (group(failed=3), False),
    ]:
        assert dapo.admit(some) is wanted
        assert grpo.admit(some) is True


def test_the_adapted_coefficient_is_kept():
    own = {"kl_coef": 0.2, "kl_target": 0.01, "kl_in": "reward"}
    first = make_algorithm(GRPOSettings(**own))
    case = Case(all_kinds(), seed=3)
    used = [float(first.credit(case.batch).per_sequence["kl_coef"][0]) for _ in range(3)]
    assert used == pytest.approx([0.2, 0.2 * 1.02, 0.2 * 1.02**2])
    second = make_algorithm(GRPOSettings(**own))
    load_algorithm_state(second, algorithm_state(first))
    assert float(second.credit(case.batch).per_sequence["kl_coef"][0]) == pytest.approx(0.2 * 1.02**3)
    fixed = make_algorithm(GRPOSettings(kl_coef=0.3))
    load_algorithm_state(fixed, algorithm_state(first))
    assert fixed.kl.value == 0.3, "a fixed coefficient is what the settings say"


def test_truncated_samples_are_not_counted():
    case = Case(all_kinds(), seed=4)
    for mean in ("token", "sequence", "constant"):
        plain, filtered = (
            make_algorithm(GRPOSettings(loss_mean=mean, overlong_filter=on), LONGEST) for on in (False, True)
        )
        without = case.batch.select([i for i, one in enumerate(case.samples) if not one.truncated])
        credited = filtered.credit(case.batch)
        assert filtered.losses()["policy"].denominator(credited) == plain.losses()["policy"].denominator(without)
        # Their rewards count: the advantages of others are what they were.
        kept = credited.loss_mask
        before = plain.credit(case.batch).per_token["advantages"]
        assert torch.equal(credited.per_token["advantages"], before * kept) and int(kept.sum()) < int(
            case.batch.loss_mask.sum()
        )


def test_what_needs_the_longest_response_says_so():
    for options in ({"loss_mean": "constant"}, {"overlong_buffer": 0.5}):
        algorithm = make_algorithm(GRPOSettings(**options))
        with pytest.raises(ValueError, match="longest response"):
            credited = algorithm.credit(Case(all_kinds(), seed=5).batch)
            algorithm.losses()["policy"].denominator(credited)


def test_estimation_by_hand():
    """Two rewards and values; lambda 0 looks one token ahead, lambda 1 to the end."""
    batch = Batch.from_trajectories([trajectory([True, False, True], 0, 0, 1.0, "done")])
    rewards, values = torch.tensor([0.0, 1.0, 9.0, 2.0]), torch.tensor([0.0, 0.5, 9.0, 4.0])
    for lam, wanted in ((0.0, [0.0, 1 + 0.5 * 4 - 0.5, 0.0, 2.0 - 4]), (1.0, [0.0, 1 + 0.5 * 2 - 0.5, 0.0, -2.0])):
        advantages, returns = gae(rewards, values, batch, gamma=0.5, gae_lambda=lam)
        assert advantages.tolist() == wanted
        assert returns.tolist() == [0.0, wanted[1] + 0.5, 0.0, wanted[3] + 4]


def test_cost_of_length_by_hand():
    """Free up to 8 of 12 tokens; then a quarter each; never more than 1, however long several turns make it."""
    lengths = torch.tensor([0.0, 8.0, 9.0, 11.0, 12.0, 13.0, 40.0])
    assert overlong_cost(lengths, 12, 4).tolist() == [0, 0, -0.25, -0.75, -1, -1, -1]
