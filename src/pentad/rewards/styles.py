"""The ways in which rewards are written: Pentad's, and those of verl, TRL, AReaL, SkyRL and Trinity-RFT.

Invariant: a function is called with the arguments, by name, that the project that it was written for gives it. Which
project that is follows from the names of its parameters alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pentad.rewards.types import RewardItem

Get = Callable[[RewardItem], Any]


@dataclass(frozen=True)
class Style:
    """How a reward is called.

    Attributes:
        name: whose way it is.
        arguments: what it is given by name, from one sample; of a batch, lists of these.
        batch: one call scores all responses to a prompt.
        columns: whether `**kwargs` takes the columns of the row, too.
        sums: a dict that it returns is the parts of a score, not a score with remarks.
        shown: the call, for messages; empty for Pentad's own.
    """

    name: str
    arguments: Mapping[str, Get]
    batch: bool = False
    columns: bool = True
    sums: bool = False
    shown: str = ""


def _response(item: RewardItem) -> str:
    return item.response


def _truth(item: RewardItem) -> Any:
    return item.ground_truth


def _source(item: RewardItem) -> str:
    return item.data_source


def _info(item: RewardItem) -> Any:
    info = item.extra.get("extra_info")
    return {} if info is None else info


def _ids(item: RewardItem) -> Any:
    return None if item.response_ids is None else list(item.response_ids)


def _trl_prompt(item: RewardItem) -> Any:
    """Messages where the data has messages, as TRL gives them; else text."""
    return item.prompt if item.messages is None else [dict(message) for message in item.messages]


def _trl_completion(item: RewardItem) -> Any:
    return item.response if item.messages is None else [{"role": "assistant", "content": item.response}]


def _prompt(item: RewardItem) -> str:
    return item.prompt


PENTAD = Style("Pentad", {"prompt": _prompt, "response": _response, "ground_truth": _truth})
# With the tokens, for a function that names them.
PENTAD_IDS = Style("Pentad", {**PENTAD.arguments, "response_ids": _ids})
VERL = Style(
    "verl",
    {"data_source": _source, "solution_str": _response, "ground_truth": _truth, "extra_info": _info},
    columns=False,
    shown="compute_score(data_source, solution_str, ground_truth, extra_info)",
)
VERL_BATCH = Style(
    "verl, for batches",
    {"data_sources": _source, "solution_strs": _response, "ground_truths": _truth, "extra_infos": _info},
    batch=True,
    columns=False,
    shown="compute_score(data_sources, solution_strs, ground_truths, extra_infos)",
)
TRL = Style(
    "TRL",
    {"prompts": _trl_prompt, "completions": _trl_completion, "completion_ids": _ids},
    batch=True,
    shown="reward(prompts, completions, completion_ids, **columns)",
)
AREAL = Style(
    "AReaL",
    {"prompt": _prompt, "completions": _response, "prompt_ids": lambda item: None, "completion_ids": _ids},
    shown="reward(prompt, completions, prompt_ids=None, completion_ids, **columns)",
)
TRINITY = Style(
    "Trinity-RFT",
    {"response": _response, "prompt": _prompt, "truth": _truth, "ground_truth": _truth},
    sums=True,
    shown="RewardFn(**reward.options)(response, prompt, truth, **columns)",
)
SKYRL = Style(
    "SkyRL",
    {"item": lambda item: item},
    columns=False,
    shown="Env(env_config, extras).step(response), with reward.options as env_config",
)


def recognise(parameters: Mapping[str, inspect.Parameter], *, made_of_class: bool) -> Style:
    """Whose way of writing a reward has these parameters.

    Args:
        made_of_class: the reward is an object of a class that was named, as Trinity-RFT's are.
    """
    names = parameters.keys()
    if "solution_strs" in names:
        return VERL_BATCH
    if "solution_str" in names and "response" not in names:
        return VERL
    if "completions" in names and "response" not in names:
        return AREAL if names & {"prompt", "prompt_ids"} else TRL
    if made_of_class:
        return TRINITY
    return PENTAD_IDS if "response_ids" in names else PENTAD


class Environment:
    """A SkyRL environment as a reward: one step of it with the response.

    Args:
        cls: of the environments, with `step` and perhaps `init` and `close`.
        config: `env_config` of each.
    """

    def __init__(self, cls: Callable[..., Any], config: Mapping[str, Any]) -> None:
        self._class, self._config = cls, config

    def __call__(self, item: RewardItem) -> Any:
        """The reward of the first step.

        Raises:
            ValueError: the environment goes on after it.
        """
        from omegaconf import OmegaConf

        extras = {"max_turns": 1, **item.extra}
        extras.setdefault("reward_spec", {"method": "rule", "ground_truth": item.ground_truth})
        environment = self._class(env_config=OmegaConf.create(dict(self._config)), extras=extras)
        if hasattr(environment, "init"):
            environment.init(_trl_prompt(item) if item.messages else [{"role": "user", "content": item.prompt}])
        try:
            output = environment.step(item.response)
        finally:
            if hasattr(environment, "close"):
                environment.close()
        if not output["done"]:
            raise ValueError("the environment goes on after the first answer; a reward scores one answer")
        return output["reward"]
