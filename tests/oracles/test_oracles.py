"""The oracles against calculations that are simpler still: gradients in closed form, AdamW by its formula, numpy."""

import json
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import grpo
import losses
import numpy as np
import pytest
import torch
from torch import Tensor, nn

VOCABULARY = 4
RECIPE = grpo.Recipe(
    lr=0.3, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.2, grad_clip=0.05, temperature=0.7, clip_low=0.1, kl_coef=0.1
)


class Bigram(nn.Module):
    """Logits of the next token: a row of a table for each token, plus a vector."""

    def __init__(self, table: np.ndarray, bias: np.ndarray) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.tensor(table, dtype=torch.float32))
        self.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float32))

    def forward(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids] + self.bias)


def start() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.normal(size=(VOCABULARY, VOCABULARY)), random.normal(size=VOCABULARY)


def recording(steps: int = 3, groups: int = 4, n: int = 3) -> list[grpo.Sample]:
    """Random tokens; rewards of which some groups have equal ones."""
    random = np.random.default_rng(1)

    def tokens(most: int) -> list[int]:
        return random.integers(0, VOCABULARY, random.integers(1, most + 1)).tolist()

    made = []
    for step in range(1, steps + 1):
        for group in range(groups):
            prompt = tokens(3)
            rewards = [0.5] * n if group == 1 else random.random(n).round(2).tolist()
            made += [grpo.Sample(step, group, prompt, tokens(6), reward) for reward in rewards]
    return made


def pairs(sample: grpo.Sample) -> list[tuple[int, int]]:
    """Each token of the response with the one before it."""
    return list(pairwise(sample.prompt + sample.response))[len(sample.prompt) - 1 :]


def by_hand(samples: list[grpo.Sample], recipe: grpo.Recipe, fault: str = "") -> list[list[tuple[float, float]]]:
    """The same in numpy: the gradient of a token's log-prob is (its one-hot - the distribution) / temperature.

    Args:
        fault: what is done wrong: `old` log-probs are taken anew for each optimizer step; the `reference` is the policy
            before the step.
    """
    table, bias = start()
    weights = [table, bias]
    moments = [[np.zeros_like(one), np.zeros_like(one)] for one in weights]
    first, count, reported = [one.copy() for one in weights], 0, []

    def distribution(token: int, of: list[np.ndarray]) -> np.ndarray:
        logits = (of[0][token] + of[1]) / recipe.temperature
        return np.exp(logits) / np.exp(logits).sum()

    for step in sorted({sample.step for sample in samples}):
        batch = [sample for sample in samples if sample.step == step]
        before = [one.copy() for one in weights]
        groups = sorted({sample.group for sample in batch})
        updates = []
        for part in np.split(np.array(groups), recipe.optimizer_steps):
            old = [one.copy() for one in weights] if fault == "old" else before
            reference = before if fault == "reference" else first
            gradient, loss, tokens = [np.zeros_like(one) for one in weights], 0.0, 0
            for sample in (sample for sample in batch if sample.group in part):
                rewards = np.array([other.reward for other in batch if other.group == sample.group])
                spread = rewards.std(ddof=1)
                advantage = (sample.reward - rewards.mean()) / (spread + 1e-6) if spread > 1e-12 else 0.0
                for token, following in pairs(sample):
                    now = distribution(token, weights)
                    ratio = now[following] / distribution(token, old)[following]
                    away = distribution(token, reference)[following] / now[following]
                    bounded = np.clip(ratio, 1 - recipe.clip_low, 1 + recipe.clip_high)
                    loss -= min(ratio * advantage, bounded * advantage)
                    loss += recipe.kl_coef * (away - 1 - np.log(away))
                    slope = -ratio * advantage if ratio * advantage <= bounded * advantage else 0.0
                    slope += recipe.kl_coef * (1 - away)
                    change = slope * (np.eye(VOCABULARY)[following] - now) / recipe.temperature
                    gradient[0][token] += change
                    gradient[1] += change
                    tokens += 1
            gradient = [one / tokens for one in gradient]
            norm = float(np.sqrt(sum((one**2).sum() for one in gradient)))
            updates.append((loss / tokens, norm))
            count += 1
            for number, (one, change) in enumerate(zip(weights, gradient, strict=True)):
                change = change * min(1.0, recipe.grad_clip / (norm + 1e-6))
                m, v = moments[number]
                m[:] = recipe.betas[0] * m + (1 - recipe.betas[0]) * change
                v[:] = recipe.betas[1] * v + (1 - recipe.betas[1]) * change**2
                one *= 1 - recipe.lr * (recipe.weight_decay if one.ndim > 1 else 0.0)
                one -= (
                    recipe.lr
                    * (m / (1 - recipe.betas[0] ** count))
                    / (np.sqrt(v / (1 - recipe.betas[1] ** count)) + recipe.eps)
                )
        reported.append(updates)
    return reported


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_grpo_equals_the_closed_form(steps, tmp_path):
    recipe, file = replace(RECIPE, optimizer_steps=steps), tmp_path / "recording.jsonl"
    grpo.write(recording(), file)
    assert grpo.read(file) == recording()
    found = grpo.train(Bigram(*start()), grpo.read(file), recipe)
    expected = by_hand(recording(), recipe)
    assert [step.step for step in found] == [1, 2, 3]
    for step, updates in zip(found, expected, strict=True):
        np.testing.assert_allclose(step.updates, updates, rtol=1e-4, atol=1e-6)
        assert step.loss == pytest.approx(np.mean([loss for loss, _ in updates]), rel=1e-4, abs=1e-6)
        assert step.grad_norm == pytest.approx(np.mean([norm for _, norm in updates]), rel=1e-4)


@pytest.mark.parametrize("fault", ["old", "reference"])
def test_what_a_loop_may_do_wrong_is_seen(fault):
    """Old log-probs taken anew for each minibatch, and a reference that moves, each change what is reported."""
    right, wrong = (np.array(by_hand(recording(), RECIPE, kind)) for kind in ("", fault))
    assert np.abs(right - wrong).max() > 1e-2


def test_minibatches_are_whole_groups():
    batch = [sample for sample in recording() if sample.step == 1]
    parts = grpo.minibatches(batch, 2)
    assert [[batch[index].group for index in part] for part in parts] == [[0] * 3 + [1] * 3, [2] * 3 + [3] * 3]
    with pytest.raises(ValueError, match="4 groups cannot be divided equally by 3"):
        grpo.minibatches(batch, 3)


def test_the_program_prints_a_line_a_step(tiny_models, tmp_path, capsys):
    samples = [replace(sample, response=[*sample.response, 0]) for sample in recording(steps=2, groups=2, n=2)]
    grpo.write(samples, tmp_path / "recording.jsonl")
    directory = tiny_models("qwen2").directory
    grpo.main(str(directory), str(tmp_path / "recording.jsonl"), json.dumps({"lr": 1e-3, "kl_coef": 0.1}))
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = grpo.train(grpo.load(directory), samples, grpo.Recipe(lr=1e-3, kl_coef=0.1))
    assert [(row["step"], row["loss"], row["grad_norm"]) for row in printed] == [
        (step.step, pytest.approx(step.loss, rel=1e-5, abs=1e-7), pytest.approx(step.grad_norm, rel=1e-5))
        for step in expected
    ]
    assert all(len(row["updates"]) == 2 for row in printed)


def test_advantages_equal_numpy():
    random = np.random.default_rng(0)
    groups = np.array([7, 3, 7, 100, 3, 7, 7, 3, 50, 50])
    rewards = random.normal(size=len(groups))
    rewards[groups == 50] = 0.1
    for divide in (True, False):
        found = np.array(losses.advantages(rewards.tolist(), groups.tolist(), divide_by_std=divide))
        for group in (3, 7):
            mine = rewards[groups == group]
            scale = mine.std(ddof=1) + 1e-6 if divide else 1.0
            np.testing.assert_allclose(found[groups == group], (mine - mine.mean()) / scale)
        assert not found[(groups == 50) | (groups == 100)].any()


def test_kl_estimates_average_to_the_divergence():
    """Over all outcomes; k2 only where the distributions are near each other."""
    p, q = (torch.tensor(values).double().log_softmax(-1) for values in ([0.1, 0.5, -0.3], [0.15, 0.45, -0.33]))
    exact = float((p.exp() * (p - q)).sum())
    for estimator, rel in (("k1", 1e-9), ("k2", 0.05), ("k3", 1e-9)):
        terms = [p[i].exp() * losses.kl(p[i], q[i], estimator) for i in range(3)]
        assert float(sum(terms)) == pytest.approx(exact, rel=rel)
