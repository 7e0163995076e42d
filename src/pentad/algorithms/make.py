"""From settings to the algorithm."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pentad.algorithms.cispo import CISPO
from pentad.algorithms.dapo import DAPO
from pentad.algorithms.dpo import DPO
from pentad.algorithms.dr_grpo import DrGRPO
from pentad.algorithms.grpo import GRPO
from pentad.algorithms.gspo import GSPO
from pentad.algorithms.ppo import PPO
from pentad.algorithms.protocol import Algorithm
from pentad.algorithms.reinforce_pp import ReinforcePP
from pentad.algorithms.rloo import RLOO
from pentad.algorithms.sft import SFT
from pentad.config.schema.algorithms import AlgorithmSettings, CustomSettings
from pentad.errors import UserError
from pentad.user_code import load_object, where

# Made from the settings and the length of the longest response.
ALGORITHMS: dict[str, Callable[[Any, int | None], Algorithm]] = {
    "grpo": GRPO,
    "dr_grpo": DrGRPO,
    "dapo": DAPO,
    "rloo": RLOO,
    "reinforce_pp": ReinforcePP,
    "gspo": GSPO,
    "cispo": CISPO,
    "ppo": PPO,
    "dpo": lambda settings, _: DPO(settings),
    "sft": lambda settings, _: SFT(settings),
}

_METHODS = ("admit", "credit", "losses")


def make_algorithm(settings: AlgorithmSettings, max_response_tokens: int | None = None) -> Algorithm:
    """The algorithm that settings describe.

    Args:
        max_response_tokens: `rollout.max_response_tokens`. Algorithms that measure lengths by it need it; one of the
            user's may take it as an option, `${rollout.max_response_tokens}`.

    Raises:
        UserError: the user's class cannot be imported, does not take the options, or lacks a method.
    """
    if isinstance(settings, CustomSettings):
        return _custom(settings)
    return ALGORITHMS[settings.name](settings, max_response_tokens)


def _custom(settings: CustomSettings) -> Algorithm:
    name = settings.name
    made = load_object(name, "algorithm.name")
    if not inspect.isclass(made):
        raise UserError(f"algorithm.name={name} is of type {type(made).__name__}, not a class", "name a class")
    missing = [method for method in _METHODS if not callable(getattr(made, method, None))]
    if missing:
        raise UserError(
            f"algorithm.name={name} has no method {', '.join(missing)}",
            "give the class the methods of pentad.algorithms.protocol.Algorithm",
        )
    try:
        algorithm = made(**settings.options)
        losses = algorithm.losses()
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"algorithm.name={name} could not be made with algorithm.options: {type(error).__name__}: "
            f"{error}{where(error)}",
            f"change algorithm.options; its signature is {inspect.signature(made)}",
        ) from error
    # Columns that do not exist are refused here, too.
    trained = {"policy", "critic"} if "values" in settings.columns else {"policy"}
    _check_losses(name, losses, trained)
    return algorithm


def _check_losses(name: str, losses: object, trained: set[str]) -> None:
    roles = " and ".join(sorted(trained, reverse=True))
    if not isinstance(losses, Mapping) or set(losses) != trained:
        raise UserError(
            f"algorithm.name={name}: losses() gives {losses!r}, not a mapping of "
            + (
                f"the one role that is trained, {roles}"
                if len(trained) == 1
                else f"the roles that are trained, {roles}"
            ),
            "return {" + ", ".join(f"'{role}': LOSS" for role in sorted(trained, reverse=True)) + "}",
        )
    for role, loss in losses.items():
        missing = [part for part in ("reads", "differentiates_entropy", "denominator") if not hasattr(loss, part)]
        missing += [] if callable(loss) else ["__call__"]
        if missing:
            raise UserError(
                f"algorithm.name={name}: its loss{'' if len(trained) == 1 else f' of the {role}'} has no "
                f"{', '.join(missing)}",
                "give it the members of pentad.algorithms.protocol.Loss",
            )
