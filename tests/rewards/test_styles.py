"""Rewards written for verl, TRL, AReaL, SkyRL and Trinity-RFT run unchanged: each gets what its project gives it."""

from pathlib import Path
from typing import Any

import pytest

from pentad.config.schema.reward import RewardSettings
from pentad.rewards.pool import RewardPool
from pentad.rewards.types import RewardItem

# Each as its project's documentation writes them; none knows of Pentad.
MODULE = """
import re, asyncio
from typing import Any, Optional

# verl: custom_reward_function, and the reward manager for batches
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    if data_source != "openai/gsm8k": raise NotImplementedError(data_source)
    found = re.findall(r"#### (\\\\-?[0-9\\\\.\\\\,]+)", solution_str)
    return 1.0 if found and found[-1] == ground_truth else 0.1 * extra_info["index"]

def with_details(data_source, solution_str, ground_truth, extra_info=None, bonus=0.0, **kwargs):
    assert not kwargs, kwargs
    right = solution_str.endswith(ground_truth)
    return {"score": float(right) + bonus, "acc": right, "pred": solution_str[-1]}

def compute_score_batch(data_sources, solution_strs, ground_truths, extra_infos, **kwargs):
    assert len(data_sources) == len(solution_strs) == len(ground_truths) == len(extra_infos)
    return [float(s.endswith(t)) for s, t in zip(solution_strs, ground_truths)]

# SkyRL: a scoring function of skyrl_gym, and an environment
def gsm8k(solution_str, ground_truth, method="strict", format_score=0.0, score=1.0):
    return score if solution_str.split()[-1] == ground_truth else format_score

class BaseTextEnv:
    def __init__(self): self.turns = 0
    def init(self, prompt): return prompt, {}
    def close(self): pass

class GSM8kEnv(BaseTextEnv):
    def __init__(self, env_config, extras={}):
        super().__init__()
        assert "reward_spec" in extras, "reward_spec field is required"
        self.ground_truth, self.bonus = extras["reward_spec"]["ground_truth"], env_config.get("bonus", 0)

    def init(self, prompt):
        assert prompt == [{"role": "user", "content": "1 + 1?"}], prompt
        return prompt, {}

    def step(self, action):
        right = action.endswith(self.ground_truth)
        return {"observations": [], "reward": right + self.bonus, "done": action != "more", "metadata": {}}

# TRL: text, conversations, columns, None for no opinion, asynchronous
def reward_len(completions, **kwargs):
    return [-abs(20 - len(completion)) for completion in completions]

def format_reward(completions, **kwargs):
    contents = [completion[0]["content"] for completion in completions]
    assert all(completion[0]["role"] == "assistant" for completion in completions)
    return [1.0 if re.match(r"^<think>.*?</think>", content) else 0.0 for content in contents]

def accuracy(prompts, completions, solution, task, **kwargs):
    assert kwargs["prompts" if False else "data_source"] == ["openai/gsm8k"] * len(prompts)
    return [float(c.endswith(s)) if t == "math" else None for c, s, t in zip(completions, solution, task)]

async def slow(prompts, completions, completion_ids, **kwargs):
    await asyncio.sleep(0.01)
    return [len(ids) for ids in completion_ids]

# AReaL
def gsm8k_reward_fn(prompt, completions, prompt_ids, completion_ids, answer, **kwargs):
    assert isinstance(prompt, str) and isinstance(completions, str)
    return int(completions.endswith(answer))

# Trinity-RFT
class RewardFn:
    def __call__(self, **kwargs) -> dict: raise NotImplementedError

class MathRewardFn(RewardFn):
    def __init__(self, weight: float = 1.0): self.weight = weight

    def __call__(self, response: str, prompt: Optional[str] = None, truth: Optional[str] = None,
                 format_score_coef: Optional[float] = 0.1, **kwargs) -> dict[str, float]:
        assert prompt == "1 + 1?"
        return {"accuracy": self.weight * float(response.endswith(truth)), "format_score": format_score_coef}
"""

RIGHT, WRONG = "#### 2", "It is 3"
EXTRA = {
    "extra_info": {"index": 3},
    "solution": "2",
    "answer": "2",
    "task": "math",
    "reward_spec": {"method": "rule", "ground_truth": "2"},
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / f"theirs_{tmp_path.name}.py").write_text(MODULE.replace("\\\\\\\\", "\\\\").replace("\\\\", "\\"))
    return tmp_path


def items(*responses: str, chat: bool = False) -> list[RewardItem]:
    messages = ({"role": "user", "content": "1 + 1?"},) if chat else None
    return [
        RewardItem("1 + 1?", each, "2", "openai/gsm8k", EXTRA, "a.jsonl:1", messages, tuple(range(len(each))))
        for each in responses
    ]


def scores(directory: Path, name: str, given: list[RewardItem], **options: Any) -> list[Any]:
    settings = RewardSettings(name=f"theirs_{directory.name}:{name}", options=options, workers=1, timeout_s=5)
    with RewardPool(settings, directory) as pool:
        pool.check(given)
        (said,) = pool.said
        assert f"theirs_{directory.name}:{name} is called as " in said
        results = pool.score(given)
        assert pool.first_messages == {}
        return results


@pytest.mark.parametrize(
    ("name", "wanted", "options", "chat"),
    [
        ("compute_score", [1.0, 0.3], {}, False),
        ("with_details", [1.5, 0.5], {"bonus": 0.5}, True),
        ("compute_score_batch", [1.0, 0.0], {}, False),
        ("gsm8k", [1.0, 0.25], {"format_score": 0.25}, False),
        ("GSM8kEnv", [1.5, 0.5], {"bonus": 0.5}, True),
        ("GSM8kEnv", [1.0, 0.0], {}, False),
        ("reward_len", [-14.0, -13.0], {}, False),
        ("format_reward", [0.0, 0.0], {}, True),
        ("accuracy", [1.0, 0.0], {}, False),
        ("slow", [6.0, 7.0], {}, False),
        ("gsm8k_reward_fn", [1.0, 0.0], {}, True),
        ("MathRewardFn", [2.1, 0.1], {"weight": 2.0}, True),
    ],
)
def test_rewards_of_other_projects(
    directory: Path, name: str, wanted: list[float], options: dict[str, Any], chat: bool
) -> None:
    results = scores(directory, name, items(RIGHT, WRONG, chat=chat), **options)
    assert [result.score for result in results] == pytest.approx(wanted)


def test_their_remarks_are_kept(directory: Path) -> None:
    assert scores(directory, "with_details", items(RIGHT))[0].metrics == {"acc": 1.0}
    assert scores(directory, "MathRewardFn", items(RIGHT))[0].metrics == {"accuracy": 1.0, "format_score": 0.1}


def test_an_environment_of_several_turns_is_no_reward(directory: Path) -> None:
    settings = RewardSettings(name=f"theirs_{directory.name}:GSM8kEnv", workers=1)
    with RewardPool(settings, directory) as pool:
        (result,) = pool.score(items("more"))
    assert result.failure == "exception"
    assert "goes on after the first answer" in result.message


def test_no_opinion_alone_is_no_score(directory: Path) -> None:
    settings = RewardSettings(name=f"theirs_{directory.name}:accuracy", workers=1)
    other = RewardItem("1 + 1?", "2", "2", "openai/gsm8k", {**EXTRA, "task": "code"}, "a.jsonl:2")
    with RewardPool(settings, directory) as pool:
        right, none = pool.score([*items(RIGHT), other])
    assert right.score == 1.0
    assert (none.failure, none.line) == ("bad_value", "the reward returned None; a finite number is needed")
